"""Speed of the simulation engine against its peers, on the same work, taking turns.

The work: FedAvg, 100 clients of 100 CIFAR-shaped images, 10 clients a round, a network of 2,156,490
parameters, one local epoch in batches of 32, two workers of one thread each, no evaluation (but for
ten images before the first and after the last round of Tessera's). All contenders start from the
same weights and train the same clients on the same batches; what their models come to on all
training images must agree within 0.5%, or the exit code is 4.

  (nothing)    Tessera in forked processes, on Ray and in one process, stock Flower, pfl and a
               loop written by hand
  --overhead   clients that return at once: what a round costs besides training
  --stateful   SCAFFOLD's clients, which keep state, against FedAvg's
  --profile    where the time of one round of Tessera goes, piece by piece

Results lie under .runs/speed. What was measured is kept, so that the same command goes on where it
was cut off; a change of the source or of the work starts anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.comparison import Figure, Row, compare, to_markdown
from benchmarks.contenders import (
    IN_PROCESS,
    PROCESSES,
    RAY,
    ROOT,
    Contender,
    flower,
    hand_loop,
    pfl,
    tessera,
)
from benchmarks.machine import describe
from benchmarks.round_profile import profile
from benchmarks.watch import Watched
from benchmarks.work import Work, WorkSize, make_work
from core.errors import ConfigError, RunError, TesseraError
from core.records import write_whole

TOLERANCE = 5e-3
"""Largest relative difference of a contender's loss from the reference's: more than rounding makes
in six rounds, and far less than batches in another order do."""

UNTOUCHED = 1e-3
"""Likewise of weights that nobody trained: rounding of averages alone."""

LEAST_PROGRESS = 0.05
"""Share of the initial loss that must be gone, or equal losses would prove nothing."""

INITIAL = "initial"
"""Stands among contenders for the initial weights."""

ECHO_STRATEGIES = Path(__file__).with_name("echo_strategies.py")
PACKAGES = (
    "benchmarks", "cli", "client", "core", "data", "engine", "experiments", "models", "pairing",
    "privacy",
    "server", "strategies", "workloads",
)  # fmt: skip
"""Packages whose source a result depends on."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Contenders that take turns at one work.

    Attributes:
        name: Of its results and measurements.
        rounds: Rounds of a run, unless told otherwise.
        makers: Contenders by name, in the order of their turns; the first is the reference.
        check: Refuses losses that show that contenders did not do the same, given the losses and
            the reference's name.
    """

    name: str
    rounds: int
    makers: Mapping[str, Callable[[], Contender]]
    check: Callable[[Mapping[str, float], str], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    what = parser.add_mutually_exclusive_group()
    for name in ("overhead", "stateful", "profile"):
        what.add_argument(f"--{name}", dest="mode", action="store_const", const=name)
    parser.set_defaults(mode="training")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of a run, at least 2")
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="R", help="turns of each contender (default 3)"
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="NAME",
        help="leave out a contender, such as pfl",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / ".runs" / "speed",
        help="folder of work, environments and results (default .runs/speed)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print tables and write ``results.json``; returns the exit code."""
    folder: Path = arguments.folder.resolve()
    if refused := _refused(arguments, folder):
        print(f"python -m benchmarks speed: {refused}", file=sys.stderr)
        return ConfigError.exit_code
    try:
        if arguments.mode == "profile":
            print(profile(folder / "profile"), end="")
            return 0
        for comparison in comparisons(arguments.mode, folder):
            rounds = arguments.rounds or comparison.rounds
            _run(comparison, folder, rounds, arguments.repeats, arguments.without)
    except TesseraError as error:
        print(f"python -m benchmarks speed: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _run(
    comparison: Comparison, folder: Path, rounds: int, repeats: int, without: Sequence[str]
) -> None:
    work = make_work(folder / "work" / comparison.name, WorkSize(rounds=rounds))
    contenders = [make() for name, make in comparison.makers.items() if name not in without]
    reference = contenders[0].name
    runs, by_turn = measure(contenders, work, folder, comparison.name, repeats)
    rows = compare(runs, reference)
    print(f"\n{comparison.name}\n\n{to_markdown(rows, reference)}")
    by_turn[INITIAL] = [work.training_loss(work.initial_weights)]
    found = {name: Figure.of(values) for name, values in by_turn.items()}
    print("loss on all training images:", ", ".join(f"{n} {_told(x)}" for n, x in found.items()))
    losses = {name: figure.most for name, figure in found.items()}
    comparison.check(losses, reference)
    _write(folder, comparison.name, work, rows, losses)


