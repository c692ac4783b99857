"""Files of named tensors that tell whether they are whole and whose they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from core.errors import RecordError
from core.parameters import NamedTensors
from core.records import whole_file

_DIGEST = "xxh3_128"
"""The key of a file's digest, which finds damage at the speed of memory; against whoever changes
files on purpose no digest helps."""


def write_tensors(path: Path, tensors: NamedTensors, about: Mapping[str, str]) -> None:
    """Write tensors and what they are, whole, with a digest of both.

    Raises:
        OSError: There is no room for the file, or it may not be written.
    """
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {**about, _DIGEST: _digest(kept, about)}
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
    return _DIGEST in read_about(path)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read back what `write_tensors` wrote.

    Raises:
        RecordError: The file is missing or damaged; says which and how.
    """
    tensors, about = _read(path, and_tensors=True)
    if about.pop(_DIGEST, None) != _digest(tensors, about):
        raise RecordError(f"{path} is damaged: its content does not give its {_DIGEST}")
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
    digest = xxhash.xxh3_128(repr(sorted(about.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).numpy().data)
    return digest.hexdigest()
