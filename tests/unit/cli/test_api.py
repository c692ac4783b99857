"""The Python API: settings in the forms that Python offers, and its executed examples."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path
from typing import Any

import pytest

import cli.api
import tessera
from core.records import RoundRecord
from server.recorder import Recorder


def test_the_examples_in_the_docstrings() -> None:
    for module in (cli.api, tessera):
        outcome = doctest.testmod(module)
        assert outcome.attempted > 0
        assert outcome.failed == 0


def test_every_name_is_there_and_documented() -> None:
    for name in tessera.__all__:
        assert inspect.getdoc(getattr(tessera, name))


def test_settings_may_be_flat_nested_or_keywords() -> None:
    configs = [
        tessera.config({"strategy": "fedavg", "evaluate-every": 2, "train.momentum": 0.5}),
        tessera.config({"strategy": "fedavg", "evaluate-every": 2, "train": {"momentum": 0.5}}),
        tessera.config(strategy="fedavg", evaluate_every=2, train={"momentum": 0.5}),
        tessera.config(
            {"strategy": "local", "evaluate-every": 2}, strategy="fedavg", **{"train.momentum": 0.5}
        ),
    ]
    assert len(set(map(repr, configs))) == 1


def test_all_problems_come_at_once() -> None:
    with pytest.raises(tessera.ConfigError) as caught:
        tessera.run(rounds=0, learning_rate=1)
    assert [problem.key for problem in caught.value.problems] == ["rounds", "learning-rate"]
    assert "train.learning-rate" in caught.value.problems[1].rule


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: dict[str, object] = {"strategy": "centralized", "rounds": 2, "model.width": 2}
    whole = tessera.run({**keys, "runs": str(tmp_path / "whole")})
    record = Recorder.round

    def interrupt(self: Recorder, now: RoundRecord, *rest: Any, **options: Any) -> None:
        record(self, now, *rest, **options)
        if now.round == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "round", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tessera.run({**keys, "runs": str(tmp_path), "name": "cut"})
    assert tessera.load_run(tmp_path / "cut").rounds_done == 1
    with pytest.raises(tessera.ConfigError) as caught:
        tessera.resume(tmp_path / "cut", train={"learning_rate": 1.0})
    assert [problem.key for problem in caught.value.problems] == ["train.learning-rate"]
    made = tessera.resume(tmp_path / "cut", checkpoint_every=1, engine={"kind": "in-process"})
    assert made.finished
    assert [entry.after_round for entry in made.resumed] == [1]
    assert [(r.validation, r.test) for r in made.rounds] == [
        (r.validation, r.test) for r in whole.rounds
    ]
    again = tessera.resume(str(tmp_path / "cut"))
    assert again.rounds == made.rounds


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(tessera.RecordError, match="not a run folder"):
        tessera.load_run(tmp_path)
    with pytest.raises(tessera.RecordError, match="not a run folder"):
        tessera.report(tmp_path, tmp_path / "report.html")
    with pytest.raises(tessera.RecordError, match="no run"):
        tessera.report([], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