def _told(loss: Figure) -> str:
    spread = f" ({loss.least:.6f}-{loss.most:.6f})" if loss.least < loss.most else ""
    return f"{loss.median:.6f}{spread}"


def comparisons(mode: str, folder: Path) -> list[Comparison]:
    """What one way to call the command compares."""
    environment = folder / "pfl-venv"
    if mode == "training":
        makers: dict[str, Callable[[], Contender]] = {
            "tessera-processes": lambda: tessera("tessera-processes", PROCESSES),
            "tessera-ray": lambda: tessera("tessera-ray", RAY),
            "flower": flower,
            "pfl": lambda: pfl(environment),
            "tessera-in-process": lambda: tessera("tessera-in-process", IN_PROCESS),
            "hand-loop": hand_loop,
        }
        return [Comparison("training", 6, makers, check_losses)]
    if mode == "overhead":
        makers = {
            "tessera-processes": lambda: tessera("tessera-processes", PROCESSES, echo=True),
            "tessera-ray": lambda: tessera("tessera-ray", RAY, echo=True),
            "flower": lambda: flower(echo=True),
            "pfl": lambda: pfl(environment, echo=True),
            "tessera-in-process": lambda: tessera("tessera-in-process", IN_PROCESS, echo=True),
        }
        return [Comparison("overhead", 20, makers, check_untouched)]
    stateful = [
        ("stateful", 6, "fedavg", "scaffold", lambda losses, reference: None),
        (
            "stateful-overhead",
            20,
            f"{ECHO_STRATEGIES}:EchoFedAvg",
            f"{ECHO_STRATEGIES}:EchoScaffold",
            check_untouched,
        ),
    ]
    return [
        Comparison(name, rounds, _with_and_without_state(without, with_state), check)
        for name, rounds, without, with_state, check in stateful
    ]


def _with_and_without_state(without: str, with_state: str) -> dict[str, Callable[[], Contender]]:
    """The two strategies on each engine."""
    keys = {
        "stateless-processes": {**PROCESSES, "strategy": without},
        "stateful-processes": {**PROCESSES, "strategy": with_state},
        "stateless-ray": {**RAY, "strategy": without},
        "stateful-ray": {**RAY, "strategy": with_state},
        "stateless-in-process": {**IN_PROCESS, "strategy": without},
        "stateful-in-process": {**IN_PROCESS, "strategy": with_state},
    }
    return {name: partial(tessera, name, own) for name, own in keys.items()}


def _refused(arguments: argparse.Namespace, folder: Path) -> str | None:
    """Why these arguments are refused; None if they are not."""
    rounds, repeats, without = arguments.rounds, arguments.repeats, arguments.without
    if rounds is not None and rounds < 2:
        return f"--rounds={rounds}: must be at least 2, for rounds after the first are compared"
    if repeats < 1:
        return f"--repeats={repeats}: must be at least 1"
    if arguments.mode == "profile":
        given = [f"--{k}" for k in ("rounds", "without") if getattr(arguments, k)]
        return f"{given[0]}: a profile has no contenders; leave it out" if given else None
    reference, *others = comparisons(arguments.mode, folder)[0].makers
    for name in without:
        if name not in others:
            return f"--without={name}: must be one of {', '.join(others)}; {reference} stays"
    return None


