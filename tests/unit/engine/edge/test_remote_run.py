import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.config import RunConfig
from core.errors import RecordError, RunError
from core.records import ClientRecord, RoundRecord, RunFolder
from engine.edge.control import NetworkRun, Node, NotReachableError
from engine.edge.deployment import Deployment, initialise
from engine.edge.remote_run import (
    LostRunError,
    RemoteRun,
    fetch,
    follow,
    recall,
    refuse_no_nodes,
    start,
)

NETWORK = NetworkRun(
    run_id="7", status="running", details="", bytes_up=10, bytes_down=20, server_s=1, client_s=2
)


class FakeControl:
    """A SuperLink whose run goes on by one step every time it is asked."""

    def __init__(self, deployment: Deployment, steps: list[Callable[[], NetworkRun]]) -> None:
        self.deployment, self.steps = deployment, steps
        self.started: list[Mapping[str, Any]] = []
        self.online: list[Node] = []
        self.printed = ""

    def nodes(self) -> list[Node]:
        return self.online

    def start(self, app: Path, run_config: Mapping[str, Any]) -> str:
        assert (app / "pyproject.toml").is_file()
        self.started.append(run_config)
        return "7"

    def run(self, run_id: str) -> NetworkRun:
        assert run_id == "7"
        return self.steps.pop(0)() if len(self.steps) > 1 else self.steps[0]()

    def log(self, run_id: str) -> str:
        return self.printed

    def command(self, *words: str) -> str:
        return " ".join(words)


class Heard:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def run_started(self, folder: Path, rounds: int, rounds_done: int) -> None:
        self.told.append(f"started {rounds} after {rounds_done}")

    def round_started(self, round: int, clients: int, steps: int) -> None: ...

    def client_replied(self, client: ClientRecord) -> None:
        self.told.append(f"client {client.partition_id}")

    def server_started(self) -> None: ...

    def round_ended(self, record: RoundRecord) -> None:
        self.told.append(f"round {record.round}")

    def run_ended(self, status: str) -> None:
        self.told.append(status)


