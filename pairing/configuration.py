"""The one place where a configuration is parsed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from core.config import Key, Rule, RunConfig, keys, parse
from core.errors import ConfigError, Problem
from core.plugins import is_plugin
from core.workload import Workload
from pairing.fit import misfits
from strategies.base import Strategy
from strategies.private import private_problems
from strategies.table import STRATEGIES, strategy_class
from workloads.table import WORKLOADS, workload_class


def parse_config(flat: Mapping[str, object]) -> RunConfig:
    """Parse flat ``section.key`` scalars, or refuse them with every problem at once.

    Raises:
        ConfigError: See `core.config.parse`; also a user's file that does not load, and a strategy
            and a workload that do not fit.
    """
    strategies: dict[str, type[Strategy]] = dict(STRATEGIES)
    workloads: dict[str, type[Workload]] = dict(WORKLOADS)
    named, trained = flat.get("strategy"), flat.get("workload")
    if isinstance(named, str) and is_plugin(named):
        strategies[named] = strategy_class(named)
    if isinstance(trained, str) and is_plugin(trained):
        workloads[trained] = workload_class(trained)
    config = parse(
        flat, sections=_sections(strategies, workloads), readers=_readers(strategies, workloads)
    )
    strategy, workload = strategy_class(config.strategy), workload_class(config.workload)
    problems = [
        *_attack_problems(strategy, config),
        *_own_data_problems(strategy, workload, config),
        *misfits(strategy, workload, config),
        *private_problems(strategy, config),
    ]
    if problems := [*problems, *strategy.problems(config), *workload.problems(config)]:
        raise ConfigError(problems)
    return config


def config_keys() -> list[Key]:
    """Every key of what is built in, for help, docs and ``pyproject.toml``."""
    return keys(_sections(STRATEGIES, WORKLOADS), _readers(STRATEGIES, WORKLOADS))


def rules_read(flat: Mapping[str, object]) -> dict[str, Rule]:
    """Rules of the built-in keys that the strategy and the workload named in `flat` read.

    Nothing that `flat` names is loaded; of what a user's own file would read, it knows nothing.
    """
    found = {key.name: key.rule for key in config_keys()}
    default = RunConfig()
    kinds: tuple[type[Strategy] | type[Workload] | None, ...] = (
        STRATEGIES.get(str(flat.get("strategy", default.strategy))),
        WORKLOADS.get(str(flat.get("workload", default.workload))),
    )
    read = {title for kind in kinds if kind is not None for title in kind.sections}
    passed_over = _sections(STRATEGIES, WORKLOADS).keys() - read
    return {n: rule for n, rule in found.items() if n.partition(".")[0] not in passed_over}


def _sections(
    strategies: Mapping[str, type[Strategy]], workloads: Mapping[str, type[Workload]]
) -> dict[str, type]:
    read = [kind.sections for kind in strategies.values()]
    read += [kind.sections for kind in workloads.values()]
    return {title: section for sections in read for title, section in sections.items()}


def _readers(
    strategies: Mapping[str, type[Strategy]], workloads: Mapping[str, type[Workload]]
) -> dict[str, dict[str, tuple[str, ...]]]:
    return {
        "strategy": {name: tuple(kind.sections) for name, kind in strategies.items()},
        "workload": {name: tuple(kind.sections) for name, kind in workloads.items()},
    }


def _attack_problems(kind: type[Strategy], config: RunConfig) -> Iterable[Problem]:
    """An attack is one on the model that clients make together."""
    if config.attack.kind != "none" and not (kind.asks_clients and kind.has_global_model):
        reason = "has no global model to attack" if kind.asks_clients else "asks no clients"
        rule = f"strategy {config.strategy} {reason}; leave it out"
        yield Problem("attack.kind", config.attack.kind, rule)


def _own_data_problems(
    kind: type[Strategy], workload: type[Workload], config: RunConfig
) -> Iterable[Problem]:
    """What clients bring stays with them, and only works where nothing is dealt from here."""
    if config.partition.scheme != "own":
        return
    for key, value, default in (
        ("canaries.kind", config.canaries.kind, "none"),
        ("attack.kind", config.attack.kind, "none"),
        ("data.train-examples", config.data.train_examples, 0),
    ):
        if value != default:
            rule = (
                "is not possible with partition.scheme=own, where clients bring their own "
                f"{workload.noun}; leave it out"
            )
            yield Problem(key, str(value), rule)
    if not kind.asks_clients:
        rule = (
            f"strategy {config.strategy} asks no clients, who alone have {workload.noun}; take "
            "another"
        )
        yield Problem("partition.scheme", "own", rule)
    elif kind.images_sent == "raw":
        rule = f"strategy {config.strategy} sends clients' images as they are; take another"
        yield Problem("partition.scheme", "own", rule)
