"""What this installation of Tessera says of itself."""

from __future__ import annotations

import importlib.metadata
import tomllib
from dataclasses import dataclass
from pathlib import Path

DISTRIBUTION = "tessera-fl"


@dataclass(frozen=True, slots=True)
class Project:
    """Facts of the package.

    Attributes:
        version: Such as ``0.1.0``.
        requires_python: Such as ``>=3.11``.
        requirements: Packages with their bounds, without the optional ones.
    """

    version: str
    requires_python: str
    requirements: tuple[str, ...]


def this_project() -> Project:
    """Read from the installed package, or from the source tree where it runs uninstalled."""
    try:
        installed = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        path = Path(__file__).resolve().parent.parent / "pyproject.toml"
        project = tomllib.loads(path.read_text("utf-8"))["project"]
        return Project(
            project["version"], project["requires-python"], tuple(project["dependencies"])
        )
    required = tuple(line for line in installed.requires or () if "extra ==" not in line)
    return Project(installed.version, installed.metadata["Requires-Python"], required)
