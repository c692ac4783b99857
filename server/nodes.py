"""Which node of a network holds which partition: they join before the first round, and come back.

Tessera's own grid names nodes by partition. Any other is asked, each node once, because Flower
draws node ids at random. A node that is not fit is left out and the reason kept: it is told where
the federation cannot start without it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from core.errors import QuorumError, RunError
from core.installation import describe_installation, differences
from core.wire import ArraySpec, Record, RecordSpec
from core.workload import OwnData
from data.partition import Partition
from server.preparation import Preparation
from server.replies import POLL_S, Unreadable, printable, pull_each
from strategies.flower import from_flower, to_flower

log = logging.getLogger("tessera")

_LONGEST_SETTING = 4_096
_LONGEST_REASON, _LONGEST_KEY = 500, 100
MOST_EXAMPLES = 2_000_000
"""That one client may say it has: the partition on record names each."""

GRACE_S = 30.0
"""For nodes that have not answered when every partition has one."""

_ASK_AGAIN_S = 60.0
"""After which a node that was asked who it is, and said nothing, is asked again."""


@dataclass(frozen=True, slots=True)
class Member:
    """A node that has joined.

    Attributes:
        node_id: Flower's id of it.
        partition_id: Which client it is.
        key: Fingerprint of its key; empty where it has none.
        keeps_state: Whether its state and ledger lie on a machine of its own.
        class_counts: Its own examples of each class, shape (C,); None where it tells none.
        data_sha256: Digest of its own data; empty where it tells none.
    """

    node_id: int
    partition_id: int
    key: str = ""
    keeps_state: bool = False
    class_counts: tuple[int, ...] | None = None
    data_sha256: str = ""

    def is_again(self, other: Member) -> bool:
        """Whether this is the same client, under another node id or not."""
        return replace(self, node_id=other.node_id) == other


class Nodes:
    """The nodes of one run.

    Args:
        grid: Where they are.
        preparation: The run.
        members: As they were when the run was cut off, by partition id; a client that comes back
            must be the same.
    """

    def __init__(
        self, grid: Grid, preparation: Preparation, members: Mapping[int, Member] | None = None
    ) -> None:
        self._grid = grid
        self._preparation = preparation
        self._num_clients = preparation.num_clients_asked
        self._is_own_grid = getattr(grid, "node_is_partition", False)
        self._before = dict(members or {})
        self._members: dict[int, Member] = {}
        self._asked: dict[str, tuple[int, float]] = {}
        self._known: set[int] = set()
        self._refused: dict[int, str] = {}
        self._present: set[int] = set()
        self._all_joined = False
        self._here = describe_installation()

    @property
    def members(self) -> Mapping[int, Member]:
        """Those that have joined, by partition id."""
        return self._members

    @property
    def joined(self) -> Mapping[int, Member]:
        """Those of a network; none where the grid is Tessera's own."""
        return {} if self._is_own_grid else self._members

    @property
    def clients_keep_state(self) -> bool:
        """Whether clients keep state and ledgers on machines of their own."""
        return any(member.keeps_state for member in self._members.values())

    def node_of(self, partition_id: int) -> int | None:
        """The node that holds a partition; None where it is gone, or not fit any more."""
        member = self._members.get(partition_id)
        able = self._present - self._refused.keys()
        return member.node_id if member and member.node_id in able else None

    def why_missing(self, partition_id: int) -> str:
        """Why `node_of` knows none."""
        member = self._members.get(partition_id)
        refused = self._refused.get(member.node_id) if member else None
        return refused or "no node holds this partition"

    def join(self) -> None:
        """Wait until every partition has a node.

        Raises:
            QuorumError: One has none in ``engine.join-timeout-s``, or the node that would have it
                cannot take part; says which, and what nodes answered.
            RunError: Two nodes hold the same partition, or some clients keep state and others not.
        """
        if self._is_own_grid:
            node_ids = sorted(self._grid.get_node_ids())[: self._num_clients]
            self._members = {k: Member(node_id, k) for k, node_id in enumerate(node_ids)}
            self._present = set(node_ids)
            return
        timeout_s = self._preparation.config.engine.join_timeout_s
        deadline = time.monotonic() + timeout_s
        while len(self._members) < self._num_clients:
            self._look()
            if len(self._members) == self._num_clients:
                break
            self._refuse_hopeless()
            if time.monotonic() > deadline:
                raise QuorumError(
                    f"{self._missing()} within {timeout_s:g} s (engine.join-timeout-s)"
                )
            time.sleep(POLL_S)
        # One that has yet to answer may hold a partition that is held already.
        grace = min(deadline, time.monotonic() + GRACE_S)
        while self._silent() and time.monotonic() < grace:
            time.sleep(POLL_S)
            self._look()
        if len(self._members) < self._num_clients:
            raise QuorumError(self._missing())
        self._all_joined = True
        if len({member.keeps_state for member in self._members.values()}) > 1:
            stateless = [k for k, m in sorted(self._members.items()) if not m.keeps_state]
            raise RunError(
                f"clients {stateless} keep no state of their own and the others do; start all with "
                "--state DIR, or none"
            )

    def refresh(self) -> None:
        """See who is there now; a client that comes back under another node id takes its place."""
        if not self._is_own_grid and self._num_clients:
            self._look()

    def _look(self) -> None:
        """Ask nodes that are new, and hear what those said that were asked."""
        before, self._present = self._present, set(self._grid.get_node_ids())
        now = time.monotonic()
        # One that was away may be another process, which has to be told what it joins.
        self._known -= self._present - before
        for name, (node_id, asked_at) in list(self._asked.items()):
            if now - asked_at > _ASK_AGAIN_S:
                del self._asked[name]
                self._known.discard(node_id)
        if new := sorted(self._present - self._known):
            requests = [self._question(node_id) for node_id in new]
            for node_id, name in zip(new, self._grid.push_messages(requests), strict=False):
                if name:
                    self._asked[name] = (node_id, now)
                    self._known.add(node_id)
        for name, reply in pull_each(self._grid, list(self._asked)):
            if name not in self._asked:
                continue  # answered before
            node_id, _ = self._asked.pop(name)
            try:
                self._admit(self._member(node_id, reply))
            except ValueError as error:
                if isinstance(error, RunError):
                    raise
                self._refused[node_id] = printable(str(error), _LONGEST_REASON)
                log.warning("node %d takes no part: %s", node_id, self._refused[node_id])

    def _question(self, node_id: int) -> Message:
        settings = {}
        if self._preparation.has_own_data:
            workload = self._preparation.workload
            assert isinstance(workload, OwnData), "only of a workload that offers own data"
            settings["federation"] = workload.form()
        content = to_flower(Record(settings=settings))
        return Message(content, dst_node_id=node_id, message_type="query")

    def _member(self, node_id: int, reply: Message | Unreadable) -> Member:
        """What a node told of itself.

        Raises:
            ValueError: It is not fit, or made no sense.
        """
        if isinstance(reply, Unreadable):
            raise ValueError(reply.why)
        if reply.has_error():
            raise ValueError(reply.error.reason or f"error code {reply.error.code}")
        preparation = self._preparation
        counts_told = preparation.has_own_data and not preparation.config.hides_counts
        num_classes = len(preparation.workload.dataset.class_names)
        arrays = {"class_counts": ArraySpec((num_classes,), "int64")} if counts_told else {}
        longest = "x" * _LONGEST_SETTING
        form = RecordSpec(
            arrays,
            ("partition_id", "keeps_state"),
            {"installation": longest, "key": longest, "data": longest},
        )
        record = from_flower(reply.content, form)
        if violations := form.violations(record):
            raise ValueError("; ".join(violations))
        told: dict[str, str] = {name: str(value) for name, value in record.settings.items()}
        if unlike := _unlike(told["installation"], self._here):
            raise ValueError(f"{'; '.join(unlike)}; install the same on both")
        counts = None
        if counts_told:
            counts = tuple(int(n) for n in record.arrays["class_counts"])
            least = preparation.config.partition.min_examples
            if min(counts) < 0 or not least <= sum(counts) <= MOST_EXAMPLES:
                raise ValueError(
                    f"tells {sum(counts)} {preparation.workload.noun}; a client may have {least} "
                    f"to {MOST_EXAMPLES:,}"
                )
        return Member(
            node_id=node_id,
            partition_id=int(record.metrics["partition_id"]),
            key=printable(told["key"].removeprefix("none"), _LONGEST_KEY),
            keeps_state=bool(record.metrics["keeps_state"]),
            class_counts=counts,
            data_sha256=printable(told["data"].removeprefix("none"), _LONGEST_KEY)
            if counts_told
            else "",
        )

    def _admit(self, member: Member) -> None:
        """Give a node its place.

        Raises:
            ValueError: It is not the client that the run knows, or is none of the run's.
            RunError: Another node holds its partition.
        """
        k = member.partition_id
        if not 0 <= k < self._num_clients:
            raise ValueError(
                f"holds partition {k}; partition.clients={self._num_clients} has partitions 0 to "
                f"{self._num_clients - 1}"
            )
        holder = self._members.get(k)
        if holder is not None and holder.node_id not in {member.node_id, *self._gone()}:
            if not self._all_joined:
                raise RunError(
                    f"two nodes hold partition {k}: {_named(holder)} and {_named(member)}; give "
                    "each client its own --partition"
                )
            raise ValueError(f"partition {k} is held by {_named(holder)}, which is there")
        other = next((m for m in self._members.values() if m.node_id == member.node_id), member)
        if other.partition_id != k:
            if self._all_joined:
                raise ValueError(f"holds partition {other.partition_id} in this run, and says {k}")
            del self._members[other.partition_id]  # it was started anew with another
        if holder is not None and holder.key and holder.node_id != member.node_id:
            # The SuperLink knows a key by one node id; what a node says of its key is its word.
            raise ValueError(
                f"partition {k} belongs to {_named(holder)} in this run, and this is another node"
            )
        known = holder or self._before.get(k)
        if known is not None and not member.is_again(known):
            raise ValueError(
                f"partition {k} belongs to {_named(known)} in this run, and {_named(member)} is "
                f"another: {_changes(known, member, self._preparation.workload.noun)}"
            )
        self._members[k] = member
        self._refused.pop(member.node_id, None)

    def _gone(self) -> set[int]:
        """Nodes that have joined and are not there."""
        return {member.node_id for member in self._members.values()} - self._present

    def _refuse_hopeless(self) -> None:
        """Do not wait for time to run out where all are there, have answered, and are too few."""
        able = self._present - self._refused.keys()
        if not self._asked and len(able) < self._num_clients <= len(self._present):
            raise QuorumError(self._missing())

    def _silent(self) -> int:
        """Nodes that are there and have not answered."""
        return sum(node_id in self._present for node_id, _ in self._asked.values())

    def _missing(self) -> str:
        """Who is missing, and why."""
        missing = sorted(set(range(self._num_clients)) - self._members.keys())
        silent = self._silent()
        text = (
            f"{len(self._members)} of partition.clients={self._num_clients} clients joined; no "
            f"node holds {_ranges(missing)}"
        )
        if silent:
            text += f"; {silent} {'node has' if silent == 1 else 'nodes have'} not answered"
        for node_id, why in sorted(self._refused.items()):
            text += f"; node {node_id}: {why}"
        return text


