"""Who takes part: the command that starts each, where it tells its rounds, and its weights."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.environment import pfl_python
from benchmarks.watch import Watched, watch
from benchmarks.work import Work
from core.parameters import NamedTensors
from core.records import RunFolder
from pairing.configuration import parse_config
from server.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parent.parent
NUM_WORKERS = 2

_ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What all contenders are given: one thread a worker, the processor alone, no calls home."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do the work.

    Attributes:
        name: What it is called in tables.
        command: The command line that does a work and writes to a folder.
        rounds_file: Below that folder, where its rounds are told.
        weights: Reads the final weights from that folder.
    """

    name: str
    command: Callable[[Work, Path], Sequence[str]]
    rounds_file: str
    weights: Callable[[Work, Path], NamedTensors]

    def run(self, work: Work, out: Path) -> tuple[Watched, NamedTensors]:
        """Do the work once, in a folder that is emptied first.

        Raises:
            RunError: It failed; names its log.
        """
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        watched = watch(
            self.command(work, out),
            rounds=work.size.rounds,
            rounds_file=out / self.rounds_file,
            log=out / "log.txt",
            environment={**os.environ, **_ENVIRONMENT},
            folder=ROOT,
        )
        return watched, self.weights(work, out)


def tessera(name: str, keys: Mapping[str, object], *, echo: bool = False) -> Contender:
    """Tessera from its command line, under the work's keys and these.

    Args:
        name: What it is called.
        keys: Further keys.
        echo: Whether clients return at once, which no command of Tessera offers.
    """
    module = ("benchmarks.echo_run",) if echo else ("cli.main", "run", "--no-report")

    def command(work: Work, out: Path) -> list[str]:
        settings = {**work.settings(), **keys, "runs": out, "name": "run"}
        return [sys.executable, "-m", *module, *(f"{k}={v}" for k, v in settings.items())]

    def weights(work: Work, out: Path) -> NamedTensors:
        identity = parse_config(
            {k: str(v) for k, v in {**work.settings(), **keys}.items()}
        ).identity()
        path = RunFolder(out / "run").checkpoint(work.size.rounds)
        return Checkpoint.read(path, identity).state.weights

    return Contender(name, command, "run/rounds.jsonl", weights)


def peer(name: str, start: Callable[[], Sequence[str]], *, echo: bool = False) -> Contender:
    """A module of `benchmarks.peers`; `start` gives the command up to its arguments."""

    def command(work: Work, out: Path) -> list[str]:
        told = ["--work", str(work.folder), "--out", str(out), *["--echo"] * echo]
        return [*start(), *told]

    def weights(work: Work, out: Path) -> dict[str, torch.Tensor]:
        with np.load(out / "weights.npz") as held:
            return {key: torch.from_numpy(held[key]) for key in held.files}

    return Contender(name, command, "rounds.jsonl", weights)


PROCESSES: Mapping[str, object] = {"engine.kind": "processes", "engine.workers": NUM_WORKERS}
RAY: Mapping[str, object] = {"engine.kind": "ray", "engine.workers": NUM_WORKERS}
IN_PROCESS: Mapping[str, object] = {"engine.kind": "in-process"}


def flower(*, echo: bool = False) -> Contender:
    """Stock Flower's simulation on Ray."""
    return peer(
        "flower", lambda: [sys.executable, "-m", "benchmarks.peers.flower_stock"], echo=echo
    )


def pfl(environment: Path, *, echo: bool = False) -> Contender:
    """The simulation of pfl, whose environment is made here where it is missing."""
    python = str(pfl_python(environment))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(NUM_WORKERS)]
    return peer("pfl", lambda: [python, *launcher, "-m", "benchmarks.peers.pfl_fedavg"], echo=echo)


def hand_loop() -> Contender:
    """The loop written by hand."""
    return peer("hand-loop", lambda: [sys.executable, "-m", "benchmarks.peers.hand_loop"])
