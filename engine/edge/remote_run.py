"""A run on a deployment: started, followed while it goes on, and its folder brought home.

The server writes run folders into the deployment's state, which is on this machine, for the
SuperLink is asked by way of loopback alone. So a run is followed by its own records.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from core.config import RunConfig
from core.errors import RecordError, RunError
from core.records import RunFolder
from engine.edge.authority import private_folder, write_public
from engine.edge.compose import checkout
from engine.edge.control import Control, NetworkRun, NotReachableError
from engine.edge.deployment import Deployment
from server.progress import Progress

SCHEMA = 1
NETWORK_FILE = "network"

_LOOK_EVERY_S = 0.5
_ASK_EVERY_S = 10.0
"""The SuperLink is asked less often: a command of Flower's takes a second of processor time."""

_SILENCE_S = 180.0
"""A SuperLink that does not answer for so long is given up; a restart takes less."""

_SETTLE_S = 60.0
"""After a run's record says that it is over, the SuperLink says so too within this."""


class LostRunError(RunError):
    """The SuperLink is gone, or the run is not among its runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteRun:
    """A run on a deployment.

    Attributes:
        name: Of its folder.
        run_id: The SuperLink's.
        rounds: Planned.
        runs: Folder of run folders that it is brought home to.
        rounds_before: The last round on record when it was taken up again; 0 in a new run.
        before: A hash of the record that it had then; empty in a new run.
    """

    name: str
    run_id: str
    rounds: int
    runs: Path
    rounds_before: int = 0
    before: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a run ended.

    Attributes:
        exit_code: What its records say a command that ran it ends with.
        failure: Why it failed; empty where it did not.
        network: As the SuperLink saw it.
    """

    exit_code: int
    failure: str
    network: NetworkRun


def refuse_no_nodes(control: Control) -> int:
    """The number of nodes that are online.

    Raises:
        RunError: None is, or the SuperLink does not answer.
    """
    nodes = control.nodes()
    online = sum(node.status == "online" for node in nodes)
    if online == 0:
        known = f"{len(nodes)} are registered" if nodes else "none is registered"
        raise RunError(
            f"no client is online ({known}): tessera deploy up starts those of this machine, "
            "tessera deploy client one on another; tessera deploy status tells"
        )
    return online


def start(control: Control, config: RunConfig, runs: Path, *, resumes: bool = False) -> RemoteRun:
    """Start a run, named, whose folder the server makes in the deployment's state.

    Args:
        control: Of the deployment.
        config: What to run; it has a name.
        runs: Where the folder is brought home to.
        resumes: Whether it goes on with the folder that the server has.

    Raises:
        RecordError: Its folder is there already or, where it resumes, is not.
        RunError: The SuperLink does not answer, or refuses.
    """
    deployment = control.deployment
    rounds_before, before = 0, ""
    if resumes:
        folder = RunFolder.open(deployment.server_runs / config.name)
        rounds_before = max((record.round for record in folder.read_rounds()), default=0)
        before = _hash_of_record(folder.path)
    else:
        RunFolder.check_free(deployment.server_runs, config.name)
        RunFolder.check_free(runs, config.name)
    flat = config.flat() | {"name": config.name, "runs": str(deployment.server_runs)}
    if resumes:
        flat["resume"] = True
    run_id = control.start(checkout(), flat)
    run = RemoteRun(
        name=config.name,
        run_id=run_id,
        rounds=config.rounds,
        runs=runs.expanduser().resolve(),
        rounds_before=rounds_before,
        before=before,
    )
    _remember(deployment, run)
    return run


def recall(deployment: Deployment, name: str) -> RemoteRun:
    """A run that was started before, by its name.

    Raises:
        RecordError: No run of that name was started from here.
    """
    path = _memory(deployment, name)
    try:
        told = json.loads(path.read_text())
        return RemoteRun(
            name=str(told["name"]),
            run_id=str(told["run_id"]),
            rounds=int(told["rounds"]),
            runs=Path(told["runs"]),
            rounds_before=int(told["rounds_before"]),
            before=str(told["before"]),
        )
    except FileNotFoundError as error:
        known = sorted(found.stem for found in path.parent.glob("*.json"))
        raise RecordError(
            f"no run {name!r} was started on this deployment; known: {', '.join(known) or 'none'}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path} is damaged: {error}") from error


