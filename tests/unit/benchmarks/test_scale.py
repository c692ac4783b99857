"""The scale benchmark: what it refuses, what it measures, and that it goes on where it was."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import scale
from benchmarks.generated_images import NUM_TRAIN, generated_images
from benchmarks.scale import Case, Measured
from core.config import DataConfig


def arguments(out: Path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    scale.add_arguments(parser)
    return parser.parse_args(["--out", str(out), *words])


def measured(case: Case, factor: float = 1.0) -> Measured:
    """Round r took r tenths of a second; the server grew by 1 MB a round."""
    rounds = range(1, case.rounds + 1)
    return Measured(
        case=case,
        wall_s=[factor * r / 10 for r in rounds],
        cpu_s=[factor * r / 5 for r in rounds],
        server_mb=[100.0 + r for r in rounds],
        worker_mb=[[50.0, 60.0 + r] if case.workers else [] for r in rounds],
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rounds", "5"], "--rounds 5: must be above 5"),
        (["--other-rounds", "0"], "--other-rounds 0: must be above 5"),
        (["--engines", "threads"], "--engines threads: must be one of processes, ray"),
        (["--cases", "100"], "--cases 100: must be two numbers"),
        (["--cases", "100x0"], "--cases 100x0: at least 1 client"),
        (["--cases", "10x11"], "--cases 10x11: at least 1 client"),
        (["--cases", "10001x10"], "at most 10,000"),
        (["--workers", "0"], "--workers and --width must be at least 1"),
    ],
)
def test_bad_arguments_end_with_2(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scale.run(arguments(tmp_path, *words)) == 2
    assert told in capsys.readouterr().err


def test_foreign_results_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.jsonl").write_text('{"case": {}}\n')
    assert scale.run(arguments(tmp_path)) == 2
    assert "results.jsonl" in capsys.readouterr().err


def test_what_was_measured_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Case] = []

    def measure(case: Case) -> Measured:
        if len(ran) == 5:
            raise subprocess.CalledProcessError(4, "tessera", "it failed")
        ran.append(case)
        return measured(case)

    monkeypatch.setattr(scale, "measure", measure)
    words = ("--cases", "10000x100", "100x100", "--rounds", "7", "--other-rounds", "6")
    assert scale.run(arguments(tmp_path, *words)) == 1
    assert "it failed" in capsys.readouterr().out
    ran[:] = ran[4:]
    assert scale.run(arguments(tmp_path, *words)) == 0
    assert [(c.engine, c.registered, c.rounds, c.workers) for c in ran] == [
        ("in-process", 10_000, 7, 0),
        ("in-process", 100, 6, 0),
    ]
    kept = json.loads((tmp_path / "scale.json").read_text())
    assert kept["hardware"]["torch"] == torch.__version__
    assert [Measured.from_json(one) for one in kept["results"]] == [
        measured(Case(engine, registered, 100, rounds, 8, workers))
        for engine, workers in (("processes", 2), ("ray", 2), ("in-process", 0))
        for registered, rounds in ((10_000, 7), (100, 6))
    ]
    ElementTree.fromstring((tmp_path / "scale.svg").read_bytes())


def test_the_table_tells_medians_without_the_first_round_and_growth() -> None:
    case = Case("ray", 10_000, 100, 8, 8, 2)
    row = scale.table([measured(case)]).splitlines()[-1].strip("| ").split(" | ")
    # Rounds 2 to 8 took 0.2 to 0.8 s; after round 5 the server had 105 MB and at the end 108.
    expected = ["ray", "10,000", "100", "8", "0.50", "1.00"]
    expected += ["105", "108", f"{108 / 105:.3f}", "65", "68", f"{68 / 65:.3f}"]
    assert row == expected
    in_process = dataclasses.replace(case, engine="in-process", workers=0)
    assert scale.table([measured(in_process)]).count(" - |") == 3


def test_memory_and_time_of_a_process_are_its_own() -> None:
    """512 MB held by a child show up as its memory and not as ours, its work as CPU seconds."""
    script = (
        "import time; held = b'1' * 512_000_000; end = time.process_time() + 0.3\n"
        "while time.process_time() < end: pass\n"
        "print('ready', flush=True); input()"
    )
    before = scale._resident_mb(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert 512 <= scale._resident_mb(child.pid) <= 600
        assert 0.3 <= scale._cpu_s(child.pid) <= 5
        assert scale._resident_mb(os.getpid()) - before < 256
        assert scale._workers_of(child.pid) == []
        child.communicate("\n")
    assert scale._resident_mb(child.pid) == scale._cpu_s(child.pid) == 0


def test_the_images_are_equally_many_of_each_class_and_always_the_same() -> None:
    config = DataConfig(source="here.py:generated_images")
    first, again = generated_images(config, 0), generated_images(config, 1)
    assert torch.bincount(first.train.labels).tolist() == [NUM_TRAIN // 10] * 10
    assert first.sha256() == again.sha256()


@pytest.mark.parametrize(("misses", "code"), [(2, 0), (3, 1)])
def test_a_case_whose_workers_were_not_seen_runs_again(
    misses: int,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders: list[Path] = []

    def measure(case: Case, folder: Path) -> Measured:
        folders.append(folder)
        if len(folders) <= misses:
            raise scale._NotSeenError("2 workers were to be seen, and 0 were")
        return measured(case)

    monkeypatch.setattr(scale, "_measure", measure)
    words = ("--cases", "12x6", "--other-rounds", "6", "--engines", "ray")
    assert scale.run(arguments(tmp_path, *words)) == code
    assert len(set(folders)) == 3
    assert ("and 0 were" in capsys.readouterr().out) == bool(code)


@pytest.mark.parametrize(("engine", "workers"), [("in-process", 0), ("processes", 2), ("ray", 2)])
def test_a_case_runs(engine: str, workers: int, tmp_path: Path) -> None:
    words = ("--cases", "12x6", "--other-rounds", "6", "--engines", engine)
    assert scale.run(arguments(tmp_path, *words)) == 0
    (one,) = scale.Results.open(tmp_path).measured.values()
    assert len(one.wall_s) == len(one.cpu_s) == len(one.server_mb) == len(one.worker_mb) == 6
    assert min(one.wall_s) > 0 and min(one.server_mb) > 50
    assert [len(each) for each in one.worker_mb] == [workers] * 6
    assert all(memory > 50 for each in one.worker_mb for memory in each)
