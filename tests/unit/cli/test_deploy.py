import json
import socket
from pathlib import Path
from typing import Any

import pytest

from cli.main import app
from core.config import DataConfig
from core.errors import RunError
from data.own import DataForm, load_own
from data.sources import load_dataset
from data.video.records import Corpus
from engine.edge.compose import Service, refuse_taken_ports
from engine.edge.deployment import initialise
from tests.unit.workloads.video.corpora import write_corpus


def _tessera(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    with pytest.raises(SystemExit) as ended:
        app([*words, "--json"])
    return int(ended.value.code or 0), json.loads(capsys.readouterr().out)


def test_init_tells_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("deploy", "init", "--dir", str(tmp_path), "--host", "fl.example.org")
    code, told = _tessera(capsys, *words)
    assert code == 0
    assert told["hosts"] == ["fl.example.org"]
    assert told["new_clients"] == ["client-0", "client-1", "client-2"]
    assert told["clients"][0]["fingerprint"].startswith("SHA256:")
    assert _tessera(capsys, *words)[1]["new_clients"] == []


@pytest.mark.parametrize("command", ["up", "status", "run", "logs", "down"])
def test_without_a_deployment_each_command_names_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    code, told = _tessera(capsys, "deploy", command, "--dir", str(tmp_path))
    assert code == 5
    assert "tessera deploy init" in told["error"]["message"]


def test_keys_are_refused_as_by_tessera_run_before_the_server_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    initialise(tmp_path)
    _, ours = _tessera(capsys, "deploy", "run", "--dir", str(tmp_path), "round=3", "seed=x")
    _, theirs = _tessera(capsys, "run", "round=3", "seed=x")
    assert ours == theirs
    assert len(ours["error"]["problems"]) == 2


def test_a_superlink_that_does_not_answer_is_told_with_its_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        initialise(tmp_path, control_port=port)
        code, told = _tessera(capsys, "deploy", "status", "--dir", str(tmp_path))
    assert code == 4
    assert f"does not answer at 127.0.0.1:{port}" in told["error"]["message"]
    assert "tessera deploy up" in told["error"]["message"]


def test_images_are_dealt_as_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("data.source=digits", "partition.scheme=iid", "partition.clients=2")
    code, told = _tessera(capsys, "deploy", "deal", *words, "--out", str(tmp_path))
    assert code == 0
    places = [Path(one["file"]).relative_to(tmp_path).as_posix() for one in told["files"]]
    assert places == ["client-0/train.parquet", "client-1/train.parquet"]
    dataset = load_dataset(DataConfig(), 0)
    form = DataForm.of(dataset)
    counts = [len(load_own(Path(one["file"]), form)) for one in told["files"]]
    assert counts == [one["num_examples"] for one in told["files"]]
    assert sum(counts) == len(dataset.train)


def test_videos_are_dealt_into_a_folder_for_each_client(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    initialise(tmp_path / "deploy", clients=2)
    words = [*write_corpus(tmp_path / "corpus"), "workload=vlm", "partition.min-examples=2"]
    options = ("--dir", str(tmp_path / "deploy"))
    code, told = _tessera(capsys, "deploy", "deal", *words, *options)
    assert code == 0
    folders = [tmp_path / "deploy" / "data" / f"client-{k}" for k in range(2)]
    assert [Path(one["file"]) for one in told["files"]] == folders
    dealt = [Corpus.read(folder).videos for folder in folders]
    assert [len(videos) for videos in dealt] == [one["num_examples"] for one in told["files"]]
    train = Corpus.read(tmp_path / "corpus").of_split("train")
    assert {v.name for videos in dealt for v in videos} == {video.name for video in train}


def test_a_workload_whose_clients_bring_nothing_deals_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from core.workload import Workload\n"
        "class Mine(Workload):\n"
        "    name, scores = 'mine', ()\n"
        "    load = classmethod(lambda cls, config: None)\n"
        "    make_model = examples = objective = evaluate = lambda self: None\n"
    )
    words = (f"workload={file}:Mine", "--out", str(tmp_path / "out"))
    code, told = _tessera(capsys, "deploy", "deal", *words)
    assert code == 2 and not (tmp_path / "out").exists()
    assert "does not say how clients' own are read" in str(told["error"])


def test_no_docker_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    initialise(tmp_path / "d")
    monkeypatch.setenv("PATH", str(tmp_path))
    code, told = _tessera(capsys, "deploy", "down", "--dir", str(tmp_path / "d"))
    assert code == 4
    assert "install Docker Engine" in told["error"]["message"]


def test_a_port_that_is_taken_is_told_with_the_way_out(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        deployment = initialise(tmp_path, port=taken.getsockname()[1]).deployment
        with pytest.raises(RunError, match="--port N"):
            refuse_taken_ports(deployment, [])
        ours = Service(name="gateway", container="1", state="running", status="Up")
        refuse_taken_ports(deployment, [ours])
