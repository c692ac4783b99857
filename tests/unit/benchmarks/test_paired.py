"""Methods of a suite compared seed by seed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks import paired
from benchmarks.__main__ import main
from benchmarks.paired import Outcome, half_interval, table
from core.scores import ACCURACY, MACRO_F1, Score

SUITE = """
seeds = [0, 1]
[base]
"runs" = "{runs}"
"strategy" = "fedavg"
"rounds" = 2
"partition.clients" = 2
"model.width" = 4
"data.train-examples" = 200
"engine.kind" = "in-process"
[[methods]]
label = "one"
[[methods]]
label = "slow"
"train.learning-rate" = 0.001
"""


def test_differences_are_taken_within_a_seed() -> None:
    """Both methods vary by 10 points over seeds, and differ by 1, 2 and 3."""
    found = {
        ("s", "exact"): {k: Outcome(a, 4.0) for k, a in enumerate((0.50, 0.60, 0.70))},
        ("s", "pool"): {k: Outcome(a, 1.0) for k, a in enumerate((0.51, 0.62, 0.73))},
    }
    exact, pool = (
        row.strip("| ").split(" | ") for row in table(found, "exact", ACCURACY).splitlines()[2:]
    )
    assert exact == ["s", "exact", "60.00 ± 10.00", "50.00, 60.00, 70.00", "-", "-", "4.00"]
    # t of 2 degrees at 97.5% is 4.3027, and the deviation of 1, 2, 3 is 1: 4.3027 / sqrt(3).
    assert pool[4:] == ["+2.00", "-0.48 to +4.48", "1.00"]


def test_plain_numbers_are_not_told_as_percent() -> None:
    psnr = Score("psnr", "PSNR", is_percent=False)
    found = {("s", m): {0: Outcome(v, 1.0)} for m, v in (("exact", 30.5), ("pool", 31.75))}
    head, _, _, pool = table(found, "exact", psnr).splitlines()
    assert head.startswith("| setting | method | test PSNR | by seed | minus exact | 95% interval")
    assert pool.split(" | ")[3:5] == ["31.75", "+1.25"]


def test_one_seed_tells_nothing_about_the_spread() -> None:
    assert half_interval([1.0]) == math.inf


def test_runs_of_a_suite_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments.execution import run_suite
    from experiments.suite import read_suite
    from server.progress import PlainProgress

    path = tmp_path / "suite.toml"
    path.write_text(SUITE.format(runs=tmp_path / "runs"))

    def asked(reference: str, *more: str) -> int:
        words = ["benchmarks", "paired", str(path), "--reference", reference, *more]
        monkeypatch.setattr("sys.argv", words)
        return main()

    assert asked("one") == 4
    assert "one-seed0 is todo; run tessera compare" in capsys.readouterr().err
    run_suite(read_suite(path), PlainProgress(), lambda step: None)
    assert asked("two") == 4
    assert "--reference=two: must be one of one, slow" in capsys.readouterr().err
    assert asked("one") == 0
    first, second, *rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[1] for row in rows] == ["one", "slow"]
    assert asked("one", "--score", "macro_f1", "--score", "accuracy") == 0
    f1, accuracy = capsys.readouterr().out.split("\n\n")
    assert "| test macro-F1, % |" in f1 and accuracy.splitlines() == [first, second, *rows]
    assert asked("one", "--score", "recall") == 4
    assert "--score=recall: one is judged by accuracy, macro_f1; name" in capsys.readouterr().err
    runs = paired.complete_runs(path)
    for score, value in ((ACCURACY, "accuracy"), (MACRO_F1, "macro_f1")):
        for key, by_seed in paired.outcomes(runs, score).items():
            told = {
                k: r.final.test.scores[value]
                for k, r in runs[key].items()
                if r.final and r.final.test
            }
            assert {seed: one.value for seed, one in by_seed.items()} == told
    found = paired.outcomes(runs, ACCURACY)
    assert all(0 < one.client_s < 60 for by_seed in found.values() for one in by_seed.values())
