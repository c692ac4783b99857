"""``tessera data``: what it makes, and that what it says next can be said."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app, parse
from data.video.formats.table import FORMATS, read_corpus
from data.video.records import Corpus

RUNNER = CliRunner()
FEW = ["--train", "12", "--validation", "1", "--test", "1", "--no-odd-files"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A small corpus, and what was told of it."""
    folder = tmp_path_factory.mktemp("data") / "corpus"
    result = RUNNER.invoke(app, ["data", "make-shapestory", str(folder), *FEW])
    assert result.exit_code == 0, result.output
    return folder, result.stdout


def test_it_can_be_read_in_every_format(made: tuple[Path, str]) -> None:
    folder, _ = made
    assert len(Corpus.read(folder).videos) == 14
    for name in FORMATS:
        found = read_corpus(f"{name}:{folder}").videos
        assert found and all((folder / video.path).is_file() for video in found)


def test_the_command_that_it_tells_is_one(made: tuple[Path, str]) -> None:
    folder, told = made
    words = shlex.split(told.splitlines()[-1])
    assert words[:2] == ["tessera", "run"]
    config = parse(words[2:])
    assert (config.workload, config.strategy, config.partition.clients) == ("vlm", "fedavg", 1)
    assert f"video.source=shapestory:{folder}" in words


def test_the_command_that_it_tells_is_one_in_a_folder_with_spaces(tmp_path: Path) -> None:
    folder = tmp_path / "my videos"
    few = ["--train", "1", "--validation", "1", "--test", "1", "--no-odd-files"]
    result = RUNNER.invoke(app, ["data", "make-shapestory", str(folder), *few])
    words = shlex.split(result.stdout.splitlines()[-1])
    assert f"video.source=shapestory:{folder}" in words


@pytest.mark.parametrize("words", [["--snr", "nan"], ["--delay-mean", "inf"], ["--test", "-1"]])
def test_what_is_refused_leaves_nothing_behind(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    result = RUNNER.invoke(app, ["data", "make-shapestory", str(folder), *FEW, *words])
    assert result.exit_code != 0
    assert "must be" in result.output or "must be" in str(result.exception)
    assert not folder.exists()


def test_made_again_it_is_told_as_json(made: tuple[Path, str]) -> None:
    folder, _ = made
    result = RUNNER.invoke(app, ["data", "make-shapestory", str(folder), *FEW, "--json"])
    told = json.loads(result.stdout)
    assert (told["train"], told["validation"], told["test"]) == (12, 1, 1)
    assert all(Path(path).is_file() for path in told["exports"])


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--seed", "1"], "made otherwise"),
        (["--narration-noise", "much"], "numbers separated by commas"),
        (["--narration-noise", "2"], "a share from 0 to 1"),
        (["--drop", "-1"], "a probability from 0 to 1"),
    ],
)
def test_what_cannot_be_made_is_refused(
    made: tuple[Path, str], words: list[str], rule: str
) -> None:
    folder, _ = made
    result = RUNNER.invoke(app, ["data", "make-shapestory", str(folder), *FEW, *words])
    assert result.exit_code != 0
    assert rule in result.output or rule in str(result.exception)
