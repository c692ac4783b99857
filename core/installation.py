"""What is installed here, so that two machines of one run can tell whether they agree."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

PACKAGES = ("torch", "flwr", "numpy", "tessera-fl")
"""Distributions whose versions a result may depend on."""

CLIENT_SOURCES = (
    *("client", "core", "data", "distill"),
    *("models", "pairing", "privacy", "strategies", "workloads"),
)
"""The packages of Tessera's that answer a message: the same on server and client."""

_CODE = "Tessera's code"


def describe_installation(sources: Sequence[str] = CLIENT_SOURCES) -> dict[str, str]:
    """Versions of Python and of `PACKAGES`, and a digest of Tessera's own code, by name.

    Args:
        sources: Packages of Tessera's whose code counts.
    """
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for package in sources:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    described = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            described[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            described[name] = "not installed"
    return {**described, _CODE: digest.hexdigest()[:12]}


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """What differs between two installations that take part in one run over a network.

    Patch releases of Python and builds of one version of a package (``2.11.0+cpu``) are the same.

    Returns:
        One clause each, naming both, such as ``torch is 2.9.1 there and 2.11.0 here``.
    """
    return [
        f"{name} is {there.get(name, 'unknown')} there and {expected} here"
        for name, expected in here.items()
        if _release(name, there.get(name, "")) != _release(name, expected)
    ]


def _release(name: str, version: str) -> str:
    if name == "Python":
        return ".".join(version.split(".")[:2])
    return version.partition("+")[0]
