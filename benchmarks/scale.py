"""Time per round and memory against clients registered and sampled.

Every case is one run of the command line in a process of its own: FedAvg on small generated
images, ten to a client, with a ConvNet so small that the engine's own cost shows. At the end of
each round the resident memory of the server and of every worker is read from /proc. What was
measured is appended to OUT/results.jsonl and is not measured again; OUT/scale.json holds all of
it with the hardware, OUT/scale.svg the plot.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.machine import describe
from core.records import RunFolder, write_whole
from report.static_figures import COLOURS, MARKERS

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "benchmarks" / "generated_images.py"
EXAMPLES_PER_CLIENT = 10
MOST_REGISTERED = 10_000
"""As many clients as the generated images are enough for."""

DEFAULT_CASES = ("100x100", "1000x100", "10000x100", "10000x10", "10000x1000")
LONG_CASE = (10_000, 100)
"""Clients registered and sampled of the case that runs for ``--rounds``."""

STEADY_FROM = 5
"""The round that memory is compared with at the end: by then whatever is kept has been loaded."""

CLIENT_PROCESS = "engine.client_process"
"""In the command of the process that workers are forked from, and in theirs."""

ATTEMPTS = 3
"""Runs of a case at most, where whoever looks at its workers comes too late."""

ENGINES = ("processes", "ray", "in-process")


@dataclass(frozen=True, slots=True)
class Case:
    """One run to measure.

    Attributes:
        engine: One of `ENGINES`.
        registered: Clients that hold data.
        sampled: Clients asked in each round.
        rounds: Rounds in all.
        width: Of the ConvNet.
        workers: Forked processes or Ray actors; 0 in-process.
    """

    engine: str
    registered: int
    sampled: int
    rounds: int
    width: int
    workers: int

    def words(self, runs: Path) -> list[str]:
        """What follows ``tessera run``.

        It runs one round more than is measured: workers of the last may be gone when they are
        looked at.
        """
        return [
            "strategy=fedavg",
            f"data.source={SOURCE}:generated_images",
            f"data.train-examples={EXAMPLES_PER_CLIENT * self.registered}",
            "partition.scheme=iid",
            f"partition.clients={self.registered}",
            f"cohort.size={self.sampled}",
            f"rounds={self.rounds + 1}",
            f"model.width={self.width}",
            f"train.batch-size={EXAMPLES_PER_CLIENT}",
            f"engine.kind={self.engine}",
            f"engine.workers={self.workers}",
            "engine.device=cpu",
            f"runs={runs}",
            "name=run",
            "--no-report",
        ]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a case came to; every list has one entry a round, from round 1.

    Attributes:
        case: What ran.
        wall_s: Seconds of the round.
        cpu_s: Seconds of CPU of the server and its workers, from the end of the round before; of
            round 1 with all that comes before it.
        server_mb: Resident memory of the server's process at the end of the round, MB of 10^6 B.
        worker_mb: The same of each worker; empty in-process.
    """

    case: Case
    wall_s: list[float]
    cpu_s: list[float]
    server_mb: list[float]
    worker_mb: list[list[float]]

    @property
    def round_s(self) -> float:
        """Median seconds of a round; the first is left out, in which workers load data."""
        return median(self.wall_s[1:])

    @property
    def round_cpu_s(self) -> float:
        """Median CPU seconds of a round, likewise."""
        return median(self.cpu_s[1:])

    @property
    def largest_worker_mb(self) -> list[float]:
        """Memory of the largest worker, round by round; empty in-process."""
        return [max(each) for each in self.worker_mb if each]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Measured:
        """Read back a line of the results."""
        return cls(**{**value, "case": Case(**value["case"])})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of this benchmark."""
    parser.add_argument(
        "--out", type=Path, default=Path(".runs/scale"), help="folder of results; %(default)s"
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        default=list(DEFAULT_CASES),
        metavar="REGISTEREDxSAMPLED",
        help=f"cases to run; {' '.join(DEFAULT_CASES)}",
    )
    parser.add_argument(
        "--engines", nargs="+", default=list(ENGINES), metavar="ENGINE", help=" ".join(ENGINES)
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=50,
        help="rounds with {} clients registered and {} sampled; %(default)s".format(*LONG_CASE),
    )
    parser.add_argument(
        "--other-rounds", type=int, default=10, help="rounds of every other case; %(default)s"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="forked processes, and Ray actors; %(default)s"
    )
    parser.add_argument("--width", type=int, default=8, help="of the ConvNet; %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Measure what is not measured yet, and write table, JSON and plot.

    Returns:
        0; 1 if a run failed; 2 if the arguments cannot be used.
    """
    try:
        cases = list(_cases(arguments))
        results = Results.open(arguments.out)
    except ValueError as error:
        print(f"benchmarks scale: {error}", file=sys.stderr)
        return 2
    for case in cases:
        if case not in results.measured:
            print(f"{case.engine}: {case.registered:,} registered, {case.sampled:,} sampled ...")
            try:
                results.add(measure(case))
            except subprocess.CalledProcessError as error:
                print(f"the run ended with exit code {error.returncode}:\n{error.output}")
                return 1
    shown = [results.measured[case] for case in cases]
    hardware = describe()
    print(table(shown))
    print(", ".join(f"{name} {value}" for name, value in hardware.items()))
    value = {"hardware": hardware, "results": [dataclasses.asdict(one) for one in shown]}
    write_whole(arguments.out / "scale.json", (json.dumps(value, indent=1) + "\n").encode())
    write_whole(arguments.out / "scale.svg", draw(shown))
    print(f"results {arguments.out / 'scale.json'}\nplot {arguments.out / 'scale.svg'}")
    return 0


