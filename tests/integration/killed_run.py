"""Runs the command line in processes that are killed at a chosen point. A driver, not a test.

Reads steps from standard input, one JSON object a line: ``{"words": [...], "kill": [POINT, k],
"kill_after_s": [SIGN, seconds]}``. Each runs ``tessera`` with its words in a process of its own,
and kills that by SIGKILL when it reaches the point for the k-th time, or so many seconds after the
file SIGN is there; either may be left out. Its exit code, or minus the signal that ended it, is
printed.

Processes are forked from this one, which has imported everything, for that takes seconds, and has
done nothing.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import core.records
import core.tensor_file
import privacy.ledger
import server.federation
import server.recorder
from cli.main import main
from client.sent_replies import SentReplies
from core.records import RoundRecord, RunFolder
from privacy.ledger import Ledger

IMPORTED_LATE = (
    "client.app",
    "experiments.run",
    "flwr_datasets.partitioner",
    "report.loading",
    "sklearn.datasets",
    "torch.utils.tensorboard",
)


def _kill(*args: Any, **kwargs: Any) -> None:
    """Whatever it is called in place of."""
    os.kill(os.getpid(), signal.SIGKILL)


def _at(k: int, action: Callable[..., Any], else_: Callable[..., Any]) -> Callable[..., Any]:
    """Call `else_`, but `action` instead at the k-th time."""
    times = 0

    def count(*args: Any, **kwargs: Any) -> Any:
        nonlocal times
        times += 1
        return (action if times == k else else_)(*args, **kwargs)

    return count


def _half_write(path: Path, content: bytes) -> None:
    """Half of the content is in the temporary file when the process ends."""
    os.fsync = _kill  # the last thing before the file is renamed into place
    core.records.write_whole(path, content[: len(content) // 2])


def _in_images(k: int) -> None:
    recorder: Any = server.recorder
    recorder.write_whole = _at(k, _half_write, core.records.write_whole)


def _in_tensors(folder: str) -> Callable[[int], None]:
    """In the k-th file of tensors that is written into `folder`."""

    def install(k: int) -> None:
        whole_file = core.records.whole_file

        @contextmanager
        def half_a_file(path: Path) -> Iterator[Path]:
            with whole_file(path) as temporary:
                yield temporary
                os.truncate(temporary, temporary.stat().st_size // 2)
                temporary.rename(temporary.with_name(".tmp1a2B3c"))  # as safetensors has it
                _kill()

        here = _at(k, half_a_file, whole_file)

        def in_folder(path: Path) -> AbstractContextManager[Path]:
            within = {above.name for above in path.parents}
            return (here if folder in within else whole_file)(path)

        core.tensor_file.whole_file = in_folder  # type: ignore[assignment, attr-defined]

    return install


def _in_record(k: int) -> None:
    append = RunFolder.append_round

    def half(folder: RunFolder, record: RoundRecord) -> None:
        append(folder, record)
        size = folder.rounds.stat().st_size
        before = folder.rounds.read_bytes()[:-1].rfind(b"\n") + 1
        os.truncate(folder.rounds, before + (size - before) // 2)
        _kill()

    RunFolder.append_round = _at(k, half, append)  # type: ignore[method-assign]


def _before_record(k: int) -> None:
    append = RunFolder.append_round
    RunFolder.append_round = _at(k, _kill, append)  # type: ignore[method-assign]


def _after_record(k: int) -> None:
    append = RunFolder.append_round

    def whole(folder: RunFolder, record: RoundRecord) -> None:
        append(folder, record)
        _kill()

    RunFolder.append_round = _at(k, whole, append)  # type: ignore[method-assign]


def _after_reply(k: int) -> None:
    federation: Any = server.federation
    read = federation.from_flower

    def whole(*args: Any) -> None:
        read(*args)
        _kill()

    federation.from_flower = _at(k, whole, read)


def _before_commit(k: int) -> None:
    put = server.recorder.Recorder.round
    server.recorder.Recorder.round = _at(k, _kill, put)  # type: ignore[method-assign]


def _in_ledger(k: int) -> None:
    ledger: Any = privacy.ledger
    ledger.write_whole = _at(k, _half_write, core.records.write_whole)


def _after_charge(k: int) -> None:
    charge = Ledger.charge

    def whole(ledger: Ledger, *args: Any) -> None:
        charge(ledger, *args)
        _kill()

    Ledger.charge = _at(k, whole, charge)  # type: ignore[method-assign]


def _after_keeping(k: int) -> None:
    write = SentReplies.write

    def whole(replies: SentReplies, *args: Any) -> None:
        write(replies, *args)
        _kill()

    SentReplies.write = _at(k, whole, write)  # type: ignore[method-assign]


def _in_status(k: int) -> None:
    write = RunFolder.write_json

    def half(folder: RunFolder, name: str, value: Mapping[str, Any]) -> None:
        _half_write(folder.path / f"{name}.json", json.dumps(value, indent=2).encode())

    RunFolder.write_json = _at(k, half, write)  # type: ignore[method-assign]


POINTS: Mapping[str, Callable[[int], None]] = {
    "in the record": _in_record,
    "in the checkpoint": _in_tensors("checkpoints"),
    "in the images": _in_images,
    "in the client state": _in_tensors("clients"),
    "after a reply": _after_reply,
    "before the commit": _before_commit,
    "between checkpoint and record": _before_record,
    "after the record": _after_record,
    "in a description": _in_status,
    "in the ledger": _in_ledger,
    "after the charge": _after_charge,
    "after keeping the reply": _after_keeping,
}
"""Each ends the process at the k-th time: a half-written record line is flushed, a half-written
file is not yet renamed, an action before or after which it ends is whole."""


def run_step(step: Mapping[str, Any]) -> int:
    """Run one step in a process of its own; its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        _run_here(step)
    if "kill_after_s" in step:
        sign, seconds = step["kill_after_s"]
        _kill_after(pid, Path(sign), seconds)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _kill_after(pid: int, sign: Path, seconds: float) -> None:
    unwaited = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while not sign.exists() and os.waitid(os.P_PID, pid, unwaited) is None:
        time.sleep(0.005)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)  # harmless where it has ended: it is not yet waited for


def _run_here(step: Mapping[str, Any]) -> None:
    code = 70
    try:
        if "kill" in step:
            point, k = step["kill"]
            POINTS[point](k)
        sys.argv = ["tessera", *step["words"]]
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    for name in IMPORTED_LATE:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what runs print goes to standard error
    for line in sys.stdin:
        print(run_step(json.loads(line)), file=answers, flush=True)
