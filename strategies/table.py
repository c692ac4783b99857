"""The table of strategies, and the one place where a configuration is parsed.

A new built-in method is one file and one line here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import get_args

from core.config import Key, RunConfig, keys, parse
from core.errors import ConfigError, Problem
from core.plugins import is_plugin, load_plugin
from privacy.statement import ImagesSent
from strategies.base import Strategy
from strategies.centralized import Centralized
from strategies.fedadagrad import FedAdagrad
from strategies.fedadam import FedAdam
from strategies.fedavg import FedAvg
from strategies.fedavgm import FedAvgM
from strategies.feddm import FedDM
from strategies.fednova import FedNova
from strategies.fedprox import FedProx
from strategies.fedyogi import FedYogi
from strategies.local import Local
from strategies.median import Median
from strategies.multi_krum import MultiKrum
from strategies.private import private_problems
from strategies.real_images import RealImages
from strategies.scaffold import Scaffold
from strategies.trimmed_mean import TrimmedMean

STRATEGIES: Mapping[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (
        FedDM,
        FedAvg,
        FedProx,
        FedNova,
        Scaffold,
        FedAvgM,
        FedAdam,
        FedYogi,
        FedAdagrad,
        TrimmedMean,
        Median,
        MultiKrum,
        RealImages,
        Local,
        Centralized,
    )
}


def strategy_class(name: str) -> type[Strategy]:
    """The class that `name` stands for: a built-in one, or ``FILE.py:CLASS``.

    Raises:
        ConfigError: The file or class is missing, or the class is no strategy.
    """
    if not is_plugin(name):
        return STRATEGIES[name]
    found = load_plugin("strategy", name)
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        rule = "must be a subclass of strategies.base.Strategy"
        raise ConfigError([Problem("strategy", name, rule)])
    problems = [Problem("strategy", name, rule) for rule in _faults(found)]
    if problems:
        raise ConfigError(problems)
    return found


def _faults(kind: type[Strategy]) -> list[str]:
    """What keeps a user's class from being a strategy, as sentences."""
    faults = []
    title = getattr(kind, "name", None)
    if not isinstance(title, str) or not title:
        faults.append('it has no name; give the class one, such as name = "mine"')
    elif title in STRATEGIES and STRATEGIES[title] is not kind:
        faults.append(f"its name {title!r} is a built-in strategy's; give it another")
    if getattr(kind, "images_sent", None) not in get_args(ImagesSent):
        faults.append(f"its images_sent must be one of {', '.join(get_args(ImagesSent))}")
    if kind.__abstractmethods__:
        faults.append(f"it lacks {', '.join(sorted(kind.__abstractmethods__))}")
    taken = {field.name.replace("_", "-") for field in dataclasses.fields(RunConfig)}
    builtin = {t: s for strategy in STRATEGIES.values() for t, s in strategy.sections.items()}
    for section, options in kind.sections.items():
        if section in taken or builtin.get(section, options) is not options:
            faults.append(f"its section {section!r} is taken; give it another name")
        elif not dataclasses.is_dataclass(options):
            faults.append(f"its section {section!r} is no dataclass")
        else:
            faults += [
                f"{section}.{field.name} has no rule; declare it with core.config.number, choice, "
                "flag or text"
                for field in dataclasses.fields(options)
                if "rule" not in field.metadata
            ]
    return faults


def parse_config(flat: Mapping[str, object]) -> RunConfig:
    """Parse flat ``section.key`` scalars, or refuse them with every problem at once.

    Raises:
        ConfigError: See `core.config.parse`; also a strategy file that does not load.
    """
    known: dict[str, type[Strategy]] = dict(STRATEGIES)
    named = flat.get("strategy")
    if isinstance(named, str) and is_plugin(named):
        known[named] = strategy_class(named)
    sections = {
        title: section for kind in known.values() for title, section in kind.sections.items()
    }
    readers = {name: tuple(kind.sections) for name, kind in known.items()}
    config = parse(flat, sections=sections, strategies=readers)
    kind = strategy_class(config.strategy)
    problems = [
        *_attack_problems(kind, config),
        *_own_data_problems(kind, config),
        *private_problems(kind, config),
    ]
    if problems := [*problems, *kind.problems(config)]:
        raise ConfigError(problems)
    return config


def _attack_problems(kind: type[Strategy], config: RunConfig) -> Iterable[Problem]:
    """An attack is one on the model that clients make together."""
    if config.attack.kind != "none" and not (kind.asks_clients and kind.has_global_model):
        reason = "has no global model to attack" if kind.asks_clients else "asks no clients"
        rule = f"strategy {config.strategy} {reason}; leave it out"
        yield Problem("attack.kind", config.attack.kind, rule)


def _own_data_problems(kind: type[Strategy], config: RunConfig) -> Iterable[Problem]:
    """Images that clients bring stay with them."""
    if config.partition.scheme != "own":
        return
    if not kind.asks_clients:
        rule = f"strategy {config.strategy} asks no clients, who alone have images; take another"
        yield Problem("partition.scheme", "own", rule)
    elif kind.images_sent == "raw":
        rule = f"strategy {config.strategy} sends clients' images as they are; take another"
        yield Problem("partition.scheme", "own", rule)


def config_keys() -> list[Key]:
    """Every key of the built-in strategies, for help, docs and ``pyproject.toml``."""
    sections = {
        title: section for kind in STRATEGIES.values() for title, section in kind.sections.items()
    }
    return keys(sections, STRATEGIES)


def build_strategy(config: RunConfig) -> Strategy:
    """The configured strategy."""
    return strategy_class(config.strategy)(config)
