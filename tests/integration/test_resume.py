"""A run that is killed anywhere and taken up again ends as if nothing had happened."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from click.testing import Result
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from cli.main import app
from core.records import RoundRecord, RunFolder
from strategies.table import STRATEGIES
from tests.conftest import tiny_keys

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 4
KILLED = -9

WARM = {"feddm": {"feddm.warm-start": True}}
"""With its last images kept, feddm has a client state, and images on record."""


class Driver:
    """Runs ``tessera`` in processes that can be killed; see `tests.integration.killed_run`."""

    def __init__(self, log: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.killed_run"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.log = log

    def __call__(self, *words: str, **step: object) -> int:
        """Exit code of ``tessera WORDS``, or minus the signal that ended it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"words": words, **step}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, self.log.read_text()[-3_000:]
        return int(answer)

    def close(self) -> None:
        """End it; it has no work left."""
        self._process.communicate()


@pytest.fixture(scope="module")
def tessera(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    driver = Driver(tmp_path_factory.mktemp("driver") / "log")
    yield driver
    driver.close()


def words_of(method: str, path: Path, **keys: object) -> list[str]:
    """``run`` with the keys of a tiny federation in the run folder `path`."""
    flat = {**tiny_keys(method, rounds=ROUNDS, **keys), **WARM.get(method, {})}
    flat |= {"runs": str(path.parent), "name": path.name}
    told = (f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in flat.items())
    return ["run", "--no-report", *told]


def resume_words(path: Path) -> list[str]:
    return ["run", "--no-report", "--resume", str(path)]


Whole = Callable[[str], Path]


@pytest.fixture(scope="module")
def whole(tessera: Driver, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The run of a method that is not cut off, made once."""
    runs = tmp_path_factory.mktemp("whole")

    def whole(method: str) -> Path:
        path = runs / method
        if not path.exists():
            assert tessera(*words_of(method, path)) == 0, tessera.log.read_text()[-3_000:]
        return path

    return whole


def but_seconds(path: Path) -> list[RoundRecord]:
    records = RunFolder.open(path).read_rounds()
    return [dataclasses.replace(record, seconds={}) for record in records]


def assert_same_tensors(found: Path, expected: Path) -> None:
    ours, theirs = load_file(found), load_file(expected)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name]), name


def assert_same_run(path: Path, expected: Path) -> None:
    """The same records, seconds aside, the same bits, and nothing left over."""
    ours, theirs = RunFolder.open(path), RunFolder.open(expected)
    assert but_seconds(path) == but_seconds(expected)
    assert_same_tensors(ours.checkpoint(ROUNDS), theirs.checkpoint(ROUNDS))
    assert ours.tesserae_rounds() == theirs.tesserae_rounds()
    for number in theirs.tesserae_rounds():
        assert_same_tensors(ours.tesserae(number), theirs.tesserae(number))
    assert_same_client_state(ours, theirs)
    status = ours.read_json("run")
    assert (status["status"], status["failure"]) == ("complete", None)
    assert status["rounds_done"] == ROUNDS
    assert [p for p in path.rglob(".*") if p.name != ".lock"] == []
    assert not ours.progress.exists()
    elapsed = [record.seconds["elapsed"] for record in ours.read_rounds()]
    assert elapsed == sorted(elapsed)
    assert_each_round_once(ours)


def assert_same_client_state(ours: RunFolder, theirs: RunFolder) -> None:
    """What each client would start the next round from."""
    acknowledged = load_file(theirs.checkpoint(ROUNDS))["acknowledged"].tolist()
    for partition_id, number in acknowledged:
        name = f"partition-{partition_id:05d}/round-{number:05d}.safetensors"
        assert (ours.clients / name).exists() == (theirs.clients / name).exists()
        if (theirs.clients / name).exists():
            assert_same_tensors(ours.clients / name, theirs.clients / name)


def assert_each_round_once(folder: RunFolder) -> None:
    """What TensorBoard shows."""
    events = EventAccumulator(str(folder.events), size_guidance={"scalars": 0})
    events.Reload()
    records = folder.read_rounds()
    for tag, told in {
        "bytes/up": [record.bytes_up for record in records],
        "test/accuracy": [record.test.primary for record in records if record.test],
    }.items():
        shown = events.Scalars(tag)
        assert [point.step for point in shown] == list(range(len(records)))
        assert [point.value for point in shown] == pytest.approx(told)


def take_up(tessera: Driver, path: Path) -> None:
    assert tessera(*resume_words(path)) == 0, tessera.log.read_text()[-3_000:]


@pytest.mark.parametrize("method", STRATEGIES)
def test_every_method_goes_on_to_the_same_bits(
    method: str, tessera: Driver, whole: Whole, tmp_path: Path
) -> None:
    """Killed in round 3, with all replies in and the server's work done, and nothing on record."""
    path = tmp_path / "cut"
    assert tessera(*words_of(method, path), kill=["before the commit", 4]) == KILLED
    assert [record.round for record in RunFolder.open(path).read_rounds()] == [0, 1, 2]
    take_up(tessera, path)
    assert_same_run(path, whole(method))
    (resumption,) = RunFolder.open(path).read_json("run")["resumed"]
    assert resumption["after_round"] == 2


# Times are counted from the start: a record for round 0, a reply of each of three clients.
EVERYWHERE = [
    ("in the record", 1),
    ("in the record", 3),
    ("in the checkpoint", 1),
    ("in the checkpoint", 4),
    ("after a reply", 1),
    ("after a reply", 5),
    ("between checkpoint and record", 1),
    ("between checkpoint and record", 3),
    ("after the record", 1),
    ("after the record", 3),
    ("after the record", ROUNDS + 1),
    ("in a description", 2),
    ("in a description", 7),
]
AROUND_THE_RECORD = [
    (point, k)
    for point, k in EVERYWHERE
    if point in ("in the record", "between checkpoint and record", "after the record")
]
WHERE_STATE_IS_KEPT = [("in the client state", 1), ("in the client state", 5)]
WHERE_IMAGES_ARE_KEPT = [("in the images", 1), ("in the images", 3)]
POINTS = [
    *(("scaffold", *point) for point in EVERYWHERE + WHERE_STATE_IS_KEPT),
    # The recorder is the same for all methods; this one puts images beside its records.
    *(
        ("feddm", *point)
        for point in WHERE_STATE_IS_KEPT + WHERE_IMAGES_ARE_KEPT + AROUND_THE_RECORD
    ),
]


@pytest.mark.parametrize(("method", "point", "k"), POINTS)
def test_wherever_it_is_killed(
    method: str, point: str, k: int, tessera: Driver, whole: Whole, tmp_path: Path
) -> None:
    path = tmp_path / "cut"
    assert tessera(*words_of(method, path), kill=[point, k]) == KILLED
    take_up(tessera, path)
    assert_same_run(path, whole(method))


@pytest.mark.parametrize("method", ["scaffold", "fedadam", "feddm"])
def test_killed_twice_with_rounds_done_between_checkpoints(
    method: str, tessera: Driver, whole: Whole, tmp_path: Path
) -> None:
    """Checkpoints of rounds 0 and 3: rounds 1 and 2 are done again, clients' state goes back too.

    The second time the checkpoint of round 3 is there and its record is not.
    """
    path = tmp_path / "cut"
    words = words_of(method, path, checkpoint_every=3)
    assert tessera(*words, kill=["after the record", 3]) == KILLED
    assert tessera(*resume_words(path), kill=["between checkpoint and record", 3]) == KILLED
    assert [record.round for record in RunFolder.open(path).read_rounds()] == [0, 1, 2]
    assert tessera(*resume_words(path), kill=["after the record", 3]) == KILLED
    assert [record.round for record in RunFolder.open(path).read_rounds()] == [0, 1, 2, 3]
    take_up(tessera, path)
    assert_same_run(path, whole(method))
    resumptions = RunFolder.open(path).read_json("run")["resumed"]
    assert [r["after_round"] for r in resumptions] == [0, 0, 3]


@pytest.mark.parametrize("method", ["scaffold", "feddm", "local"])
def test_clients_go_back_to_the_state_of_an_older_round(
    method: str, tessera: Driver, whole: Whole, tmp_path: Path
) -> None:
    """Round 3 is counted and round 4 worked on; the checkpoint to go on from is that of round 2."""
    path = tmp_path / "cut"
    words = words_of(method, path, checkpoint_every=2)
    assert tessera(*words, kill=["before the commit", 5]) == KILLED
    take_up(tessera, path)
    (resumption,) = RunFolder.open(path).read_json("run")["resumed"]
    assert resumption["after_round"] == 2
    assert_same_run(path, whole(method))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("method", "every"), [("scaffold", 3), ("feddm", 1)])
def test_killed_at_random_twice(
    method: str, seed: int, every: int, tessera: Driver, whole: Whole, tmp_path: Path
) -> None:
    path, draw = tmp_path / "cut", random.Random(seed)
    sign = str(path / "config.json")
    words = words_of(method, path, checkpoint_every=every)
    assert tessera(*words, kill_after_s=[sign, draw.uniform(0, 0.6)]) in (KILLED, 0)
    assert tessera(*resume_words(path), kill_after_s=[sign, draw.uniform(0, 1)]) in (KILLED, 0)
    take_up(tessera, path)
    assert_same_run(path, whole(method))


def test_on_ray(tessera: Driver, whole: Whole, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    words = words_of("scaffold", path, engine__kind="ray", engine__workers=1)
    assert tessera(*words, kill=["after a reply", 5]) == KILLED
    take_up(tessera, path)
    assert_same_run(path, whole("scaffold"))


@pytest.fixture(scope="module")
def cut_off(tessera: Driver, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed at work on round 3, with checkpoints of rounds 1 and 2."""
    path = tmp_path_factory.mktemp("cut") / "cut"
    assert tessera(*words_of("scaffold", path), kill=["before the commit", 4]) == KILLED
    return path


@pytest.fixture
def cut(cut_off: Path, tmp_path: Path) -> RunFolder:
    """A copy of `cut_off`; a run folder may have moved."""
    shutil.copytree(cut_off, tmp_path / "moved" / "copy")
    return RunFolder.open(tmp_path / "moved" / "copy")


def resumed(folder: RunFolder, *words: str) -> Result:
    return CliRunner().invoke(app, [*resume_words(folder.path), *words])


def content_of(folder: RunFolder) -> dict[str, bytes]:
    """Of the record of the run; step counts and the lock belong to a process."""
    transient = (folder.progress, folder.lock)
    files = (path for path in folder.path.rglob("*") if path.is_file())
    files = (path for path in files if not {path, path.parent} & set(transient))
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in files}


def rewritten(path: Path, **changes: str) -> None:
    """The checkpoint with other metadata."""
    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), **changes}
    save_file(load_file(path), path, metadata)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(at: int) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    return flip


def swap_tensors(path: Path) -> None:
    """Two tensors of one shape under each other's names, in a file that is otherwise whole."""
    tensors = load_file(path)
    weights = [n for n in tensors if n.startswith("weights/")]
    one, other = next(
        (a, b)
        for a in weights
        for b in weights
        if a < b and tensors[a].shape == tensors[b].shape and not tensors[a].equal(tensors[b])
    )
    tensors[one], tensors[other] = tensors[other], tensors[one]
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "is damaged"),
    "empty": (empty, "is damaged"),
    "header": (flip(9), "is damaged"),
    "bit of the data": (flip(-1), "is damaged"),
    "swapped": (swap_tensors, "is damaged"),
    "round": (lambda path: rewritten(path, round="1"), "is damaged"),
    "empty rounds": (lambda path: rewritten(path, empty_rounds="2"), "is damaged"),
    "identity": (lambda path: rewritten(path, identity="0" * 16), "is of another run"),
    "schema 1": (lambda path: rewritten(path, schema="1"), "an earlier version of Tessera"),
    "schema 9": (lambda path: rewritten(path, schema="9"), "another version of Tessera"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_cannot_be_trusted_is_refused(damage: str, cut: RunFolder) -> None:
    change, reason = DAMAGES[damage]
    checkpoint = cut.checkpoint(2)
    change(checkpoint)
    before = content_of(cut)
    result = resumed(cut)
    assert result.exit_code == 5
    told = " ".join(result.stderr.split())
    assert reason in told
    assert str(checkpoint) in told
    assert content_of(cut) == before, "what is refused is left as it was"


def test_the_way_out_of_a_damaged_checkpoint_is_the_one_before(
    cut: RunFolder, tessera: Driver, whole: Whole
) -> None:
    flip(-1)(cut.checkpoint(2))
    assert tessera(*resume_words(cut.path)) == 5
    cut.checkpoint(2).unlink()
    take_up(tessera, cut.path)
    assert_same_run(cut.path, whole("scaffold"))
    (resumption,) = cut.read_json("run")["resumed"]
    assert resumption["after_round"] == 1


def test_a_run_without_any_checkpoint_left_is_refused(cut: RunFolder) -> None:
    shutil.rmtree(cut.checkpoint(0).parent)
    result = resumed(cut)
    assert result.exit_code == 5
    assert "no checkpoint" in " ".join(result.stderr.split())


def test_a_damaged_line_amid_the_records_is_refused(cut: RunFolder) -> None:
    lines = cut.rounds.read_bytes().splitlines(keepends=True)
    cut.rounds.write_bytes(b"".join([lines[0], lines[1][:40] + b"\n", *lines[2:]]))
    result = resumed(cut)
    assert result.exit_code == 5
    assert "line 2" in " ".join(result.stderr.split())


def test_a_missing_line_amid_the_records_is_refused(cut: RunFolder) -> None:
    lines = cut.rounds.read_bytes().splitlines(keepends=True)
    cut.rounds.write_bytes(b"".join([lines[0], *lines[2:]]))
    result = resumed(cut)
    assert result.exit_code == 5
    assert "line 2: holds round 2, expected 1" in " ".join(result.stderr.split())


@pytest.mark.parametrize("kept", [0, 1])
def test_records_that_lag_behind_the_checkpoints_are_refused(kept: int, cut: RunFolder) -> None:
    """A kill leaves one checkpoint without its record, never two."""
    lines = cut.rounds.read_bytes().splitlines(keepends=True)
    cut.rounds.write_bytes(b"".join(lines[:kept]))
    before = content_of(cut)
    result = resumed(cut)
    assert result.exit_code == 5
    assert "records are missing" in " ".join(result.stderr.split())
    assert content_of(cut) == before


@pytest.mark.parametrize("damage", ["gone", "flipped", "another's"])
def test_a_clients_state_that_cannot_be_trusted_is_refused(damage: str, cut: RunFolder) -> None:
    path = cut.clients / "partition-00001/round-00002.safetensors"
    if damage == "gone":
        path.unlink()
    elif damage == "flipped":
        flip(-1)(path)
    else:
        shutil.copy(cut.clients / "partition-00000/round-00002.safetensors", path)
    before = content_of(cut)
    result = resumed(cut)
    assert result.exit_code == 5
    assert str(path) in " ".join(result.stderr.split())
    assert content_of(cut) == before


def test_a_folder_of_an_earlier_version_is_refused_by_name(cut: RunFolder) -> None:
    cut.write_json("run", {**cut.read_json("run"), "schema": 1, "identity": "0" * 16})
    result = resumed(cut)
    assert result.exit_code == 5
    assert "has schema 1, of an earlier version" in " ".join(result.stderr.split())


def test_a_run_that_the_version_before_scores_began_goes_on(
    cut: RunFolder, tessera: Driver, whole: Whole
) -> None:
    run = cut.read_json("run")
    del run["scores"]
    cut.write_json("run", {**run, "schema": 2})
    lines = [json.loads(line) for line in cut.rounds.read_text().splitlines()]
    for record in lines:
        record["schema"] = 2
        record["client_accuracy"] = record.pop("client_scores")
        record["worst_client_accuracy"] = record.pop("worst_client_score")
        for split in ("validation", "test"):
            record[split] |= record[split].pop("scores")
    cut.rounds.write_text("".join(json.dumps(line) + "\n" for line in lines))
    take_up(tessera, cut.path)
    assert_same_run(cut.path, whole("scaffold"))


def test_what_changed_of_the_environment_is_on_record(cut: RunFolder, tessera: Driver) -> None:
    cut.write_json("environment", {**cut.read_json("environment"), "torch": "1.0"})
    take_up(tessera, cut.path)
    (resumption,) = cut.read_json("run")["resumed"]
    assert list(resumption["changed"]) == ["torch"]
    assert resumption["changed"]["torch"].startswith("1.0 -> ")


@pytest.mark.parametrize(
    "word",
    ["seed=1", "rounds=9", "train.learning-rate=0.1", "engine.round-timeout-s=1", "name=other"],
)
def test_a_key_that_changes_the_result_is_refused(word: str, cut: RunFolder) -> None:
    before = content_of(cut)
    assert resumed(cut, word).exit_code == 2
    assert content_of(cut) == before


def test_a_key_that_changes_no_result_may_change(
    cut: RunFolder, tessera: Driver, whole: Whole
) -> None:
    assert tessera(*resume_words(cut.path), "checkpoint-every=2") == 0
    assert_same_run(cut.path, whole("scaffold"))


def test_an_edited_configuration_is_refused(cut: RunFolder) -> None:
    config = {**cut.read_json("config"), "seed": 1}
    cut.write_json("config", config)
    result = resumed(cut)
    assert result.exit_code == 5
    assert "identity" in result.stderr


def test_a_folder_that_is_being_written_to_is_refused(cut: RunFolder) -> None:
    with FileLock(cut.lock):
        result = resumed(cut)
    assert result.exit_code == 5
    assert "another process" in " ".join(result.stderr.split())


def test_a_complete_run_is_left_as_it_is(whole: Whole) -> None:
    folder = RunFolder.open(whole("fedavg"))
    before = content_of(folder)
    assert resumed(folder).exit_code == 0
    assert content_of(folder) == before


def test_a_folder_that_holds_no_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        assert CliRunner().invoke(app, resume_words(path)).exit_code == 5


def test_a_run_that_failed_for_good_does_not_become_complete(
    tessera: Driver, tmp_path: Path
) -> None:
    """Nobody answers in any round, and nobody does when the last is done again."""
    path = tmp_path / "failed"
    keys = {"faults__dropout_rate": 1.0, "cohort__max_empty_rounds": 99}
    assert tessera(*words_of("fedavg", path, **keys)) == 4
    assert RunFolder.open(path).read_json("run")["status"] == "failed"
    assert tessera(*resume_words(path)) == 4
    assert RunFolder.open(path).read_json("run")["status"] == "failed"