def own_partition(preparation: Preparation, members: Mapping[int, Member]) -> Partition:
    """What clients of a network hold that bring their own data.

    The training split that it deals is the concatenation of what clients hold, by partition id;
    nobody has it whole. Where counts are hidden, all are 0.
    """
    hidden = (0,) * len(preparation.workload.dataset.class_names)
    counts = [
        members[k].class_counts or hidden for k in range(preparation.config.partition.clients)
    ]
    class_counts = np.array(counts, np.int64)
    ends = class_counts.sum(axis=1).cumsum()
    starts = ends - class_counts.sum(axis=1)
    clients = tuple(np.arange(a, b, dtype=np.int64) for a, b in zip(starts, ends, strict=True))
    return replace(
        preparation.partition,
        num_examples=int(ends[-1]),
        clients=clients,
        class_counts=class_counts,
    )


def members_to_json(members: Mapping[int, Member]) -> dict[str, Any]:
    """For ``nodes.json``."""
    return {
        str(k): {
            "node_id": str(member.node_id),
            "key": member.key,
            "keeps_state": member.keeps_state,
            "class_counts": member.class_counts,
            "data_sha256": member.data_sha256,
        }
        for k, member in sorted(members.items())
    }


def members_from_json(value: Mapping[str, Any]) -> dict[int, Member]:
    """Read back `members_to_json`."""
    return {
        int(k): Member(
            node_id=int(told["node_id"]),
            partition_id=int(k),
            key=str(told["key"]),
            keeps_state=bool(told["keeps_state"]),
            class_counts=None if told["class_counts"] is None else tuple(told["class_counts"]),
            data_sha256=str(told["data_sha256"]),
        )
        for k, told in value.items()
    }


def _unlike(installation: str, here: Mapping[str, str]) -> list[str]:
    try:
        there = json.loads(installation)
        return differences({str(k): str(v)[:80] for k, v in there.items()}, here)
    except (ValueError, AttributeError, RecursionError):
        return ["does not tell what is installed there"]


def _named(member: Member) -> str:
    return f"node {member.node_id}" + (f" (key {member.key})" if member.key else "")


def _changes(known: Member, member: Member, noun: str) -> str:
    names = {
        "key": "its key",
        "keeps_state": "where it keeps state",
        "class_counts": f"how many {noun} of each class it has",
        "data_sha256": f"its {noun}",
    }
    changed = [
        text for name, text in names.items() if getattr(known, name) != getattr(member, name)
    ]
    return " and ".join(changed) + (" differ" if len(changed) > 1 else " differs")


def _ranges(numbers: Sequence[int]) -> str:
    """Partition ids as text.

    >>> _ranges([0, 2, 3, 4])
    'partitions 0, 2-4'
    """
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    told = _joined(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
    return f"partition {told}" if len(numbers) == 1 else f"partitions {told}"


def _joined(words: Iterable[str]) -> str:
    return ", ".join(words)