def _cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """The runs that the arguments ask for.

    Raises:
        ValueError: They ask for what cannot be run or compared.
    """
    if not Path("/proc/self/stat").exists():
        raise ValueError("memory is read from /proc, which this system lacks; run it on Linux")
    if unknown := [engine for engine in arguments.engines if engine not in ENGINES]:
        raise ValueError(f"--engines {unknown[0]}: must be one of {', '.join(ENGINES)}")
    for name in ("rounds", "other_rounds"):
        if (rounds := getattr(arguments, name)) <= STEADY_FROM:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{option} {rounds}: must be above {STEADY_FROM}, the round that memory at the end "
                "is compared with"
            )
    if arguments.workers < 1 or arguments.width < 1:
        raise ValueError("--workers and --width must be at least 1")
    for engine in arguments.engines:
        for text in arguments.cases:
            registered, sampled = _sizes(text)
            yield Case(
                engine=engine,
                registered=registered,
                sampled=sampled,
                rounds=arguments.rounds
                if (registered, sampled) == LONG_CASE
                else arguments.other_rounds,
                width=arguments.width,
                workers=0 if engine == "in-process" else arguments.workers,
            )


def _sizes(text: str) -> tuple[int, int]:
    registered, _, sampled = text.partition("x")
    if not (registered.isdecimal() and sampled.isdecimal()):
        raise ValueError(f"--cases {text}: must be two numbers, such as {DEFAULT_CASES[0]}")
    if not 1 <= int(sampled) <= int(registered) <= MOST_REGISTERED:
        raise ValueError(
            f"--cases {text}: at least 1 client is sampled of at most {MOST_REGISTERED:,} that are "
            "registered, and no more than are registered"
        )
    return int(registered), int(sampled)


