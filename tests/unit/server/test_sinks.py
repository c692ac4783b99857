"""What sinks hold, read back with each one's own reader, or from its file format."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import importlib.util
import json
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import server.sinks
from core.config import PrivacyConfig, RunConfig, SinksConfig
from core.errors import RunError
from core.records import ClientRecord, EvaluationRecord, RoundRecord, RunFolder
from server.sinks import missing_sinks, open_sinks, replay, scalars_of

SCALARS_OF_EVERY_ROUND = {"bytes/up", "bytes/down", "server/displacement", "seconds/wall"}
SCALARS_OF_AN_EVALUATION = {
    "validation/accuracy",
    "validation/loss",
    "validation/macro_f1",
    "test/accuracy",
    "test/loss",
    "test/macro_f1",
    "test/worst_client_accuracy",
}


def judged(accuracy: float) -> EvaluationRecord:
    return EvaluationRecord(
        num_examples=4,
        loss=2 - accuracy,
        scores={"accuracy": accuracy, "macro_f1": accuracy / 2},
        per_class_accuracy=[accuracy, None],
        confusion=[[3, 1], [0, 0]],
    )


def record(round: int, *, offset: float = 0.0, evaluated: bool = True) -> RoundRecord:
    """All its values are exact in float32, which TensorBoard keeps; `offset` moves the seconds."""
    return RoundRecord(
        round=round,
        validation=judged(0.5) if evaluated else None,
        test=judged(0.125 * round) if evaluated else None,
        client_scores=[0.25, None] if evaluated else None,
        worst_client_score=0.25 if evaluated else None,
        bytes_down=1000 + round,
        bytes_up=round,
        clients=[ClientRecord(partition_id=0, bytes_down=1000 + round, bytes_up=round)],
        server={"displacement": 0.75 * round},
        seconds={"wall": 1.5 * round + offset},
    )


def config_of(folder: RunFolder, **sinks: bool) -> RunConfig:
    return RunConfig(
        runs=str(folder.path.parent),
        name=folder.path.name,
        seed=7,
        sinks=SinksConfig(project="figures", **sinks),
    )


def run_through(
    config: RunConfig, folder: RunFolder, records: list[RoundRecord], resumed_after: int | None
) -> None:
    """What the server does: sinks first, then the line that makes a round count."""
    sinks = open_sinks(config, folder, resumed_after)
    for one in records:
        for sink in sinks:
            sink.round(one)
        folder.append_round(one)
    for sink in sinks:
        sink.close("complete")


def cut_off_after(folder: RunFolder, round: int) -> None:
    """Leave the records that a run goes on from."""
    kept = [one for one in folder.read_rounds() if one.round <= round]
    folder.rounds.unlink()
    for one in kept:
        folder.append_round(one)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "a run: ü", {})


def events_in(folder: RunFolder) -> dict[str, dict[int, float]]:
    """Value by step by name, each step once."""
    events = EventAccumulator(str(folder.events))
    events.Reload()
    found: dict[str, dict[int, float]] = {}
    for name in events.Tags()["scalars"]:
        shown = events.Scalars(name)
        assert len({event.step for event in shown}) == len(shown)
        found[name] = {event.step: event.value for event in shown}
    return found


def by_name(records: list[RoundRecord]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for one in records:
        for name, value in scalars_of(one, hides_counts=False).items():
            found.setdefault(name, {})[one.round] = value
    return found


# Scalars


def test_what_privacy_costs_reaches_every_sink() -> None:
    spent = {"epsilon": 1.5, "epsilon_round": 0.75, "snr": 0.25}
    told = scalars_of(dataclasses.replace(record(1), server=spent), hides_counts=False)
    assert {f"server/{name}": value for name, value in spent.items()}.items() <= told.items()


def test_scalars_are_the_record_under_slashed_names() -> None:
    assert scalars_of(record(2), hides_counts=False) == {
        "bytes/up": 2,
        "bytes/down": 1002,
        "server/displacement": 1.5,
        "seconds/wall": 3.0,
        "validation/accuracy": 0.5,
        "validation/loss": 1.5,
        "validation/macro_f1": 0.25,
        "test/accuracy": 0.25,
        "test/loss": 1.75,
        "test/macro_f1": 0.125,
        "test/worst_client_accuracy": 0.25,
    }


def test_the_scores_of_any_workload_go_out_under_their_names() -> None:
    scores = {"recall_at_1": 0.25, "median_rank": 3.0}
    test = dataclasses.replace(judged(0.5), scores=scores, per_class_accuracy=None, confusion=None)
    told = dataclasses.replace(record(2), test=test, validation=None)
    of_the_test = {k: v for k, v in scalars_of(told, hides_counts=False).items() if "test/" in k}
    assert of_the_test == {
        "test/recall_at_1": 0.25,
        "test/median_rank": 3.0,
        "test/loss": 1.5,
        "test/worst_client_recall_at_1": 0.25,
    }
    unknown = dataclasses.replace(told, client_scores=None, worst_client_score=None)
    assert "test/worst_client_recall_at_1" not in scalars_of(unknown, hides_counts=False)


def test_a_round_without_evaluation_has_no_accuracies() -> None:
    assert (
        set(scalars_of(record(1), hides_counts=False))
        == SCALARS_OF_EVERY_ROUND | SCALARS_OF_AN_EVALUATION
    )
    assert set(scalars_of(record(1, evaluated=False), hides_counts=False)) == SCALARS_OF_EVERY_ROUND


# TensorBoard


def test_tensorboard_holds_every_scalar_at_its_round(folder: RunFolder) -> None:
    records = [record(0), record(1, evaluated=False), record(2)]
    run_through(config_of(folder), folder, records, None)
    assert events_in(folder) == by_name(records)


def test_tensorboard_shows_a_round_done_again_once(folder: RunFolder) -> None:
    config = config_of(folder)
    run_through(config, folder, [record(k) for k in range(4)], None)
    cut_off_after(folder, 1)
    again = [record(k, offset=8.0) for k in (2, 3, 4)]
    run_through(config, folder, again, 1)
    assert events_in(folder) == by_name([record(0), record(1), *again])


def test_a_run_cut_off_before_its_first_record_shows_that_round_once(folder: RunFolder) -> None:
    config = config_of(folder)
    for sink in open_sinks(config, folder, None):
        sink.round(record(0))
    again = [record(0, offset=8.0), record(1)]
    run_through(config, folder, again, None)
    assert events_in(folder) == by_name(again)


# Weights & Biases


@pytest.fixture
def wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    for kind in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / "wandb-home" / kind))
    yield
    wandb.teardown()


def messages_in(path: Path) -> Iterator[Any]:
    """Records of a ``.wandb`` file: a LevelDB log of protobuf messages after a header of 7 bytes.

    Blocks have 32 KiB. A fragment is CRC-32 of kind and content (4 bytes), length (2), kind (1: a
    whole message, 2: its first part, 3: a middle part, 4: its last), content.
    """
    from wandb.proto import wandb_internal_pb2

    protocol: Any = wandb_internal_pb2  # what it holds is chosen at run time
    content = path.read_bytes()
    position, message = 7, b""
    while position + 7 <= len(content):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        checksum, length, kind = struct.unpack_from("<IHB", content, position)
        if kind == 0:
            return
        fragment = content[position + 7 : position + 7 + length]
        assert zlib.crc32(bytes([kind]) + fragment) == checksum
        position += 7 + length
        message += fragment
        if kind in (1, 4):
            parsed = protocol.Record()
            parsed.ParseFromString(message)
            yield parsed
            message = b""


def only_wandb_file(folder: RunFolder) -> Path:
    import wandb

    wandb.teardown()  # the file's last record is written after a run's `finish` has returned
    (found,) = (folder.path / "wandb").glob("offline-run-*/run-*.wandb")
    return found


def steps_in(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Step and scalars of each line of a run's history; what W&B adds is left out."""
    found = []
    for message in messages_in(path):
        if message.WhichOneof("record_type") == "history":
            values = {
                "".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in message.history.item
            }
            step = values["_step"]
            assert message.history.step.num == step
            found.append((step, {k: v for k, v in values.items() if not k.startswith("_")}))
    return found


