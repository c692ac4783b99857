"""Clients that bring their own videos, over a network in one process."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from client.place import Place
from core.config import parse_assignments
from core.errors import ConfigError, QuorumError
from core.records import RunFolder
from core.workload import OwnData
from data.video.records import Corpus
from experiments.run import run as simulate
from pairing.configuration import parse_config
from server.preparation import prepare
from server.progress import PlainProgress
from tests.integration.network_grid import Node
from tests.integration.test_network import Network, node_of, own_keys
from tests.unit.workloads.video.corpora import write_corpus

TINY: Mapping[str, object] = MappingProxyType(
    {
        "workload": "vlm",
        "strategy": "fedavg",
        "rounds": 2,
        "partition.clients": 3,
        "partition.scheme": "dirichlet",
        "partition.alpha": 1.0,
        "partition.min-examples": 2,
        "train.optimizer": "adam",
        "train.learning-rate": 0.001,
        "train.batch-size": 4,
        "engine.kind": "in-process",
        "vlm.width": 16,
        "vlm.layers": 1,
        "vlm.heads": 2,
        "vlm.feedforward": 16,
    }
)


def network(tmp_path: Path, **more: object) -> tuple[dict[str, object], Network]:
    """A simulation's keys, and a network whose clients bring what these deal them."""
    words = write_corpus(tmp_path / "corpus", train=18, validation=4, test=4)
    keys = {k.replace("__", ".").replace("_", "-"): value for k, value in more.items()}
    dealt = {**TINY, **parse_assignments(words), **keys}
    preparation = prepare(parse_config(dealt))
    assert isinstance(preparation.workload, OwnData)
    shares = preparation.workload.write_shares(preparation.partition.clients, tmp_path / "data")
    nodes = {}
    for k, path in enumerate(shares):
        config = {
            "partition-id": k,
            "data": str(path),
            "state": str(tmp_path / f"state-{k}"),
            "key": f"SHA256:key-of-{k}",
        }
        nodes[1000 + 17 * (len(shares) - k)] = Node(config)
    return dealt, Network(tmp_path, own_keys(dealt), nodes)


def simulated(tmp_path: Path, keys: Mapping[str, object]) -> RunFolder:
    config = parse_config({**keys, "runs": str(tmp_path / "simulated"), "name": "run"})
    return RunFolder(simulate(config, PlainProgress()))


@pytest.mark.parametrize("tasks", ["pretraining", "retrieval;segmentation;captioning"])
def test_clients_with_their_own_videos_end_with_the_weights_of_a_simulation(
    tmp_path: Path, tasks: str
) -> None:
    dealt, here = network(tmp_path, vlm__tasks=tasks)
    folder = simulated(tmp_path, dealt)
    here.run()
    expected, found = load_file(folder.checkpoint(2)), here.weights(2)
    assert {n for n in expected if n.startswith("weights")} != set()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), err_msg=name)
    for one, other in zip(folder.read_rounds(), here.records(), strict=True):
        assert one.test == other.test and one.server == other.server
        assert one.bytes_down == other.bytes_down and one.bytes_up == other.bytes_up


def test_what_each_client_holds_is_on_record(tmp_path: Path) -> None:
    dealt, here = network(tmp_path)
    here.run()
    theirs = json.loads((here.run_folder.path / "partition.json").read_text())
    expected = prepare(parse_config(dealt)).partition
    np.testing.assert_array_equal(theirs["class_counts"], expected.class_counts)


def test_a_client_looks_at_no_file_that_the_server_names(tmp_path: Path) -> None:
    """Neither its corpus, its features, its BERT, the weights it starts from, nor its cache."""
    _, here = network(tmp_path)
    start = tmp_path / "start.safetensors"
    named = {
        "start-from": str(start),
        "video.cache": str(tmp_path / "servers-cache"),
        "vlm.bert": str(tmp_path / "bert"),
    }
    flat = parse_config({**here.run_config, **named}).flat()
    place = Place(0, data="/mine", state=str(tmp_path / "state-0"))
    place.refuse_foreign_files(flat)
    settled = place.settled(parse_config(flat))
    assert {k: v for k, v in settled.flat().items() if str(tmp_path) in str(v)} == {
        "video.cache": str(tmp_path / "state-0" / "cache"),
        "runs": str(tmp_path / "server"),
    }
    before = settled.identity()
    start.write_bytes(b"here now")
    assert place.settled(parse_config(flat)).identity() == before


