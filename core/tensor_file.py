"""Files of named tensors that tell whether they are whole and whose they are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from core.errors import RecordError
from core.parameters import NamedTensors
from core.records import whole_file

_DIGEST = "xxh3_128"
"""Finds damage at the speed of memory; against whoever changes files on purpose no digest helps."""

_DIGESTS: Mapping[str, Callable[[bytes], Any]] = {
    _DIGEST: xxhash.xxh3_128,
    "sha256": hashlib.sha256,  # of files of before
}
"""By the key under which a file has its digest."""


def write_tensors(path: Path, tensors: NamedTensors, about: Mapping[str, str]) -> None:
    """Write tensors and what they are, whole, with a digest of both.

    Raises:
        OSError: There is no room for the file, or it may not be written.
    """
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {**about, _DIGEST: _digest(_DIGEST, kept, about)}
    with whole_file(path) as temporary:
        try:
            save_file(kept, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error


def read_about(path: Path) -> dict[str, str]:
    """What a file says it is, without its tensors.

    Raises:
        RecordError: The file is missing or damaged; says which and how.
    """
    return _read(path)[1]


def has_digest(path: Path) -> bool:
    """Whether `read_tensors` can read the file: `write_tensors` wrote it, and nobody else.

    Raises:
        RecordError: The file is missing or damaged; says which and how.
    """
    return not _DIGESTS.keys().isdisjoint(read_about(path))


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read back what `write_tensors` wrote.

    Raises:
        RecordError: The file is missing or damaged; says which and how.
    """
    tensors, about = _read(path, and_tensors=True)
    kind = next((name for name in _DIGESTS if name in about), _DIGEST)
    if about.pop(kind, None) != _digest(kind, tensors, about):
        raise RecordError(f"{path} is damaged: its content does not give its {kind}")
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


def _digest(kind: str, tensors: NamedTensors, about: Mapping[str, str]) -> str:
    digest = _DIGESTS[kind](repr(sorted(about.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).numpy().data)
    told: str = digest.hexdigest()
    return told
