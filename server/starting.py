"""Weights to start from: those that another run ended with, or a file's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from core.errors import ConfigError, Problem, RecordError
from core.groups import ParameterGroups, is_in
from core.records import RunFolder
from core.tensor_file import has_digest, read_about, read_tensors
from server.checkpoint import NUMBERING

_WEIGHTS = "weights/"
KEY = "start-from"


def file_of(place: str) -> Path:
    """The file that ``start-from`` means: itself, or the last checkpoint of a run's folder.

    Raises:
        RecordError: There is none.
    """
    path = Path(place).expanduser().resolve()
    if path.is_dir():
        found = RunFolder.open(path).checkpoints()
        if not found:
            raise RecordError(f"{KEY}={place}: the run has no checkpoint; let it finish first")
        return found[-1][1]
    if not path.is_file():
        raise RecordError(
            f"{KEY}={place}: there is no such folder or file; name a run's folder, such as "
            ".runs/NAME, or a .safetensors file"
        )
    return path


def load_start(
    model: nn.Module,
    groups: ParameterGroups,
    place: str,
    numbering: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Load what `place` holds of the model's shared entries, in place.

    Entries that it lacks, such as the head of another task, keep what they were initialised to;
    entries that the model lacks are passed over. What is personal is not loaded: clients begin with
    what the seed gives.

    Args:
        model: The model.
        groups: What of it is shared.
        place: A run's folder or a file.
        numbering: What the rows of entries stand for, as `core.workload.Workload.numbering` has it.

    Raises:
        RecordError: It is missing or damaged.
        ConfigError: It holds none of the model's entries, one has another shape or rows that stand
            for something else, or it holds frozen ones, which clients are not sent.
    """
    path = file_of(place)
    theirs = _numbering(path)
    found = read_tensors(path)[0] if has_digest(path) else _foreign(path)
    if any(name.startswith(_WEIGHTS) for name in found):
        found = {
            name.removeprefix(_WEIGHTS): value
            for name, value in found.items()
            if name.startswith(_WEIGHTS)
        }
    state = model.state_dict()
    known = [name for name in state if name in found]
    if not known:
        rule = f"holds none of this model's parameters, such as {next(iter(state))}; name another"
        raise ConfigError([Problem(KEY, place, rule)])
    for name in known:
        if name in groups.frozen:
            rule = (
                f"holds {name}, which groups.frozen names and clients are not sent; leave one out"
            )
            raise ConfigError([Problem(KEY, place, rule)])
        if found[name].shape != state[name].shape:
            has, wants = (" x ".join(map(str, t.shape)) for t in (found[name], state[name]))
            rule = (
                f"holds {name} of shape {has}, and the model's is {wants}; configure the model as "
                "it was trained, on the same data and vocabulary"
            )
            raise ConfigError([Problem(KEY, place, rule)])
        for group, stands_for in numbering.items():
            if is_in(name, group) and theirs.get(group, stands_for) != stands_for:
                rule = (
                    f"holds {name} with rows for {theirs[group]}, and the model's are for "
                    f"{stands_for}; configure the model as it was trained, on the same data and "
                    f"vocabulary, or name a file without {group}"
                )
                raise ConfigError([Problem(KEY, place, rule)])
    with torch.no_grad():
        for name in known:
            if groups.is_shared(name):
                state[name].copy_(found[name])


def _numbering(path: Path) -> Mapping[str, str]:
    """What rows stand for, where the file tells."""
    found: Mapping[str, str] = json.loads(read_about(path).get(NUMBERING, "{}"))
    return found


def _foreign(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a file that Tessera did not write.

    Raises:
        RecordError: It is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