class Results:
    """What was measured so far, in a file that grows by a line for every case.

    Attributes:
        measured: By case.
    """

    def __init__(self, path: Path, measured: dict[Case, Measured]) -> None:
        self._path = path
        self.measured = measured

    @classmethod
    def open(cls, folder: Path) -> Results:
        """Read the folder's results, and make it where it is missing.

        Raises:
            ValueError: A line is not one of ours, or the folder cannot be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--out {folder}: {error.strerror}; name a folder") from error
        path = folder / "results.jsonl"
        measured = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                one = Measured.from_json(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path} holds another line than ours: {error}") from error
            measured[one.case] = one
        return cls(path, measured)

    def add(self, one: Measured) -> None:
        """Append a case."""
        with self._path.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(one)) + "\n")
        self.measured[one.case] = one


def measure(case: Case) -> Measured:
    """Run a case, and again where its workers were not seen in time.

    Raises:
        subprocess.CalledProcessError: The run failed, and its output is what it printed; or on a
            machine that is too busy its workers were never seen in time, and it tells which were.
    """
    for _ in range(ATTEMPTS):
        with tempfile.TemporaryDirectory(prefix="tessera-scale-") as folder:
            try:
                return _measure(case, Path(folder))
            except _NotSeenError as error:
                missed = error
    raise subprocess.CalledProcessError(0, case.words(Path()), str(missed))


class _NotSeenError(Exception):
    """Workers were gone, or not there yet, when they were looked at."""


def _measure(case: Case, runs: Path) -> Measured:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cli.main", "run", *case.words(runs)]
    samples: list[tuple[float, float, list[float]]] = []
    printed = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            printed.append(line)
            if line.startswith("round "):
                workers = _workers_of(process.pid)
                samples.append(
                    (
                        sum(map(_cpu_s, (process.pid, *workers))),
                        _resident_mb(process.pid),
                        [_resident_mb(worker) for worker in workers],
                    )
                )
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, "".join(printed))
    samples = samples[: case.rounds + 1]
    if any(len(workers) != case.workers for _, _, workers in samples[1:]):
        seen = [len(workers) for _, _, workers in samples[1:]]
        raise _NotSeenError(
            f"{case.workers} workers were to be seen at the end of each round, and {seen} were"
        )
    records = RunFolder.open(runs / "run").read_rounds()
    cpu_s = [spent for spent, _, _ in samples]
    return Measured(
        case=case,
        wall_s=[record.seconds["wall"] for record in records[1 : case.rounds + 1]],
        cpu_s=[after - before for before, after in zip([0.0, *cpu_s[1:]], cpu_s[1:], strict=False)],
        server_mb=[server for _, server, _ in samples[1:]],
        worker_mb=[workers for _, _, workers in samples[1:]],
    )


def _workers_of(pid: int) -> list[int]:
    """Ray actors and forked processes that call clients, among the descendants of a process."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        fields = _stat(int(path.parent.name))
        if fields:
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, left = [], [pid]
    while left:
        parent = left.pop()
        left += (below := children.get(parent, []))
        # The process that forks imports what its workers need, and calls no client.
        forked = below if CLIENT_PROCESS in _title(parent) else []
        found += forked or [c for c in below if _title(c).startswith("ray::ClientActor")]
    return sorted(found)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the name, from the state on; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, in user mode and in the kernel."""
    fields = _stat(pid)
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _resident_mb(pid: int) -> float:
    """Resident memory of a process, shared pages among it, MB of 10^6 B; 0 if it is gone."""
    fields = _stat(pid)
    return int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 1e6 if fields else 0.0


def table(results: Sequence[Measured]) -> str:
    """The results as Markdown.

    Memory is that of the server and of the largest worker, at round `STEADY_FROM` and at the end.
    """
    lines = [
        "| engine | registered | sampled | rounds | s/round | CPU s/round "
        f"| server MB, round {STEADY_FROM} | at the end | ratio "
        f"| worker MB, round {STEADY_FROM} | at the end | ratio |",
        "|---|" + "---:|" * 11,
    ]
    for one in results:
        case = one.case
        cells = [
            case.engine,
            f"{case.registered:,}",
            f"{case.sampled:,}",
            str(case.rounds),
            f"{one.round_s:.2f}",
            f"{one.round_cpu_s:.2f}",
            *_steadiness(one.server_mb),
            *_steadiness(one.largest_worker_mb),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _steadiness(mb: Sequence[float]) -> tuple[str, str, str]:
    if not mb:
        return ("-", "-", "-")
    early, late = mb[STEADY_FROM - 1], mb[-1]
    return (f"{early:.0f}", f"{late:.0f}", f"{late / early:.3f}")


def draw(results: Sequence[Measured]) -> bytes:
    """The plot as SVG: time of a round against clients registered and sampled, memory by round.

    Seconds of CPU are dotted.

    A panel shows the cases that differ in nothing else: those that sample as many as the case with
    the most rounds, those that register as many, and that case itself.
    """
    longest = max(results, key=lambda one: one.case.rounds).case
    look = {"font.size": 8, "svg.fonttype": "path", "svg.hashsalt": "tessera", "axes.grid": True}
    look |= {"axes.spines.top": False, "axes.spines.right": False, "grid.color": "#e2e5ea"}
    with style.context(["default", look]):
        figure = Figure(figsize=(9.6, 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        registered, sampled, memory = figure.subplots(1, 3)
        for number, engine in enumerate(dict.fromkeys(one.case.engine for one in results)):
            own = [one for one in results if one.case.engine == engine]
            drawn = {"color": COLOURS[number], "marker": MARKERS[number], "label": engine}
            alike = [one for one in own if one.case.sampled == longest.sampled]
            _lines(registered, {one.case.registered: one for one in alike}, drawn)
            alike = [one for one in own if one.case.registered == longest.registered]
            _lines(sampled, {one.case.sampled: one for one in alike}, drawn)
            for one in own:
                if (one.case.registered, one.case.sampled) == (
                    longest.registered,
                    longest.sampled,
                ):
                    _memory(memory, one, COLOURS[number])
        for axis, title in ((registered, "registered"), (sampled, "sampled")):
            axis.set_xscale("log")
            places = sorted({place for line in axis.lines for place in line.get_xdata()})
            axis.set_xticks(places, [f"{place:,}" for place in places])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_xlabel(f"clients {title}")

        registered.set_title(f"{longest.sampled:,} sampled", fontsize="medium")
        sampled.set_title(f"{longest.registered:,} registered", fontsize="medium")
        registered.set_ylim(bottom=0)
        registered.set_ylabel("seconds per round, median")
        sampled.set_yscale("log")
        sampled.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        # Below the panels: there is no place in them that lines leave free for sure.
        entries = registered.get_legend_handles_labels()
        figure.legend(*entries, frameon=False, loc="outside lower left", ncols=3)
        memory.set_title(
            f"{longest.registered:,} registered, {longest.sampled:,} sampled", fontsize="medium"
        )
        memory.set_xlabel("round")
        memory.set_ylabel("resident memory, MB")
        memory.set_ylim(0, 1.1 * memory.get_ylim()[1])
        entries = memory.get_legend_handles_labels()
        figure.legend(*entries, frameon=False, loc="outside lower right", ncols=3)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return buffer.getvalue()


def _lines(axis: Axes, results: Mapping[int, Measured], drawn: Mapping[str, Any]) -> None:
    places = sorted(results)
    look = {**drawn, "markersize": 4, "linewidth": 1.3}
    axis.plot(places, [results[place].round_s for place in places], **look)
    look |= {"linestyle": ":", "markerfacecolor": "white", "label": f"{drawn['label']}, CPU"}
    axis.plot(places, [results[place].round_cpu_s for place in places], **look)


def _memory(axis: Axes, one: Measured, colour: str) -> None:
    rounds = range(1, len(one.server_mb) + 1)
    axis.plot(rounds, one.server_mb, color=colour, linewidth=1.3, label=f"{one.case.engine} server")
    if workers := one.largest_worker_mb:
        label = f"{one.case.engine} worker, the largest"
        axis.plot(rounds, workers, color=colour, linewidth=1.3, linestyle="--", label=label)
