"""The table of workloads. A new built-in one is one folder or file, and one line here."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch

from core.config import RunConfig, section_faults
from core.errors import ConfigError, Problem
from core.plugins import is_plugin, load_plugin
from core.workload import Dataset, Workload
from data.partitioners import refuse_too_few
from workloads.meta.meltr import Meltr
from workloads.video.vlm.workload import Vlm
from workloads.vision import ImageClassification

WORKLOADS: Mapping[str, type[Workload]] = {
    workload.name: workload for workload in (ImageClassification, Meltr, Vlm)
}

DATA_KEPT = 2
"""Data sets that a process keeps loaded: those of two runs that take turns."""

_loaded: dict[Hashable, Dataset] = {}


def workload_class(name: str) -> type[Workload]:
    """The class that `name` stands for: a built-in one, or ``FILE.py:CLASS``.

    Raises:
        ConfigError: The file or class is missing, or the class is no workload.
    """
    if not is_plugin(name):
        return WORKLOADS[name]
    found = load_plugin("workload", name)
    if not (isinstance(found, type) and issubclass(found, Workload)):
        rule = "must be a subclass of core.workload.Workload"
        raise ConfigError([Problem("workload", name, rule)])
    if problems := [Problem("workload", name, rule) for rule in _faults(found)]:
        raise ConfigError(problems)
    return found


def _faults(kind: type[Workload]) -> list[str]:
    """What keeps a user's class from being a workload, as sentences."""
    faults = []
    title = getattr(kind, "name", None)
    if not isinstance(title, str) or not title:
        faults.append('it has no name; give the class one, such as name = "mine"')
    elif title in WORKLOADS and WORKLOADS[title] is not kind:
        faults.append(f"its name {title!r} is a built-in workload's; give it another")
    if kind.__abstractmethods__:
        faults.append(f"it lacks {', '.join(sorted(kind.__abstractmethods__))}")
    return faults + section_faults(kind.sections, WORKLOADS.values())


def open_workload(config: RunConfig, device: torch.device) -> Workload:
    """The configured workload. Data is loaded once per process; `forget_data` lets it go.

    Raises:
        DataError: The data is missing or unfit.
    """
    kind = workload_class(config.workload)
    key = kind.data_key(config)
    if key not in _loaded:
        dataset = kind.load(config)
        while len(_loaded) >= DATA_KEPT:
            del _loaded[next(iter(_loaded))]
        _loaded[key] = dataset
    return kind(config, _loaded[key], device)


def open_dealt(config: RunConfig, device: torch.device) -> Workload:
    """As `open_workload`, for data that are dealt to clients: too few are refused before loading.

    Raises:
        DataError: The data is missing or unfit, or too few for the configured clients.
    """
    kind = workload_class(config.workload)
    if kind.data_key(config) not in _loaded and (most := kind.most_examples(config)) is not None:
        refuse_too_few(most, config.partition)
    return open_workload(config, device)


def open_on(config: RunConfig, dataset: Dataset, device: torch.device) -> Workload:
    """The configured workload on data that a client brought."""
    return workload_class(config.workload)(config, dataset, device)


def forget_data() -> None:
    """Drop loaded data, so that it is read from its files anew."""
    _loaded.clear()