def run_in(path: Path) -> Any:
    return next(m.run for m in messages_in(path) if m.WhichOneof("record_type") == "run")


@pytest.mark.usefixtures("wandb_offline")
def test_wandb_holds_every_scalar_at_its_round(folder: RunFolder) -> None:
    config = config_of(folder, wandb=True)
    records = [record(0), record(1, evaluated=False), record(2)]
    run_through(config, folder, records, None)
    path = only_wandb_file(folder)
    assert steps_in(path) == [(one.round, scalars_of(one, hides_counts=False)) for one in records]
    run = run_in(path)
    assert run.run_id == folder.read_json("sinks")["wandb"]
    assert (run.project, run.display_name) == ("figures", folder.path.name)
    settings = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert {key: settings.get(key) for key in config.flat()} == config.flat()


@pytest.mark.usefixtures("wandb_offline")
@pytest.mark.parametrize(("status", "code"), [("complete", 0), ("failed", 1), ("interrupted", 255)])
def test_wandb_learns_how_a_run_ended(folder: RunFolder, status: str, code: int) -> None:
    for sink in open_sinks(config_of(folder, wandb=True), folder, None):
        sink.close(status)
    (end,) = (
        message.exit.exit_code
        for message in messages_in(only_wandb_file(folder))
        if message.WhichOneof("record_type") == "exit"
    )
    assert end == code


