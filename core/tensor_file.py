"""Files of named tensors that tell whether they are whole and whose they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from core.errors import RecordError
from core.parameters import NamedTensors
from core.records import write_whole


def write_tensors(path: Path, tensors: NamedTensors, about: Mapping[str, str]) -> None:
    """Write tensors and what they are, whole, with a digest of both."""
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {**about, "sha256": _digest(kept, about)}
    write_whole(path, save(kept, metadata))


def read_about(path: Path) -> dict[str, str]:
    """What a file says it is, without its tensors.

    Raises:
        RecordError: The file is missing or damaged; says which and how.
    """
    return _read(path)[1]


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read back what `write_tensors` wrote.

    Raises:
        RecordError: The file is missing or damaged; says which and how.
    """
    tensors, about = _read(path, and_tensors=True)
    if about.pop("sha256", None) != _digest(tensors, about):
        raise RecordError(f"{path} is damaged: its content does not give its sha256")
    return tensors, about


def _read(
    path: Path, *, and_tensors: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if not path.is_file():
        raise RecordError(f"{path} is missing")
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys()) if and_tensors else []
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise RecordError(f"{path} is damaged: {error}") from error


def _digest(tensors: NamedTensors, about: Mapping[str, str]) -> str:
    digest = hashlib.sha256(repr(sorted(about.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).numpy().data)
    return digest.hexdigest()