class Clock:
    """Time that passes by waiting alone."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return initialise(tmp_path / "deploy").deployment


@pytest.fixture
def run(tmp_path: Path) -> RemoteRun:
    return RemoteRun(name="r", run_id="7", rounds=2, runs=tmp_path / "runs")


def _record(round: int) -> RoundRecord:
    clients = [ClientRecord(partition_id=1, bytes_down=1, bytes_up=1)] if round else []
    return RoundRecord(
        round=round,
        validation=None,
        test=None,
        client_scores=None,
        worst_client_score=None,
        bytes_down=1,
        bytes_up=1,
        clients=clients,
        server={},
        seconds={"wall": 1.0, "elapsed": 1.0},
    )


def _folder(deployment: Deployment, rounds: int, status: str, **more: object) -> RunFolder:
    path = deployment.server_runs / "r"
    folder = RunFolder(path)
    if not path.exists():
        folder = RunFolder.create(deployment.server_runs, "r", {"strategy": "fedavg"})
    for number in range(len(folder.read_rounds()), rounds + 1):
        folder.append_round(_record(number))
    folder.write_json("run", {"status": status, "identity": "abc", **more})
    return folder


def _follow(control: FakeControl, run: RemoteRun, heard: Heard, said: list[str]) -> Any:
    clock = Clock()
    return follow(control, run, heard, say=said.append, clock=clock, sleep=clock.sleep)  # type: ignore[arg-type]


def test_rounds_are_told_as_they_come_and_once(deployment: Deployment, run: RemoteRun) -> None:
    def first() -> NetworkRun:
        _folder(deployment, 1, "running")
        return NETWORK

    def last() -> NetworkRun:
        _folder(deployment, 2, "complete", exit_code=0)
        return replace(NETWORK, status="finished:completed")

    heard = Heard()
    ended = _follow(FakeControl(deployment, [first, lambda: NETWORK, last]), run, heard, [])
    assert heard.told == [
        *("started 2 after 0", "round 0", "client 1", "round 1", "client 1", "round 2"),
        "complete",
    ]
    assert (ended.exit_code, ended.failure) == (0, "")


def test_a_run_that_is_taken_up_again_is_not_taken_for_over(
    deployment: Deployment, tmp_path: Path
) -> None:
    _folder(deployment, 1, "failed", failure="old", exit_code=4)
    control = FakeControl(deployment, [lambda: NETWORK])
    config = RunConfig(name="r", rounds=2)
    begun = start(control, config, tmp_path / "runs", resumes=True)  # type: ignore[arg-type]
    assert control.started[0]["resume"] is True

    def last() -> NetworkRun:
        _folder(deployment, 2, "complete", exit_code=0)
        return replace(NETWORK, status="finished:completed")

    def taken_up() -> NetworkRun:
        _folder(deployment, 1, "running", resumed=[1])
        return NETWORK

    heard = Heard()
    control.steps = [lambda: NETWORK, taken_up, lambda: NETWORK, last]
    ended = _follow(control, begun, heard, [])
    assert heard.told == ["started 2 after 1", "client 1", "round 2", "complete"]
    assert ended.exit_code == 0


def test_a_failed_run_ends_with_the_code_on_record(deployment: Deployment, run: RemoteRun) -> None:
    def failed() -> NetworkRun:
        _folder(deployment, 0, "failed", failure="QuorumError: too few", exit_code=6)
        return replace(NETWORK, status="finished:failed")

    heard = Heard()
    ended = _follow(FakeControl(deployment, [failed]), run, heard, [])
    assert (ended.exit_code, ended.failure) == (6, "QuorumError: too few")
    assert heard.told[-1] == "failed"


def test_a_run_without_a_folder_tells_what_it_printed(
    deployment: Deployment, run: RemoteRun
) -> None:
    control = FakeControl(deployment, [lambda: replace(NETWORK, status="finished:failed")])
    listed = "ConfigError: 2 configuration problems:\n  - a=1: must be 2\n  - b=1: must be 3"
    for told in ("DataError: no such source", listed):
        control.printed = f"ValueError: before\n  its own\nINFO: hello\n{told}\nINFO: bye\n"
        ended = _follow(control, run, Heard(), [])
        assert (ended.exit_code, ended.failure) == (4, told)


def test_a_server_that_is_away_for_a_while_is_waited_for(
    deployment: Deployment, run: RemoteRun
) -> None:
    def away() -> NetworkRun:
        raise NotReachableError("gone")

    def back() -> NetworkRun:
        _folder(deployment, 2, "complete", exit_code=0)
        return replace(NETWORK, status="finished:completed")

    said: list[str] = []
    ended = _follow(FakeControl(deployment, [away, away, back]), run, Heard(), said)
    assert ended.exit_code == 0
    assert said == ["gone; waiting for it"]


def test_a_server_that_stays_away_is_given_up(deployment: Deployment, run: RemoteRun) -> None:
    def away() -> NetworkRun:
        raise NotReachableError("gone")

    with pytest.raises(LostRunError, match="--attach r"):
        _follow(FakeControl(deployment, [away]), run, Heard(), [])


def test_what_is_started_is_remembered(deployment: Deployment, tmp_path: Path) -> None:
    control = FakeControl(deployment, [lambda: NETWORK])
    config = RunConfig(name="r", rounds=3)
    begun = start(control, config, tmp_path / "runs")  # type: ignore[arg-type]
    assert recall(deployment, "r") == begun
    (sent,) = control.started
    assert sent["runs"] == str(deployment.server_runs)
    assert (sent["name"], sent["rounds"], sent["resume"]) == ("r", 3, False)
    with pytest.raises(RecordError, match="known: r"):
        recall(deployment, "other")


def test_a_name_that_is_taken_is_refused_before_anything_starts(
    deployment: Deployment, tmp_path: Path
) -> None:
    control = FakeControl(deployment, [lambda: NETWORK])
    _folder(deployment, 0, "complete")
    with pytest.raises(RecordError, match="exists"):
        start(control, RunConfig(name="r"), tmp_path / "runs")  # type: ignore[arg-type]
    assert not control.started


@pytest.mark.parametrize("name", ["../r", "", ".r", "a/b"])
def test_a_name_leads_out_of_no_folder(deployment: Deployment, name: str) -> None:
    with pytest.raises(RecordError, match="no name"):
        recall(deployment, name)


def test_nobody_online_says_so(deployment: Deployment) -> None:
    control = FakeControl(deployment, [])
    with pytest.raises(RunError, match="none is registered"):
        refuse_no_nodes(control)  # type: ignore[arg-type]
    control.online = [Node(node_id="1", status="offline", since="")]
    with pytest.raises(RunError, match="1 are registered"):
        refuse_no_nodes(control)  # type: ignore[arg-type]
    control.online = [Node(node_id="1", status="online", since="")]
    assert refuse_no_nodes(control) == 1  # type: ignore[arg-type]


def test_the_folder_comes_home_whole_with_the_network_s_count(
    deployment: Deployment, run: RemoteRun
) -> None:
    source = _folder(deployment, 2, "complete")
    (source.path / ".lock").touch()
    (source.path / "checkpoints").mkdir()
    (source.path / "checkpoints" / "x").write_text("x")
    home = fetch(deployment, run, NETWORK)
    assert home == run.runs / "r"
    assert sorted(path.name for path in run.runs.iterdir()) == ["r"]
    assert not (home / ".lock").exists() and (home / "checkpoints" / "x").read_text() == "x"
    told = json.loads((home / "network.json").read_text())
    assert (told["bytes_up"], told["bytes_down"]) == (10, 20)


def test_bytes_of_a_run_that_went_on_add_up(deployment: Deployment, run: RemoteRun) -> None:
    _folder(deployment, 1, "failed")
    fetch(deployment, run, NETWORK)
    fetch(deployment, run, NETWORK)  # the same part of it again
    _folder(deployment, 2, "complete")
    home = fetch(deployment, run, replace(NETWORK, run_id="8", bytes_up=5))
    told = json.loads((home / "network.json").read_text())
    assert (told["bytes_up"], len(told["runs"])) == (15, 2)
    assert len(RunFolder(home).read_rounds()) == 3


def test_another_run_of_that_name_is_left_alone(deployment: Deployment, run: RemoteRun) -> None:
    _folder(deployment, 2, "complete")
    (run.runs / "r").mkdir(parents=True)
    (run.runs / "r" / "mine").touch()
    with pytest.raises(RecordError, match="another run"):
        fetch(deployment, run, NETWORK)
    assert [path.name for path in (run.runs / "r").iterdir()] == ["mine"]
