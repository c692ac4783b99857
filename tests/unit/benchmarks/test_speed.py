"""``python -m benchmarks speed``: what is refused, what is checked, and that it goes on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import speed
from benchmarks.contenders import Contender
from benchmarks.watch import Watched
from benchmarks.work import Work, WorkSize, make_work
from core.errors import RunError
from core.parameters import NamedTensors

SIZE = WorkSize(rounds=2, num_clients=2, examples_per_client=10, cohort_size=1, side=8)


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    speed.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--rounds=1",), "--rounds=1: must be at least 2"),
        (("--repeats=0",), "--repeats=0: must be at least 1"),
        (("--without=nobody",), "must be one of tessera-ray, flower, pfl"),
        (("--without=tessera-processes",), "tessera-processes stays"),
        (("--stateful", "--without=pfl"), "must be one of stateful-processes"),
        (("--profile", "--without=pfl"), "leave it out"),
    ],
)
def test_bad_usage_ends_with_2_before_anything_is_done(
    words: Sequence[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert speed.run(parsed(*words, f"--folder={tmp_path / 'new'}")) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_losses_that_agree_pass() -> None:
    speed.check_losses({"ours": 1.0, "theirs": 1.0049, "initial": 2.3}, "ours")


@pytest.mark.parametrize("loss", [1.0051, 0.9949, float("nan")])
def test_losses_that_depart_are_refused_by_name(loss: float) -> None:
    with pytest.raises(RunError, match="theirs") as refusal:
        speed.check_losses({"ours": 1.0, "theirs": loss, "third": 1.0, "initial": 2.3}, "ours")
    assert refusal.value.exit_code == 4
    assert "third" not in str(refusal.value)


def test_losses_that_say_nothing_are_refused() -> None:
    with pytest.raises(RunError, match="raise --rounds"):
        speed.check_losses({"ours": 2.29, "theirs": 2.29, "initial": 2.3}, "ours")


def test_echoes_that_were_none_are_refused() -> None:
    speed.check_untouched({"ours": 2.3, "theirs": 2.3001, "initial": 2.3}, "ours")
    with pytest.raises(RunError, match="theirs"):
        speed.check_untouched({"ours": 2.3, "theirs": 2.2, "initial": 2.3}, "ours")


class Counted(Contender):
    """A contender that returns the initial weights and counts its runs."""

    runs: int = 0

    def run(self, work: Work, out: Path) -> tuple[Watched, NamedTensors]:
        type(self).runs += 1
        return Watched([float(type(self).runs)], 1.0, 1.0, 1.0, 1.0), work.initial_weights


def counted(name: str) -> Contender:
    return Counted(name, lambda work, out: [], "", lambda work, out: {})


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    work = make_work(tmp_path / "work", SIZE)
    contenders = [counted("ours"), counted("theirs")]
    Counted.runs = 0
    first, _ = speed.measure(contenders, work, tmp_path, "training", 1)
    assert Counted.runs == 2
    # A kill in the middle of a line leaves it without an end.
    with (tmp_path / "measurements.jsonl").open("a") as file:
        file.write('{"turn": 2, "conten')
    both, losses = speed.measure(contenders, work, tmp_path, "training", 2)
    assert Counted.runs == 4
    assert [run.round_s for run in both["ours"]] == [first["ours"][0].round_s, [3.0]]
    assert losses["ours"] == [work.training_loss(work.initial_weights)] * 2


@pytest.mark.parametrize("changed", ["source", "work", "mode", "cpu"])
def test_what_was_measured_of_something_else_does_not_count(changed: str, tmp_path: Path) -> None:
    work = make_work(tmp_path / "work", SIZE)
    Counted.runs = 0
    speed.measure([counted("ours")], work, tmp_path, "training", 1)
    path = tmp_path / "measurements.jsonl"
    line = json.loads(path.read_text())
    path.write_text(json.dumps({**line, changed: "another"}) + "\n")
    speed.measure([counted("ours")], work, tmp_path, "training", 1)
    assert Counted.runs == 2
