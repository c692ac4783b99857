"""Parameter groups: what of a model is shared, what stays with clients, and what nobody trains.

A group is what lies under one name of the model: ``classifier`` is ``classifier.weight`` and
``classifier.bias``, ``phi`` all that begins with ``phi.``. Groups may lie in one another; what
holds of a group holds of all that is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from core.config import GroupsConfig
from core.errors import ConfigError, Problem


def is_in(entry: str, group: str) -> bool:
    """Whether an entry of a state dict belongs to a group.

    >>> is_in("phi.layer.weight", "phi"), is_in("phi", "phi"), is_in("phi2.weight", "phi")
    (True, True, False)
    """
    return entry == group or entry.startswith(f"{group}.")


@dataclass(frozen=True, slots=True)
class ParameterGroups:
    """What becomes of each entry of one model; those named in neither set are shared.

    Attributes:
        personal: Entries that each client keeps to itself.
        frozen: Entries that stay as they were initialised, everywhere.
    """

    personal: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: GroupsConfig, entries: Iterable[str]) -> ParameterGroups:
        """The groups of a model with these entries.

        Raises:
            ConfigError: A group has no entry, or an entry is in groups of both kinds.
        """
        names = list(entries)
        found: dict[str, frozenset[str]] = {}
        for kind, groups in (("personal", config.personal), ("frozen", config.frozen)):
            held: set[str] = set()
            for group in split_names(groups):
                inside = [name for name in names if is_in(name, group)]
                if not inside:
                    tops = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
                    rule = f"the model has nothing by that name; it has {tops}, and what lies in it"
                    raise ConfigError([Problem(f"groups.{kind}", group, rule)])
                held.update(inside)
            found[kind] = frozenset(held)
        if both := found["personal"] & found["frozen"]:
            rule = f"{min(both)} is in groups.personal too; name it in one of them"
            raise ConfigError([Problem("groups.frozen", config.frozen, rule)])
        return cls(found["personal"], found["frozen"])

    def is_shared(self, entry: str) -> bool:
        """Whether clients send this entry and the server averages it."""
        return entry not in self.personal and entry not in self.frozen

    def refuse_split(self, model: nn.Module) -> None:
        """Refuse one parameter under two names of which different things are to become.

        Raises:
            ConfigError: With the way out.
        """
        names_of: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names_of.setdefault(id(parameter), []).append(name)
        for kind, held in (("personal", self.personal), ("frozen", self.frozen)):
            for names in names_of.values():
                inside = [name for name in names if name in held]
                others = [name for name in names if name not in held]
                if inside and others:
                    rule = f"is the same parameter as {others[0]}; name both, or neither"
                    raise ConfigError([Problem(f"groups.{kind}", inside[0], rule)])

    def freeze(self, model: nn.Module) -> None:
        """Let no gradient reach what is frozen."""
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in self.frozen:
                parameter.requires_grad_(False)


def split_names(text: str) -> tuple[str, ...]:
    """Names that are separated by commas.

    >>> split_names(" a, b.c ,"), split_names("")
    (('a', 'b.c'), ())
    """
    return tuple(name for part in text.split(",") if (name := part.strip()))


@dataclass(frozen=True, slots=True)
class EntryWeights:
    """What one client's entries weigh in an average.

    Attributes:
        default: Of an entry that is in no group of `by_group`.
        by_group: By the name of a group; the innermost one counts.
    """

    default: int
    by_group: Mapping[str, int] = field(default_factory=dict)

    def of(self, entry: str) -> int:
        """Weight of one entry.

        >>> EntryWeights(9, {"phi": 2, "phi.scale": 1}).of("phi.scale.weight")
        1
        """
        inside = [group for group in self.by_group if is_in(entry, group)]
        return self.by_group[max(inside, key=len)] if inside else self.default