def measure(
    contenders: Sequence[Contender], work: Work, folder: Path, mode: str, repeats: int
) -> tuple[dict[str, list[Watched]], dict[str, list[float]]]:
    """Let contenders take turns; what ``measurements.jsonl`` holds already is not run again.

    Returns:
        By contender its runs in the order of turns, and the losses of its last models likewise.

    Raises:
        RunError: A contender failed.
    """
    identity = {
        "mode": mode,
        "work": work.sha256,
        "source": source_sha256(),
        "cpu": describe()["cpu"],
    }
    path = folder / "measurements.jsonl"
    done = _measured(path, identity)
    runs: dict[str, list[Watched]] = {one.name: [] for one in contenders}
    losses: dict[str, list[float]] = {one.name: [] for one in contenders}
    for turn in range(1, repeats + 1):
        for contender in contenders:
            key = (turn, contender.name)
            if key not in done:
                print(f"turn {turn}/{repeats}: {contender.name}", end=" ", flush=True)
                watched, weights = contender.run(work, folder / "contenders" / contender.name)
                loss = work.training_loss(weights)
                line = {
                    **identity,
                    "turn": turn,
                    "contender": contender.name,
                    "loss": loss,
                    **dataclasses.asdict(watched),
                }
                _append(path, line)
                done[key] = watched, loss
                print(f"{sum(watched.round_s) / len(watched.round_s):.2f} s/round", flush=True)
            watched, loss = done[key]
            runs[contender.name].append(watched)
            losses[contender.name].append(loss)
    return runs, losses


def _measured(
    path: Path, identity: Mapping[str, object]
) -> dict[tuple[int, str], tuple[Watched, float]]:
    """Runs on file that are of this identity."""
    found = {}
    for line in map(json.loads, _lines(path)):
        if all(line[name] == value for name, value in identity.items()):
            fields = {f.name: line[f.name] for f in dataclasses.fields(Watched)}
            found[line["turn"], line["contender"]] = Watched(**fields), line["loss"]
    return found


def _lines(path: Path) -> list[str]:
    """Whole lines; one that a kill cut off is left out."""
    return path.read_text().split("\n")[:-1] if path.is_file() else []


def _append(path: Path, line: Mapping[str, object]) -> None:
    write_whole(path, "".join(f"{one}\n" for one in [*_lines(path), json.dumps(line)]).encode())


def check_losses(losses: Mapping[str, float], reference: str) -> None:
    """Refuse a comparison of contenders that did not do the same.

    Args:
        losses: By contender; under `INITIAL` that of the initial weights.
        reference: The contender that others must agree with.

    Raises:
        RunError: A loss departs by more than `TOLERANCE`, or nobody learned anything.
    """
    wanted, initial = losses[reference], losses[INITIAL]
    apart = [
        f"{name} {loss:.6g}"
        for name, loss in losses.items()
        if name != INITIAL and not abs(loss - wanted) <= TOLERANCE * wanted
    ]
    if apart:
        raise RunError(
            f"contenders did not do the same work: the loss of {reference} is {wanted:.6g}, and "
            f"others' depart by more than {TOLERANCE:.1%}: {', '.join(apart)}; the times cannot be "
            "compared"
        )
    if not wanted <= (1 - LEAST_PROGRESS) * initial:
        raise RunError(
            f"the loss went from {initial:.6g} to {wanted:.6g}, which is too little to tell "
            "whether contenders did the same work; raise --rounds"
        )


def check_untouched(losses: Mapping[str, float], reference: str) -> None:
    """Refuse a comparison in which clients that should return at once did more.

    Raises:
        RunError: A loss is not that of the initial weights, within `UNTOUCHED`.
    """
    initial = losses[INITIAL]
    apart = [
        f"{name} {loss:.6g}"
        for name, loss in losses.items()
        if not abs(loss - initial) <= UNTOUCHED * initial
    ]
    if apart:
        raise RunError(
            f"clients should have returned what they received, of loss {initial:.6g}, and the last "
            f"models' are {', '.join(apart)}; the times cannot be compared"
        )


def source_sha256() -> str:
    """Digest of the source that results depend on."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)}".encode() + path.read_bytes())
    return digest.hexdigest()


def _write(
    folder: Path, mode: str, work: Work, rows: Sequence[Row], losses: Mapping[str, float]
) -> None:
    """Put the table of this mode into ``results.json``, beside those of others."""
    path = folder / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    results[mode] = {
        "machine": describe(),
        "work": dataclasses.asdict(work.size),
        "contenders": [dataclasses.asdict(row) for row in rows],
        "losses": dict(losses),
        "tolerance": TOLERANCE,
    }
    write_whole(path, (json.dumps(results, indent=2) + "\n").encode())
