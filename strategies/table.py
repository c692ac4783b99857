"""The table of strategies. A new built-in method is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from core.config import RunConfig, section_faults
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
    return faults + section_faults(kind.sections, STRATEGIES.values())


def build_strategy(config: RunConfig) -> Strategy:
    """The configured strategy."""
    return strategy_class(config.strategy)(config)
