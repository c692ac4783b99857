"""Whether a strategy and a workload fit, and what keeps them apart.

A workload offers an objective, and unless it says otherwise all that `core.workload.Offer` names. A
strategy says what it needs and why, and so does here what is no strategy: privacy, attacks, audits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from core.config import RunConfig
from core.errors import Problem
from core.workload import Offer, OwnData, Workload
from strategies.base import Strategy
from strategies.private import fits
from strategies.table import STRATEGIES


def misfits(
    strategy: type[Strategy], workload: type[Workload], config: RunConfig
) -> Iterator[Problem]:
    """Why the two cannot run together under `config`, as problems with the way out."""
    lacks = lacking(workload, config)
    yield from _unread(workload, config)
    yield from _of_strategy(strategy, config, lacks)
    yield from _of_start(strategy, config)
    yield from _of_groups(strategy, config)
    yield from _of_canaries(config)
    yield from _of_privacy(strategy, config, lacks)
    yield from _of_features(workload, config, lacks)


def _unread(workload: type[Workload], config: RunConfig) -> Iterator[Problem]:
    """Keys of data and model that the workload would not look at."""
    default = RunConfig()
    for title in ("data", "model"):
        section = getattr(config, title)
        for item in dataclasses.fields(section):
            value = getattr(section, item.name)
            if title not in workload.reads and value != getattr(getattr(default, title), item.name):
                key = f"{title}.{item.name.replace('_', '-')}"
                rule = f"workload {config.workload} brings its own {title}; leave it out"
                yield Problem(key, str(value), rule)


def lacking(workload: type[Workload], config: RunConfig) -> Mapping[Offer, str]:
    """What this workload does not offer under `config`, with the reasons as clauses."""
    lacks = {
        offer: f"workload {config.workload} {why}" for offer, why in workload.lacks(config).items()
    }
    if not issubclass(workload, OwnData):
        lacks["own-data"] = (
            f"workload {config.workload} does not say how clients' own are read, as a subclass of "
            "core.workload.OwnData does"
        )
    if config.train.optimizer != "sgd":
        lacks["gradient-steps"] = (
            f"train.optimizer={config.train.optimizer} scales every coordinate by its own history"
        )
    return lacks


def _of_strategy(
    strategy: type[Strategy], config: RunConfig, lacks: Mapping[Offer, str]
) -> Iterator[Problem]:
    for offer, why in strategy.needs.items():
        if offer in lacks:
            rule = f"{why}, and {lacks[offer]}; {_other_strategy(lacks, config)}"
            yield Problem("strategy", config.strategy, rule)


def _other_strategy(lacks: Mapping[Offer, str], config: RunConfig) -> str:
    fit = [name for name, kind in STRATEGIES.items() if not kind.needs.keys() & lacks.keys()]
    way_out = f"take another strategy, such as {', '.join(fit[:3])}"
    if config.train.optimizer != "sgd" and "gradient-steps" in lacks:
        way_out += ", or train.optimizer=sgd"
    return way_out


def _of_start(strategy: type[Strategy], config: RunConfig) -> Iterator[Problem]:
    """Weights to start from are the server's, which it sends."""
    if config.start_from and not strategy.has_global_model:
        rule = (
            f"strategy {config.strategy} has no model at the server, and its clients start from "
            "what the seed gives; leave it out"
        )
        yield Problem("start-from", config.start_from, rule)


def _of_groups(strategy: type[Strategy], config: RunConfig) -> Iterator[Problem]:
    """Personal parts are those that an average of weights leaves out."""
    if config.groups.personal and not strategy.averages_weights:
        others = [name for name, kind in STRATEGIES.items() if kind.averages_weights]
        rule = (
            f"strategy {config.strategy} does not average clients' weights, of which parts could "
            f"stay personal; leave it out, or take {', '.join(others[:3])}"
        )
        yield Problem("groups.personal", config.groups.personal, rule)


def _of_canaries(config: RunConfig) -> Iterable[Problem]:
    """What an audit must see of a model to look for traces in it."""
    if config.canaries.kind != "none" and config.groups.personal:
        rule = (
            "keeps parts of the model that no transcript holds, and without which an audit cannot "
            "tell what a canary did; leave it out, or leave canaries.kind out"
        )
        yield Problem("groups.personal", config.groups.personal, rule)


def _of_privacy(
    strategy: type[Strategy], config: RunConfig, lacks: Mapping[Offer, str]
) -> Iterator[Problem]:
    mechanism = config.privacy.mechanism
    client_level = fits(strategy, "client")
    if config.privacy.is_example_level:
        way_out = (
            "set privacy.mechanism=client, which bounds and noises each client's whole update"
            if client_level
            else "take strategy=fedavg with privacy.mechanism=client, which bounds and noises each "
            "client's whole update"
        )
        if why := lacks.get("per-example-gradients"):
            rule = f"clips and noises what single examples do, and {why}; {way_out}"
            yield Problem("privacy.mechanism", mechanism, rule)
        elif config.groups.personal:
            rule = (
                "noises what a client sends, and groups.personal keeps parts that nothing noises "
                f"and that all it sends depends on; leave groups.personal out, or {way_out}"
            )
            yield Problem("privacy.mechanism", mechanism, rule)
    if mechanism == "client" and (why := lacks.get("equal-forms")):
        rule = f"adds clients' updates up as vectors of one length, and {why}"
        yield Problem("privacy.mechanism", mechanism, rule)


def _of_features(
    workload: type[Workload], config: RunConfig, lacks: Mapping[Offer, str]
) -> Iterable[Problem]:
    """What the platform does to clients' data, which must be of a kind that it knows."""
    features: tuple[tuple[str, str, bool, Offer, str], ...] = (
        (
            "attack.kind",
            config.attack.kind,
            config.attack.kind == "label-flip",
            "labelled-images",
            "flips the labels of images",
        ),
        (
            "canaries.kind",
            config.canaries.kind,
            config.canaries.kind != "none",
            "image-loss",
            "puts labelled images among clients' and looks for the traces of their loss",
        ),
        (
            "partition.scheme",
            "own",
            config.partition.scheme == "own",
            "own-data",
            f"reads clients' {workload.noun} from their own machines",
        ),
    )
    for key, value, is_used, offer, what in features:
        if is_used and offer in lacks:
            yield Problem(key, value, f"{what}, and {lacks[offer]}; leave it out")
