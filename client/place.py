"""What a client's operator says of it: where its data and its state lie, and what it joins in.

A simulated client has a partition and nothing else; it keeps its state in the run's folder. A
client on a machine of its own is given a folder of state, and from then on no path that a server
names is read or written there: state and ledger belong to the key and the partition that the
folder is bound to, whatever node or run asks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.config import DataConfig, RunConfig, Scalar
from core.errors import ConfigError, DataError, PrivacyError, Problem, RecordError
from core.plugins import is_plugin
from core.records import RunFolder, write_whole
from pairing.configuration import rules_read
from privacy.ledger import Budget, ledger_folder

_KEYS: Mapping[str, type] = {
    "partition-id": int,
    "data": str,
    "state": str,
    "key": str,
    "max-epsilon": float,
    "max-delta": float,
}
_SCHEMA_VERSION = 1
MAX_DELTA = 1e-5
START = "start-from"


@dataclass(frozen=True, slots=True)
class Place:
    """One client, as its node is configured.

    Attributes:
        partition_id: Which client of the federation it is.
        data: Its own data as its workload reads them, or where torchvision's data sets lie; empty
            where the run says so.
        state: Folder for all it keeps; empty for a simulated client.
        key: Fingerprint of its node's key; empty where there is none.
        max_epsilon: The most that all runs together may cost it; 0 sets no limit of its own.
        max_delta: At this delta, or at the run's where that is less.
    """

    partition_id: int
    data: str = ""
    state: str = ""
    key: str = ""
    max_epsilon: float = 0.0
    max_delta: float = MAX_DELTA

    @classmethod
    def of(cls, node_config: Mapping[str, Any]) -> Place:
        """Read a node's configuration; keys that are not ours are passed over.

        Raises:
            ConfigError: A value is of another type or out of bounds, or none names a partition.
        """
        problems, values = [], {}
        for name, kind in _KEYS.items():
            if name not in node_config:
                continue
            value = node_config[name]
            if kind is float and type(value) is int:
                value = float(value)
            if type(value) is not kind:
                rule = f"must be of type {kind.__name__} in the node's configuration"
                problems.append(Problem(name, str(value), rule))
            values[name.replace("-", "_")] = value
        if "partition_id" not in values:
            rule = "is missing in the node's configuration; give each client its own, from 0"
            problems.append(Problem("partition-id", "", rule))
        if problems:
            raise ConfigError(problems)
        place = cls(**values)
        if place.partition_id < 0:
            rule = "must be a whole number from 0"
            problems.append(Problem("partition-id", str(place.partition_id), rule))
        if place.max_epsilon < 0 or not 0 < place.max_delta < 1:
            rule = "must be at least 0, and max-delta above 0 and below 1"
            problems.append(Problem("max-epsilon", f"{place.max_epsilon:g}", rule))
        if problems:
            raise ConfigError(problems)
        return place

    def in_common(self) -> Place:
        """What all simulated clients share, which differ in their partition alone.

        A client with data or state of its own shares nothing: its place is itself.
        """
        return self if self.data or self.state else replace(self, partition_id=0)

    def refuse_foreign_files(self, run_config: Mapping[str, Scalar]) -> None:
        """Refuse a run that names files of this machine, before any of it is looked at.

        Where clients bring their own data, what names the server's is passed over: `settled` leaves
        it out. So are the weights that a run starts from, which the server sends.

        Raises:
            ConfigError: A key names one.
        """
        if not self.state:
            return
        own = run_config.get("partition.scheme") == "own"
        rules, problems = rules_read(run_config), []
        for name, value in run_config.items():
            text = str(value)
            plugin = isinstance(value, str) and is_plugin(value)
            file = name in rules and rules[name].names_file(text)
            if (file and own) or name == START:
                continue
            if plugin or file:
                rule = "names a file of this client's machine, which a server may not; leave it out"
                problems.append(Problem(name, text, rule))
        if problems:
            raise ConfigError(problems)

    def settled(self, config: RunConfig) -> RunConfig:
        """The run's configuration as it is meant here, without the server's places of data.

        Where clients bring their own, even the server's files are not looked at, by whose content a
        run would otherwise be known. Weights to start from come from the server.
        """
        own = config.partition.scheme == "own"
        if own or self.state:
            config = replace(config, start_from="")
        if self.state:
            config = config.with_caches_in(Path(self.state) / "cache")
        if own:
            return replace(config.without_files(), data=DataConfig())
        if self.state:
            root = self.data or str(Path(self.state) / "data")
            return replace(config, data=replace(config.data, root=root, download=False))
        return config

    def refuse_too_costly(self, config: RunConfig) -> None:
        """Refuse a run that this client has not agreed to.

        Raises:
            PrivacyError: It has a limit and the run does not noise each client's own examples.
        """
        if self.max_epsilon and not config.privacy.is_example_level:
            raise PrivacyError(
                f"this client takes part only in runs whose clients noise their own examples, up "
                f"to epsilon {self.max_epsilon:g} (max-epsilon); privacy.mechanism="
                f"{config.privacy.mechanism} does not"
            )

    def run_folder(self, config: RunConfig, run_id: int) -> RunFolder:
        """Where the client's part of a run is kept."""
        runs = Path(self.state) / "runs" if self.state else Path(config.runs)
        return RunFolder(runs.expanduser().resolve() / config.folder_name(run_id))

    def ledgers(self, config: RunConfig, folder: RunFolder) -> Path:
        """Where its ledger lies: one for all runs, where it has state of its own."""
        if self.state:
            return Path(self.state).expanduser().resolve() / "ledgers"
        return ledger_folder(config, folder)

    def ceilings(self, run: Budget) -> tuple[Budget, ...]:
        """What a charge must stay within: the run's budget, and the client's own limit."""
        if not self.max_epsilon:
            return (run,)
        delta = min(run.delta, self.max_delta)
        return (
            run,
            Budget(self.max_epsilon, delta, run.accountant, "the client's own max-epsilon"),
        )

    @property
    def owner(self) -> str:
        """Whose ledger it is, where the folder of state says so: the key's and the partition's."""
        return hashlib.sha256(f"{self.key}/{self.partition_id}".encode()).hexdigest()

    def bind(self) -> None:
        """Bind the folder of state to key and partition, or refuse one that is bound to others.

        Raises:
            RecordError: It is, or it cannot be written or read.
        """
        if not self.state:
            return
        path = Path(self.state).expanduser().resolve() / "identity.json"
        mine = {"schema": _SCHEMA_VERSION, "partition_id": self.partition_id, "key": self.key}
        try:
            if not path.exists():
                write_whole(path, (json.dumps(mine, indent=2) + "\n").encode())
            theirs = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise RecordError(f"{path} cannot be used: {error}") from error
        if theirs != mine:
            raise RecordError(
                f"{path.parent} is the state of partition {theirs.get('partition_id')} and key "
                f"{theirs.get('key') or 'none'}, and this client is partition {self.partition_id} "
                f"with key {self.key or 'none'}; what was spent and kept there is another's: give "
                "this client a folder of its own, or the old key"
            )

    def own_data(self, noun: str) -> str:
        """Where its own data lie, which are called `noun`, in its operator's words.

        Raises:
            DataError: The node names no place.
        """
        if not self.data:
            raise DataError(
                f"partition.scheme=own, and this client was started without {noun} of its own; "
                "start it with --data DIR"
            )
        return self.data