def test_weights_to_start_from_come_from_the_server(tmp_path: Path) -> None:
    dealt, here = network(tmp_path)
    start = simulated(tmp_path, {**dealt, "rounds": 1}).path.rename(tmp_path / "start")
    drawn = simulated(tmp_path, dealt).path.rename(tmp_path / "drawn")
    folder = simulated(tmp_path, {**dealt, "start-from": str(start)})
    here.keys["start-from"] = str(start)
    here.run()
    found, expected = here.weights(2), load_file(folder.checkpoint(2))
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), err_msg=name)
    other = load_file(RunFolder(drawn).checkpoint(2))
    assert any(not torch.equal(other[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("video.source", "shapestory:/etc"),
        ("video.encoder", "given:/etc"),
        ("vlm.bert", "/etc"),
    ],
)
def test_where_videos_are_dealt_a_server_names_no_file_of_a_client(
    tmp_path: Path, key: str, value: str
) -> None:
    place = Place(0, state=str(tmp_path / "state"))
    run_config = {"partition.scheme": "iid", "workload": "vlm", key: value}
    with pytest.raises(ConfigError, match=f"{key}.*a server may not"):
        place.refuse_foreign_files(run_config)
    # Defaults of keys that the run does not read come with every run.
    place.refuse_foreign_files({**run_config, "workload": "classification"})
    place.refuse_foreign_files({**run_config, "partition.scheme": "own"})


def test_videos_that_the_federation_cannot_count_are_refused_when_joining(tmp_path: Path) -> None:
    _, here = network(tmp_path)
    root = Path(str(node_of(here, 1).config["data"]))
    corpus = Corpus.read(root)
    odd = dataclasses.replace(corpus.videos[0], topic="cooking")
    dataclasses.replace(corpus, videos=(odd, *corpus.videos[1:])).write()
    with pytest.raises(QuorumError, match=r"topics 'cooking', which the federation does not have"):
        here.run()
    assert not list((tmp_path / "server").rglob("round-*"))


def test_a_client_without_videos_is_refused_when_joining(tmp_path: Path) -> None:
    _, here = network(tmp_path)
    node = node_of(here, 1)
    node.config = {**node.config, "data": str(tmp_path / "nothing")}
    with pytest.raises(QuorumError, match=r"holds no corpus\.json"):
        here.run()
    node.config = {name: value for name, value in node.config.items() if name != "data"}
    with pytest.raises(QuorumError, match="was started without videos of its own"):
        here.run(name="again")


def test_too_few_videos_are_told_as_videos(tmp_path: Path) -> None:
    _, here = network(tmp_path)
    with pytest.raises(QuorumError, match=r"holds \d+ videos, below partition.min-examples=17"):
        here.run(**{"partition.min-examples": 17})


def test_models_that_only_clients_could_judge_are_refused(tmp_path: Path) -> None:
    _, here = network(tmp_path)
    for keys in (
        {"strategy": "local"},
        {"groups.personal": "heads", "vlm.tasks": "segmentation"},
    ):
        with pytest.raises(ConfigError, match="have no videos held out to judge them by"):
            prepare(parse_config({**here.run_config, **keys}))


def test_a_client_makes_its_model_while_the_servers_corpus_is_away(tmp_path: Path) -> None:
    _, here = network(tmp_path)
    preparation = prepare(parse_config(dict(here.run_config)))
    workload = preparation.workload
    assert isinstance(workload, OwnData)
    text = workload.form()
    shutil.move(tmp_path / "corpus", tmp_path / "away")
    place = Place.of(node_of(here, 2).config)
    config = place.settled(parse_config(dict(here.run_config)))
    found = type(workload).load_own(config, place.own_data("videos"), text)
    model = type(workload)(config, found, torch.device("cpu")).build_model(1)
    for name, value in workload.build_model(1).state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
