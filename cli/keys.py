"""Every configuration key for ``tessera run --help``, made from the keys themselves."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, cast, get_type_hints

import typer
from typer.core import TyperCommand

from core.config import Key, RunConfig

Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", hidden=True)]
"""Keys as a command line gives them."""

_TYPES = {bool: "true/false", int: "int", float: "float", str: "text"}


class KeyCommand(TyperCommand):
    """A command whose help ends with every key, by section."""

    def format_epilog(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the keys, then the epilog."""
        for section in key_sections():
            with formatter.section(section.title):
                formatter.write_text(section.about)
                formatter.write_dl([(key.name, describe(key)) for key in section.keys])
        super().format_epilog(ctx, formatter)


@dataclass(frozen=True, slots=True)
class KeySection:
    """Keys that belong together.

    Attributes:
        title: Their prefix, or what takes its place.
        about: What they are for, and which strategies read them where not all do.
        keys: In the order of the configuration.
    """

    title: str
    about: str
    keys: list[Key]


def key_sections() -> Iterator[KeySection]:
    """Sections in the order of the configuration."""
    from pairing.configuration import config_keys  # imports torch
    from strategies.table import STRATEGIES  # imports torch
    from workloads.table import WORKLOADS  # imports torch

    sections: dict[str, list[Key]] = {}
    for key in config_keys():
        sections.setdefault(key.name.rpartition(".")[0], []).append(key)
    kinds: dict[str, type] = {
        field.name: cast(type, get_type_hints(RunConfig)[field.name])
        for field in dataclasses.fields(RunConfig)
        if field.name in sections
    }
    readers: dict[str, list[str]] = {}
    named = [(strategy.name, strategy.sections) for strategy in STRATEGIES.values()]
    named += [(f"workload {kind.name}", kind.sections) for kind in WORKLOADS.values()]
    for reader, own in named:
        for name, section in own.items():
            kinds[name] = section
            readers.setdefault(name, []).append(reader)
    for name, keys in sections.items():
        about = first_line(kinds[name]) if name else "What is run, and where it is recorded."
        if name in readers:
            about += f" Read by {', '.join(readers[name])}."
        yield KeySection(f"Keys {name}.*" if name else "Keys", about, keys)


def first_line(kind: type) -> str:
    """The first line of a class's docstring."""
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def describe(key: Key) -> str:
    """Meaning, rule, type and default of one key."""
    default = str(key.default).lower() if key.type is bool else key.default
    if default == "":
        default = "empty"
    return f"{key.rule.meaning}; {key.rule.text} [{_TYPES[key.type]}, default {default}]"