def follow(
    control: Control,
    run: RemoteRun,
    progress: Progress,
    *,
    say: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Ended:
    """Report on a run until it is over.

    Args:
        control: Of the deployment.
        run: Which.
        progress: Told as by a run on this machine, a round at a time.
        say: Told what else a reader should know.
        clock: Seconds.
        sleep: Waits so many.

    Raises:
        RecordError: A record cannot be read.
        LostRunError: The SuperLink is gone for `_SILENCE_S`, or does not know the run.
    """
    path = control.deployment.server_runs / run.name
    watched = _Watched(path, run, progress)
    asked = heard = clock()
    over_since: float | None = None
    network: NetworkRun | None = None
    silent = False
    while True:
        watched.look()
        now = clock()
        if watched.over and over_since is None:
            over_since, asked = now, now - _ASK_EVERY_S
        if now - asked >= (1.0 if over_since is not None else _ASK_EVERY_S):
            try:
                network = control.run(run.run_id)
                asked = heard = clock()
                silent = False
            except NotReachableError as error:
                asked = clock()
                if not silent:
                    say(f"{error}; waiting for it")
                silent = True
                if asked - heard > _SILENCE_S:
                    raise LostRunError(
                        f"the SuperLink has not answered for {asked - heard:.0f} s; when it is "
                        f"back, go on with: tessera deploy run --attach {run.name}"
                    ) from error
            if network is not None and network.finished:
                break
            if over_since is not None and clock() - over_since > _SETTLE_S and network is not None:
                break  # the record is whole; the network's count may lack the last messages
        sleep(_LOOK_EVERY_S)
    _await_writer(RunFolder(path))
    watched.look()
    return _ended(control, run, watched, network)


def _await_writer(folder: RunFolder) -> None:
    """Wait until nobody writes to the folder; the SuperLink may know of an end before it is one."""
    if folder.lock.exists():
        with suppress(Timeout, OSError), FileLock(folder.lock, timeout=_SETTLE_S):
            pass


def _ended(control: Control, run: RemoteRun, watched: _Watched, network: NetworkRun) -> Ended:
    record = watched.record()
    status = str(record.get("status", ""))
    if watched.began:
        # How to go on is another command's here than a run on this machine would be told.
        watched.progress.run_ended("complete" if status == "complete" else "failed")
    completed = network.status == "finished:completed"
    if status == "complete" or (completed and not record):
        return Ended(exit_code=0, failure="", network=network)
    failure = str(record.get("failure") or "") or _why(control, run, network)
    told = record.get("exit_code")
    code = told if isinstance(told, int) and told else RunError.exit_code
    return Ended(exit_code=code, failure=failure, network=network)


def _why(control: Control, run: RemoteRun, network: NetworkRun) -> str:
    """Why a run ended that made no record of it."""
    lines: list[str] = []
    with suppress(RunError):
        lines = [line.rstrip() for line in control.log(run.run_id).splitlines() if line.strip()]
    told = _last_error(lines)
    details = network.details.strip()
    return told or f"{network.status}{f' ({details})' if details else ''}"


def _last_error(lines: Sequence[str]) -> str:
    """The last line that names an error, and what is set in below it, such as its problems."""
    errors = [number for number, line in enumerate(lines) if "Error" in line]
    if not errors:
        return ""
    below = takewhile(lambda line: line[:1].isspace(), lines[errors[-1] + 1 :])
    return "\n".join([lines[errors[-1]].strip(), *below])


class _Watched:
    """A run folder that another process writes, told to a progress as it grows."""

    def __init__(self, path: Path, run: RemoteRun, progress: Progress) -> None:
        self.path, self.progress = path, progress
        self.began = False
        self._run = run
        self._size = -1
        self._told = -1

    @property
    def over(self) -> bool:
        """Whether its record says so."""
        return self.record().get("status") in ("complete", "failed", "interrupted")

    def record(self) -> Mapping[str, Any]:
        """``run.json``; empty where there is none yet, or only that of before it was taken up."""
        if _hash_of_record(self.path) == self._run.before:
            return {}
        return RunFolder(self.path).read_json("run")

    def look(self) -> None:
        """Tell of what is new."""
        folder = RunFolder(self.path)
        if not self.began:
            if not self.record():
                return
            self.began = True
            if before := self._run.rounds_before:
                # What was recorded after the last checkpoint has been cut off.
                kept = max((record.round for record in folder.read_rounds()), default=0)
                self._told = min(before, kept)
            self.progress.run_started(self.path, self._run.rounds, max(0, self._told))
        size = folder.rounds.stat().st_size if folder.rounds.is_file() else 0
        if size == self._size:
            return
        self._size = size
        for record in folder.read_rounds():
            if record.round > self._told:
                self._told = record.round
                for client in record.clients:
                    self.progress.client_replied(client)
                self.progress.round_ended(record)
                if record.round < self._run.rounds:
                    self.progress.round_started(record.round + 1, 0, 0)


def _hash_of_record(path: Path) -> str:
    """Of ``run.json``; empty where there is none."""
    with suppress(FileNotFoundError):
        return hashlib.sha256((path / "run.json").read_bytes()).hexdigest()
    return ""


def fetch(deployment: Deployment, run: RemoteRun, network: NetworkRun) -> Path:
    """Copy a run's folder to where it is wanted, whole, with what the network counted.

    A folder that is there already is an earlier copy of the same run, and is replaced.

    Raises:
        RecordError: There is nothing to copy, or it cannot be copied.
    """
    source = RunFolder.open(deployment.server_runs / run.name)
    target = run.runs / run.name
    earlier: list[dict[str, Any]] = []
    if target.exists():
        _refuse_other_run(target, source)
        with suppress(RecordError):
            told = RunFolder(target).read_json(NETWORK_FILE).get("runs", [])
            earlier = [one for one in told if one.get("run_id") != network.run_id]
    part, old = (target.with_name(f".{run.name}.{kind}") for kind in ("part", "old"))
    try:
        run.runs.mkdir(parents=True, exist_ok=True)
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(source.path, part, symlinks=True, ignore=_unfinished)
        part.chmod(0o755)
        RunFolder(part).write_json(NETWORK_FILE, _network_json(earlier, network))
        if target.exists():
            target.rename(old)
        part.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise RecordError(
            f"run folder {source.path} cannot be copied to {target}: {error}; it is whole where it "
            f"is, and tessera deploy run --attach {run.name} tries again"
        ) from error
    return target


def _network_json(earlier: list[dict[str, Any]], network: NetworkRun) -> dict[str, Any]:
    """What the network counted, a part for each time that the run was started or resumed."""
    parts = [*earlier, asdict(network)]
    sums = {
        key: sum(part[key] for part in parts)
        for key in ("bytes_up", "bytes_down", "server_s", "client_s")
    }
    return {"schema": SCHEMA, **sums, "runs": parts}


def _refuse_other_run(target: Path, source: RunFolder) -> None:
    same = False
    with suppress(RecordError):
        theirs = RunFolder(target).read_json("run").get("identity")
        same = theirs is not None and theirs == source.read_json("run").get("identity")
    if not same:
        raise RecordError(f"{target} is there and is another run; move it away")


def _unfinished(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name.startswith(".")}


def _memory(deployment: Deployment, name: str) -> Path:
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise RecordError(f"{name!r} is no name of a run")
    return deployment.folder / "runs" / f"{name}.json"


def _remember(deployment: Deployment, run: RemoteRun) -> None:
    path = _memory(deployment, run.name)
    private_folder(path.parent)
    values = asdict(run) | {"runs": str(run.runs), "started": datetime.now(UTC).isoformat()}
    write_public(path, (json.dumps(values, indent=2) + "\n").encode())