KILLED = """
import os, signal
from pathlib import Path
from core.records import RunFolder
from server.sinks import open_sinks
from tests.unit.server.test_sinks import config_of, record

folder = RunFolder(Path({path!r}))
_, sink = open_sinks(config_of(folder, wandb=True), folder, None)
for k in range(4):
    sink.round(record(k))
    folder.append_round(record(k))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.usefixtures("wandb_offline")
def test_a_killed_wandb_run_goes_on_with_each_step_once(folder: RunFolder) -> None:
    script = KILLED.format(path=str(folder.path))
    killed = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    torn, known = only_wandb_file(folder), folder.read_json("sinks")
    cut_off_after(folder, 1)
    again = [record(k, offset=8.0) for k in (2, 3, 4)]
    run_through(config_of(folder, wandb=True), folder, again, 1)
    path = only_wandb_file(folder)
    assert path != torn
    assert folder.read_json("sinks") == known
    assert run_in(path).run_id == known["wandb"]
    expected = [record(0), record(1), *again]
    assert steps_in(path) == [(one.round, scalars_of(one, hides_counts=False)) for one in expected]
    # With this flag, an upload would be added to what the server has.
    assert not run_in(path).resume


class OnlineRun:
    """What an on-line run tells after `starting_step` steps reached the server."""

    def __init__(self, starting_step: int) -> None:
        self.starting_step = starting_step
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log(self, data: dict[str, float], step: int, commit: bool) -> None:
        assert commit, "a step that is not committed waits for the next one"
        self.logged.append((step, data))

    def finish(self, exit_code: int) -> None:
        assert exit_code == 0


@pytest.mark.parametrize("on_server", [0, 1, 3, 4])
def test_online_wandb_resumes_after_the_steps_it_holds(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, on_server: int
) -> None:
    import wandb

    run, asked = OnlineRun(0), dict[str, Any]()
    monkeypatch.setattr(wandb, "init", lambda **given: asked.update(given) or run)
    monkeypatch.setattr(
        wandb, "setup", lambda: SimpleNamespace(settings=SimpleNamespace(mode="online"))
    )
    config = config_of(folder, wandb=True)
    run_through(config, folder, [record(k) for k in range(4)], None)
    first = dict(asked)
    assert first["resume"] is None
    cut_off_after(folder, 1)
    run = OnlineRun(on_server)
    run_through(config, folder, [record(k, offset=8.0) for k in (2, 3, 4)], 1)
    assert (asked["resume"], asked["id"]) == ("allow", first["id"])
    assert [step for step, _ in run.logged] == list(range(on_server, 5))


# MLflow


@dataclass(frozen=True)
class LocalStore:
    """The store that a run made where no tracking URI was set. Making one takes seconds."""

    folder: RunFolder
    working_directory: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder.path.parent / 'mlflow.db'}"


@pytest.fixture(scope="module")
def local_store(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    path = tmp_path_factory.mktemp("mlflow")
    made = LocalStore(RunFolder.create(path / "runs", "local", {}), path / "elsewhere")
    made.working_directory.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(made.working_directory)
        run_through(config_of(made.folder, mlflow=True), made.folder, [record(0)], None)
    return made


@pytest.fixture
def store(local_store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> Any:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", local_store.uri)
    return MlflowClient(local_store.uri)


def metrics_in(store: Any, run_id: str) -> dict[str, dict[int, float]]:
    """Value by step by name, each step once."""
    found = {}
    for name in store.get_run(run_id).data.metrics:
        history = store.get_metric_history(run_id, name)
        assert len({metric.step for metric in history}) == len(history)
        found[name] = {metric.step: metric.value for metric in history}
    return found


def test_mlflow_holds_every_scalar_at_its_round(folder: RunFolder, store: Any) -> None:
    config = config_of(folder, mlflow=True)
    records = [record(0), record(1, evaluated=False), record(2)]
    run_through(config, folder, records, None)
    run_id = folder.read_json("sinks")["mlflow"]
    assert metrics_in(store, run_id) == by_name(records)
    run = store.get_run(run_id)
    assert run.data.params == {key: str(value) for key, value in config.flat().items()}
    assert run.info.run_name == folder.path.name
    assert run.info.experiment_id == store.get_experiment_by_name("figures").experiment_id


@pytest.mark.parametrize(
    ("status", "shown"),
    [("complete", "FINISHED"), ("failed", "FAILED"), ("interrupted", "KILLED")],
)
def test_mlflow_learns_how_a_run_ended(
    folder: RunFolder, store: Any, status: str, shown: str
) -> None:
    for sink in open_sinks(config_of(folder, mlflow=True), folder, None):
        sink.close(status)
    assert store.get_run(folder.read_json("sinks")["mlflow"]).info.status == shown


def test_a_resumed_mlflow_run_has_each_step_once(folder: RunFolder, store: Any) -> None:
    config = config_of(folder, mlflow=True)
    first = [record(k) for k in range(4)]
    run_through(config, folder, first, None)
    known = folder.read_json("sinks")
    cut_off_after(folder, 1)
    sinks = open_sinks(config, folder, 1)
    assert store.get_run(known["mlflow"]).info.status == "RUNNING"
    again = [record(k, offset=8.0) for k in (2, 3, 4)]
    for one in again:
        for sink in sinks:
            sink.round(one)
    assert folder.read_json("sinks") == known
    assert metrics_in(store, known["mlflow"]) == by_name([*first, again[-1]])


def test_a_sink_that_is_added_on_resuming_gets_the_rounds_before(
    folder: RunFolder, store: Any
) -> None:
    first = [record(k) for k in range(3)]
    run_through(config_of(folder), folder, first, None)
    run_through(config_of(folder, mlflow=True), folder, [record(3)], 2)
    run_id = folder.read_json("sinks")["mlflow"]
    assert metrics_in(store, run_id) == by_name([*first, record(3)])


@pytest.mark.usefixtures("wandb_offline")
def test_replayed_records_are_a_run_of_their_own_in_every_sink(
    folder: RunFolder, store: Any
) -> None:
    records = [record(0), record(1, evaluated=False), record(2)]
    for one in records:
        folder.append_round(one)
    config = config_of(folder, mlflow=True, wandb=True)
    replay(config, folder)
    assert events_in(folder) == by_name(records)
    path, ids = only_wandb_file(folder), folder.read_json("sinks")
    assert steps_in(path) == [(one.round, scalars_of(one, hides_counts=False)) for one in records]
    assert metrics_in(store, ids["mlflow"]) == by_name(records)
    run = store.get_run(ids["mlflow"])
    assert (run.info.run_name, run.info.status) == (folder.path.name, "FINISHED")
    assert run.data.params["name"] == config.name


def test_a_replay_that_is_interrupted_ends_as_such(
    folder: RunFolder, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Any, one: RoundRecord) -> None:
        raise KeyboardInterrupt

    folder.append_round(record(0))
    monkeypatch.setattr(server.sinks.MLflowSink, "round", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replay(config_of(folder, mlflow=True), folder)
    assert store.get_run(folder.read_json("sinks")["mlflow"]).info.status == "KILLED"


def test_mlflow_keeps_a_local_store_beside_the_runs(local_store: LocalStore, store: Any) -> None:
    runs = local_store.folder.path.parent
    assert {path.name for path in runs.iterdir()} == {"local", "mlflow.db"}
    assert not list(local_store.working_directory.iterdir())
    run = store.get_run(local_store.folder.read_json("sinks")["mlflow"])
    assert run.data.metrics == scalars_of(record(0), hides_counts=False)
    assert run.info.artifact_uri.startswith(runs.as_uri())


# Private runs


def test_no_sink_of_a_private_run_learns_how_clients_fare(
    folder: RunFolder, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client's accuracy is a function of its class counts; all else of a round goes out."""
    import wandb

    run = OnlineRun(0)
    monkeypatch.setattr(wandb, "init", lambda **given: run)
    monkeypatch.setattr(
        wandb, "setup", lambda: SimpleNamespace(settings=SimpleNamespace(mode="online"))
    )
    config = config_of(folder, wandb=True, mlflow=True)
    config = dataclasses.replace(config, privacy=PrivacyConfig(mechanism="dp-sgd", epsilon=4.0))
    assert config.hides_counts
    timed = dataclasses.replace(record(1), seconds={"client_sum": 1.0, "wall": 3.0})
    assert "seconds/client_sum" in scalars_of(timed, hides_counts=False)
    assert "seconds/client_sum" not in scalars_of(timed, hides_counts=True)
    folder.append_round(record(0))
    for sink in open_sinks(config, folder, 0):  # round 0 reaches W&B and MLflow as a kept one
        sink.round(record(1))
        sink.close("complete")
    expected = SCALARS_OF_EVERY_ROUND | SCALARS_OF_AN_EVALUATION - {"test/worst_client_accuracy"}
    assert set(events_in(folder)) == expected
    assert [set(data) for _, data in run.logged] == [expected, expected]
    in_mlflow = metrics_in(store, folder.read_json("sinks")["mlflow"])
    assert set(in_mlflow) == expected
    assert set(in_mlflow["test/accuracy"]) == {0, 1}


# What is missing, and what fails


def test_an_extra_that_is_missing_is_named_with_the_way_to_install_it(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(folder, wandb=True, mlflow=True)
    assert missing_sinks(config) == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    shown = [str(problem) for problem in missing_sinks(config)]
    assert [line.partition(":")[0] for line in shown] == ["sinks.wandb=true", "sinks.mlflow=true"]
    assert "pip install wandb," in shown[0]
    assert "pip install mlflow-skinny," in shown[1]
    assert missing_sinks(config_of(folder)) == []


def test_a_folder_of_that_name_is_not_the_package(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.machinery.ModuleSpec("wandb", loader=None, is_package=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    (problem,) = missing_sinks(config_of(folder, wandb=True))
    assert problem.key == "sinks.wandb"


@pytest.mark.parametrize("name", ["half%", "what?"])
def test_a_path_that_mlflow_would_misread_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = RunConfig(runs=str(tmp_path / name), sinks=SinksConfig(mlflow=True))
    (problem,) = missing_sinks(config)
    assert (problem.key, problem.value) == ("runs", config.runs)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere.db")
    assert missing_sinks(config) == []


def test_nothing_is_imported_that_is_not_configured(folder: RunFolder) -> None:
    script = f"""
import sys
from pathlib import Path
from core.config import RunConfig
from core.records import RunFolder
from server.sinks import missing_sinks, open_sinks

config = RunConfig(runs={str(folder.path.parent)!r})
before = {{"torch", "wandb", "mlflow"}} & sys.modules.keys()
assert not before, before
missing_sinks(config)
(sink,) = open_sinks(config, RunFolder(Path({str(folder.path)!r})), None)
sink.close("complete")
loaded = {{"wandb", "mlflow"}} & sys.modules.keys()
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_sink_that_fails_is_given_up_and_the_others_go_on(
    folder: RunFolder,
    store: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sinks = open_sinks(config_of(folder, mlflow=True), folder, None)
    calls = []

    def fail(self: Any, one: RoundRecord) -> None:
        calls.append(one.round)
        raise ConnectionError("no route to host\nand much more")

    monkeypatch.setattr(server.sinks.MLflowSink, "round", fail)
    for k in range(3):
        for sink in sinks:
            sink.round(record(k))
    monkeypatch.setattr(server.sinks.MLflowSink, "close", lambda self, status: 1 / 0)
    for sink in sinks:
        sink.close("complete")
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "MLflow failed in round 0" in line
    assert "ConnectionError: no route to host." in line
    assert calls == [0]
    assert list(events_in(folder)["bytes/up"]) == [0, 1, 2]


def test_a_sink_that_cannot_be_opened_ends_the_run_and_closes_the_others(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(
        server.sinks.TensorBoardSink, "close", lambda self, status: closed.append(status)
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://at/all")
    with pytest.raises(RunError, match=r"MLflow cannot be opened.*MLFLOW_TRACKING_URI"):
        open_sinks(config_of(folder, mlflow=True), folder, None)
    assert closed == ["failed"]


def test_the_event_file_of_a_run_that_goes_on_at_once_is_read_last(folder: RunFolder) -> None:
    """Process ids are told as text: 1000 comes before 999."""
    folder.events.mkdir()
    for second in (int(time.time()), int(time.time()) + 1):
        (folder.events / f"events.out.tfevents.{second:010d}.~.999.0").touch()
    before = {path.name for path in folder.events.iterdir()}
    sinks = open_sinks(config_of(folder), folder, None)
    try:
        (made,) = {path.name for path in folder.events.iterdir()} - before
        assert made > max(before)
    finally:
        for sink in sinks:
            sink.close("complete")
