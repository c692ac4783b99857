"""Clients on machines of their own, over a network in one process: what they bring, what they keep,
and what becomes of a run when they or their replies are lost."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from PIL import Image
from safetensors.torch import load_file

from client.app import forget_run
from client.place import Place
from core.config import RunConfig
from core.errors import ConfigError, QuorumError, RunError
from core.installation import describe_installation, differences
from core.records import RoundRecord, RunFolder
from core.wire import Record
from data.dataset import image_dataset
from data.export import write_shares
from data.partition import Partition
from engine.flwr_seam import run_identity
from experiments.run import run as simulate
from pairing.configuration import parse_config
from server.app import make_server_app
from server.preparation import prepare
from server.progress import PlainProgress
from strategies.flower import from_flower, to_flower
from tests.conftest import tiny_keys
from tests.integration.meltr import MELTR
from tests.integration.network_grid import NetworkGrid, Node

DEALT = ("partition.scheme", "partition.alpha")


@dataclasses.dataclass
class Network:
    """Three clients with images and state of their own, and a server's folder."""

    folder: Path
    keys: dict[str, object]
    nodes: dict[int, Node]

    @property
    def run_config(self) -> Mapping[str, object]:
        return parse_config(
            {**self.keys, "runs": str(self.folder / "server"), "name": "run"}
        ).flat()

    def run(self, **changes: object) -> NetworkGrid:
        """One run from start to end."""
        flat = parse_config({**self.run_config, **changes}).flat()
        with run_identity(77) as identity:
            grid = NetworkGrid(flat, self.nodes)
            grid.set_run(identity)
            return self.go(grid)

    def go(self, grid: NetworkGrid) -> NetworkGrid:
        app = make_server_app(PlainProgress())
        flat = dict(grid.run_config)
        try:
            app(grid, Context(77, SUPERLINK_NODE_ID, {}, RecordDict(), flat))  # type: ignore[arg-type]
        finally:
            forget_run()
        return grid

    @property
    def run_folder(self) -> RunFolder:
        return RunFolder(self.folder / "server" / "run")

    def records(self) -> list[RoundRecord]:
        return self.run_folder.read_rounds()

    def outcomes(self, round: int) -> dict[int, str]:
        return {c.partition_id: c.outcome for c in self.records()[round].clients}

    def weights(self, round: int) -> dict[str, np.ndarray]:
        tensors = load_file(self.run_folder.checkpoint(round))
        return {name: tensor.numpy() for name, tensor in tensors.items()}


def own_keys(keys: Mapping[str, object]) -> dict[str, object]:
    """The same run, of clients that bring the images which `keys` would deal them."""
    return {**{k: v for k, v in keys.items() if k not in DEALT}, "partition.scheme": "own"}


def network(
    tmp_path: Path,
    strategy: str = "fedavg",
    more: Mapping[str, object] = MappingProxyType({}),
    **keys: object,
) -> Network:
    dealt = {**tiny_keys(strategy, **keys), **more}
    preparation = prepare(parse_config(dealt))
    shares = write_shares(
        image_dataset(preparation.workload.dataset),
        preparation.partition_without.clients,
        tmp_path / "data",
    )
    nodes = {}
    for k, path in enumerate(shares):
        config = {
            "partition-id": k,
            "data": str(path),
            "state": str(tmp_path / f"state-{k}"),
            "key": f"SHA256:key-of-{k}",
        }
        nodes[1000 + 17 * (len(shares) - k)] = Node(config)
    return Network(tmp_path, own_keys(dealt), nodes)


def node_of(network: Network, partition_id: int) -> Node:
    return next(n for n in network.nodes.values() if n.config["partition-id"] == partition_id)


@pytest.mark.parametrize("strategy", ["fedavg", "feddm", "scaffold"])
def test_clients_with_their_own_images_end_with_the_weights_of_a_simulation(
    tmp_path: Path, strategy: str
) -> None:
    config: RunConfig = parse_config(
        {**tiny_keys(strategy), "runs": str(tmp_path / "simulated"), "name": "run"}
    )
    folder = RunFolder(simulate(config, PlainProgress()))
    here = network(tmp_path, strategy)
    here.run()
    expected = load_file(folder.checkpoint(2))
    found = here.weights(2)
    assert {n for n in expected if n.startswith("weights")} != set()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), err_msg=name)
    simulated, real = folder.read_rounds(), here.records()
    for one, other in zip(simulated, real, strict=True):
        assert one.test == other.test and one.client_scores == other.client_scores
        assert one.bytes_down == other.bytes_down and one.bytes_up == other.bytes_up


def test_a_workload_of_its_own_objective_runs_on_a_network_as_in_a_simulation(
    tmp_path: Path,
) -> None:
    """MELTR with a learned loss of each client's own, which never leaves the client's folder."""
    meltr = {**MELTR, "groups.personal": "phi"}
    keys = {**tiny_keys("fedavg"), **meltr, "runs": str(tmp_path / "simulated"), "name": "run"}
    folder = RunFolder(simulate(parse_config(keys), PlainProgress()))
    here = network(tmp_path, "fedavg", more=meltr)
    here.run()
    found = here.weights(2)
    for name, tensor in load_file(folder.checkpoint(2)).items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), err_msg=name)
    simulated, real = folder.read_rounds(), here.records()
    assert [record.server for record in simulated] == [record.server for record in real]
    for k in range(3):
        (kept,) = (tmp_path / f"state-{k}").rglob("round-00002.safetensors")
        (mine,) = folder.clients.glob(f"partition-{k:05d}/round-00002.safetensors")
        ours, theirs = load_file(kept), load_file(mine)
        assert {name.partition("/")[0] for name in ours} == {"personal"}
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_client_keeps_all_it_keeps_in_its_own_folder(tmp_path: Path) -> None:
    here = network(tmp_path, "scaffold")
    here.run()
    assert not here.run_folder.clients.exists()
    for k in range(3):
        state = tmp_path / f"state-{k}"
        kept = [p.relative_to(state).parts[:3] for p in state.rglob("*") if p.is_file()]
        assert ("runs", "run", "clients") in kept
        identity = json.loads((state / "identity.json").read_text())
        assert identity["partition_id"] == k and identity["key"] == f"SHA256:key-of-{k}"


def test_two_nodes_with_one_partition_are_refused_and_both_named(tmp_path: Path) -> None:
    here = network(tmp_path)
    twin = {**node_of(here, 1).config, "state": str(tmp_path / "twin"), "key": "SHA256:twin"}
    here.nodes[4242] = Node(twin)
    with pytest.raises(
        RunError, match=r"two nodes hold partition 1.*key-of-1.*SHA256:twin"
    ) as told:
        here.run()
    assert "4242" in str(told.value)
    assert here.run_folder.read_json("run")["exit_code"] == RunError.exit_code


def test_a_run_without_enough_clients_ends_within_its_limit(tmp_path: Path) -> None:
    here = network(tmp_path)
    node_of(here, 1).is_present = False
    with pytest.raises(QuorumError, match=r"2 of partition.clients=3 clients joined.*partition 1 "):
        here.run(**{"engine.join-timeout-s": 0.5})
    ended = here.run_folder.read_json("run")
    assert (ended["status"], ended["exit_code"]) == ("failed", 6)
    assert here.records() == []


def trained(grid_nodes: list[Message]) -> list[Message]:
    return [m for m in grid_nodes if m.metadata.message_type == "train"]


@pytest.mark.parametrize("what", ["no data", "other classes", "other size", "nothing there"])
def test_unfit_images_are_refused_before_anybody_trains(tmp_path: Path, what: str) -> None:
    here = network(tmp_path)
    node, sent = node_of(here, 2), list[Message]()
    config = dict(node.config)
    if what == "no data":
        del config["data"]
        expected = r"started without images of its own; start it with --data DIR"
    elif what == "nothing there":
        config["data"] = str(tmp_path / "nowhere")
        expected = r"there is no folder or parquet file"
    else:
        folder = tmp_path / "unfit" / ("cat" if what == "other classes" else "3")
        folder.mkdir(parents=True)
        side = 8 if what == "other classes" else 9
        for n in range(12):
            Image.fromarray(np.full((side, side), n, np.uint8)).save(folder / f"{n}.png")
        config["data"] = str(folder.parent)
        expected = r"'cat'.*classes are '0', '1'" if side == 8 else r"1x9x9.*1x8x8"
    node.config = config
    with pytest.raises(QuorumError, match=expected):
        grid_run(here, sent)
    assert sent and trained(sent) == []


def grid_run(here: Network, sent: list[Message], **changes: object) -> None:
    """A run whose messages are kept even where it fails."""
    flat = parse_config({**here.run_config, **changes}).flat()
    with run_identity(77) as identity:
        grid = NetworkGrid(flat, here.nodes, sent=sent)
        grid.set_run(identity)
        here.go(grid)


def test_versions_that_differ_are_refused_and_both_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, sent = network(tmp_path), list[Message]()
    there = {**describe_installation(), "torch": "1.0.0", "Tessera's code": "0123456789ab"}
    monkeypatch.setattr("client.app.describe_installation", lambda: there)
    pattern = (
        r"torch is 1\.0\.0 there and \d+\.\d+\.\d+.* here; Tessera's code is 0123456789ab there"
    )
    with pytest.raises(QuorumError, match=pattern):
        grid_run(here, sent)
    assert trained(sent) == []


@pytest.mark.parametrize("what", ["nested", "many images", "another partition"])
def test_what_one_node_says_of_itself_does_not_end_a_run(tmp_path: Path, what: str) -> None:
    """It was away, is asked anew who it is, and makes no sense."""
    here = network(tmp_path, rounds=4)
    node = node_of(here, 1)

    def lie(node_id: int, request: Message, reply: Message) -> list[Message | Exception]:
        if request.metadata.message_type != "query":
            return [reply]
        told = from_flower(reply.content)
        arrays, metrics, settings = dict(told.arrays), dict(told.metrics), dict(told.settings)
        if what == "nested":
            settings["installation"] = "[" * 4000
        elif what == "many images":
            arrays["class_counts"] = np.full_like(arrays["class_counts"], 2**36)
        else:
            metrics["partition_id"] = 2
        forged = Message(to_flower(Record(arrays, metrics, settings)), reply_to=request)
        forged.metadata.__dict__["_src_node_id"] = node_id
        return [forged]

    def before_push(messages: list[Message]) -> None:
        if messages and in_round(1, messages[0]):
            node.is_present = False
            node_of(here, 2).is_present = what != "another partition"
        if messages and in_round(2, messages[0]):
            node.is_present, node.fault = True, lie

    with_faults(here, before_push)
    assert [here.outcomes(n)[1] for n in (1, 2, 3, 4)] == ["failed"] * 4
    expected = {"nested": "does not tell what is installed", "many images": "a client may have"}
    failure = str(here.records()[4].clients[1].failure)
    assert expected.get(what, "holds partition 1 in this run, and says 2") in failure


def test_a_stranger_that_is_there_first_does_not_keep_others_from_joining(tmp_path: Path) -> None:
    here = network(tmp_path)
    later = {i: n for i, n in here.nodes.items() if n.config["partition-id"] != 1}
    for node_id in later:
        del here.nodes[node_id]

    def lie(node_id: int, request: Message, reply: Message) -> list[Message | Exception]:
        here.nodes.update(later)
        told = from_flower(reply.content)
        settings = {**told.settings, "installation": "[" * 4000}
        forged = Message(to_flower(Record(told.arrays, told.metrics, settings)), reply_to=request)
        forged.metadata.__dict__["_src_node_id"] = node_id
        return [forged]

    stranger = {**node_of(here, 1).config, "state": str(tmp_path / "s"), "key": "SHA256:stranger"}
    here.nodes[4242] = Node(stranger, fault=lie)
    here.run()
    assert here.outcomes(2) == dict.fromkeys(range(3), "counted")


def test_patch_releases_and_builds_are_no_difference() -> None:
    here = {"Python": "3.11.2", "torch": "2.9.1", "flwr": "1.41.0"}
    assert differences({"Python": "3.11.9", "torch": "2.9.1+cpu", "flwr": "1.41.0"}, here) == []
    assert len(differences({"Python": "3.12.2", "torch": "2.9.0", "flwr": "1.41.0"}, here)) == 2


def in_round(number: int, message: Message) -> bool:
    return message.metadata.group_id == str(number)


def huge(message: Message) -> Message:
    """A reply of the right form but for one array of forty million numbers."""
    arrays = ArrayRecord({"huge": Array(np.zeros(4 * 10**7, np.float32))})
    return Message(to_flower(Record(), arrays), reply_to=message)


@pytest.mark.parametrize("what", ["malformed", "oversize", "empty"])
def test_a_hostile_reply_is_refused_and_the_others_go_on(tmp_path: Path, what: str) -> None:
    here = network(tmp_path)

    def fault(node_id: int, request: Message, reply: Message) -> list[Message | Exception]:
        if not in_round(1, request):
            return [reply]
        if what == "malformed":
            return [ValueError("object hash mismatch")]
        bad = huge(request) if what == "oversize" else Message(RecordDict({}), reply_to=request)
        bad.metadata.__dict__["_src_node_id"] = node_id
        return [bad]

    node_of(here, 0).fault = fault
    here.run()
    assert here.outcomes(1) == {0: "refused", 1: "counted", 2: "counted"}
    assert here.outcomes(2) == dict.fromkeys(range(3), "counted")
    refused = here.records()[1].clients[0].failure
    wanted = {"malformed": "cannot be read", "oversize": "at most", "empty": "no ArrayRecord"}
    assert refused is not None and wanted[what] in refused


def test_a_reply_that_comes_twice_counts_once(tmp_path: Path) -> None:
    once, twice = network(tmp_path / "once"), network(tmp_path / "twice")
    once.run()
    for node in twice.nodes.values():
        node.fault = lambda node_id, request, reply: [reply, reply]
    twice.run()
    for name, array in once.weights(2).items():
        np.testing.assert_array_equal(twice.weights(2)[name], array)
    assert twice.outcomes(2) == dict.fromkeys(range(3), "counted")


def test_a_late_reply_is_never_counted_in_a_later_round(tmp_path: Path) -> None:
    """What a client made for round 1 arrives in round 2, in the place of the reply to round 2."""
    here, without = network(tmp_path / "late"), network(tmp_path / "without")
    held: list[Message] = []

    def late(node_id: int, request: Message, reply: Message) -> list[Message | Exception]:
        if request.metadata.message_type != "train":
            return [reply]
        if in_round(1, request):
            held.append(reply)
            return []
        return [*held]

    def never(node_id: int, request: Message, reply: Message) -> list[Message | Exception]:
        return [] if request.metadata.message_type == "train" else [reply]

    node_of(here, 1).fault, node_of(without, 1).fault = late, never
    here.run(**{"engine.round-timeout-s": 3.0})
    without.run(**{"engine.round-timeout-s": 3.0})
    assert held
    assert here.outcomes(1) == {0: "counted", 1: "late", 2: "counted"}
    assert here.outcomes(2) == {0: "counted", 1: "refused", 2: "counted"}
    assert "another request" in str(here.records()[2].clients[1].failure)
    for name, array in without.weights(2).items():
        np.testing.assert_array_equal(here.weights(2)[name], array)


def test_a_request_lost_with_its_process_does_not_hold_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.replies.PROBE_S", 0.5)
    here = network(tmp_path)
    node_of(here, 2).loses_requests = True
    here.run()  # without it, until engine.round-timeout-s, an hour
    assert here.outcomes(1) == {0: "counted", 1: "counted", 2: "failed"}
    assert "started anew" in str(here.records()[1].clients[2].failure)


def test_a_sign_of_life_that_names_another_request_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is inside a message is a node's to write; the SuperLink does not compare it."""
    monkeypatch.setattr("server.replies.PROBE_S", 0.5)
    here = network(tmp_path)

    def forge(node_id: int, request: Message, reply: Message) -> list[Message | Exception]:
        if request.metadata.message_type == "query":
            return [reply]
        if request.metadata.message_type == "train":
            return []
        reply.metadata.__dict__["_reply_to_message_id"] = "request-1"
        return [reply]

    node_of(here, 2).fault = forge
    here.run()
    for number in (1, 2):
        assert here.outcomes(number) == {0: "counted", 1: "counted", 2: "failed"}


def test_a_node_that_is_unregistered_before_its_request_goes_out_has_failed(tmp_path: Path) -> None:
    here = network(tmp_path)

    def before_push(messages: list[Message]) -> None:
        if messages and in_round(1, messages[0]):
            here.nodes.pop(next(i for i, n in here.nodes.items() if n.config["partition-id"] == 1))

    with_faults(here, before_push)
    assert [here.outcomes(n)[1] for n in (1, 2)] == ["failed", "failed"]
    assert "not registered any more" in str(here.records()[1].clients[1].failure)


def test_a_client_that_works_long_is_not_taken_for_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sign of life comes after its reply, and the reply counts though it was seen second."""
    monkeypatch.setattr("server.replies.PROBE_S", 0.0)
    here = network(tmp_path)
    kept: dict[str, Message] = {}

    def slow(node_id: int, request: Message, reply: Message) -> list[Message | Exception]:
        if request.metadata.message_type == "train":
            kept["reply"] = reply
            return []
        if request.metadata.message_type == "query.alive" and "reply" in kept:
            grid.replies[kept["reply"].metadata.reply_to_message_id].append(kept.pop("reply"))
        return [reply]

    node_of(here, 0).fault = slow
    flat = parse_config(dict(here.run_config)).flat()
    with run_identity(77) as identity:
        grid = NetworkGrid(flat, here.nodes)
        grid.set_run(identity)
        here.go(grid)
    assert here.outcomes(1) == here.outcomes(2) == dict.fromkeys(range(3), "counted")


def vanish_in(here: Network, number: int, *partition_ids: int) -> Callable[[list[Message]], None]:
    def before_push(messages: list[Message]) -> None:
        if messages and in_round(number, messages[0]):
            for k in partition_ids:
                node_of(here, k).is_present = False

    return before_push


def test_a_node_that_goes_is_a_failure_and_one_that_comes_back_takes_part(tmp_path: Path) -> None:
    """Without keys Flower gives a node that comes back another id."""
    here = network(tmp_path, rounds=4)
    for node in here.nodes.values():
        node.config = {k: v for k, v in node.config.items() if k != "key"}
    config = dict(node_of(here, 1).config)

    def before_push(messages: list[Message]) -> None:
        if messages and in_round(1, messages[0]):
            node_of(here, 1).is_present = False
        if messages and in_round(3, messages[0]):
            del here.nodes[next(i for i, n in here.nodes.items() if n.config == config)]
            here.nodes[31337] = Node(config)

    with_faults(here, before_push)
    assert [here.outcomes(n)[1] for n in range(1, 5)] == ["failed", "failed", "failed", "counted"]
    failures = [here.records()[n].clients[1].failure or "" for n in (1, 2)]
    assert "Unavailable" in failures[0] and "no node holds" in failures[1]


def with_faults(here: Network, before_push: Callable[[list[Message]], None]) -> None:
    flat = parse_config(dict(here.run_config)).flat()
    with run_identity(77) as identity:
        grid = NetworkGrid(flat, here.nodes, before_push=before_push)
        grid.set_run(identity)
        here.go(grid)


def test_another_key_does_not_take_a_partition_over(tmp_path: Path) -> None:
    here = network(tmp_path, rounds=3)
    other = {**node_of(here, 1).config, "state": str(tmp_path / "other"), "key": "SHA256:other"}

    def before_push(messages: list[Message]) -> None:
        if messages and in_round(1, messages[0]):
            node_of(here, 1).is_present = False
            here.nodes[31337] = Node(other)

    with_faults(here, before_push)
    assert [here.outcomes(n)[1] for n in (1, 2, 3)] == ["failed"] * 3


def test_a_round_below_its_quorum_changes_nothing_and_ends_the_run(tmp_path: Path) -> None:
    here = network(tmp_path, rounds=6, cohort__quorum=2)
    with pytest.raises(QuorumError, match=r"3 rounds in a row without a quorum.*1 of the replies"):
        with_faults(here, vanish_in(here, 2, 0, 1))
    assert here.outcomes(1) == dict.fromkeys(range(3), "counted")
    assert [here.outcomes(n)[2] for n in (2, 3, 4)] == ["refused"] * 3
    assert len(here.records()) == 5
    assert here.records()[4].test == here.records()[1].test
    assert here.run_folder.read_json("run")["exit_code"] == 6


def test_a_server_that_is_killed_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, cut = (network(tmp_path / n, "scaffold", rounds=4) for n in ("whole", "cut"))
    whole.run()

    def kill(messages: list[Message]) -> None:
        if messages and in_round(3, messages[0]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with_faults(cut, kill)
    assert cut.run_folder.read_json("run")["exit_code"] == 130
    cut.nodes = {7 * node_id: node for node_id, node in cut.nodes.items()}  # a new SuperLink
    cut.run(resume=True)
    assert len(cut.records()) == 5
    for name, array in whole.weights(4).items():
        np.testing.assert_array_equal(cut.weights(4)[name], array)


def test_a_run_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    here = network(tmp_path)

    def kill(messages: list[Message]) -> None:
        if messages and in_round(2, messages[0]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with_faults(here, kill)
    mine, theirs = (Path(str(node_of(here, k).config["data"])) for k in (0, 1))
    mine.write_bytes(theirs.read_bytes())
    with pytest.raises(QuorumError, match=r"client 0's images are not those with which it joined"):
        here.run(resume=True)
    shutil.rmtree(tmp_path / "state-0")  # the server knows as well
    with pytest.raises(QuorumError, match=r"partition 0 belongs to.*images.* differ"):
        here.run(resume=True)


PRIVATE = {"privacy.mechanism": "dp-sgd", "privacy.epsilon": 8.0, "privacy.steps": 2}


def private_network(tmp_path: Path, **keys: object) -> Network:
    return network(tmp_path, more={**PRIVATE, **keys})


def spent(tmp_path: Path, k: int) -> list[dict[str, object]]:
    (path,) = (tmp_path / f"state-{k}" / "ledgers").glob("partition-*.json")
    charges: list[dict[str, object]] = json.loads(path.read_text())["charges"]
    return charges


def test_a_private_client_tells_no_counts_and_keeps_its_own_ledger(tmp_path: Path) -> None:
    here = private_network(tmp_path)
    here.run()
    members = here.run_folder.read_json("nodes")
    assert all(m["class_counts"] is None and m["data_sha256"] == "" for m in members.values())
    assert Partition.read(here.run_folder.partition).class_counts.sum() == 0
    assert all(a is None for a in here.records()[2].client_scores or [0.0])
    for k in range(3):
        assert [c["round"] for c in spent(tmp_path, k)] == [1, 2]
    # What the server notes, before it asks, comes to the same.
    noted = sorted((here.run_folder.ledgers).glob("partition-*.json"))
    assert len(noted) == 3
    told = here.run_folder.read_json("privacy")["spent"]["epsilon"]
    assert told == pytest.approx(8.0, abs=0.01)


def test_what_runs_cost_a_client_adds_up_over_runs(tmp_path: Path) -> None:
    here = private_network(tmp_path)
    here.run()
    with pytest.raises(RunError, match=r"no budget left: round 2 would bring it to epsilon"):
        here.run(name="again")
    assert [c["round"] for c in spent(tmp_path, 0)] == [1, 2]
    # Other images under the same key do not start anew.
    first, other = (Path(str(node_of(here, k).config["data"])) for k in (0, 1))
    first.write_bytes(other.read_bytes())
    with pytest.raises(RunError, match=r"no budget left"):
        here.run(name="changed")


def test_a_clients_own_limit_holds_whatever_the_run_says(tmp_path: Path) -> None:
    here = private_network(tmp_path, **{"privacy.epsilon": 8.0})
    for node in here.nodes.values():
        node.config = {**node.config, "max-epsilon": 1}
    with pytest.raises(RunError, match=r"of the client's own max-epsilon=1 "):
        here.run()
    open_run = network(tmp_path / "open")
    for node in open_run.nodes.values():
        node.config = {**node.config, "max-epsilon": 1}
    with pytest.raises(QuorumError, match=r"takes part only in runs whose clients noise their own"):
        open_run.run()


def test_of_a_private_clients_images_no_refusal_tells_anything(tmp_path: Path) -> None:
    here = private_network(tmp_path)
    folder = tmp_path / "secret-class-folder" / "a-secret-class"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "0.png")
    node_of(here, 1).config = {**node_of(here, 1).config, "data": str(folder.parent)}
    with pytest.raises(QuorumError) as told:
        here.run()
    assert "the client failed" in str(told.value) and "secret" not in str(told.value)
    own = tmp_path / "state-1" / "runs" / "run" / "clients" / "partition-00001.failure.txt"
    assert "a-secret-class" in own.read_text()


def test_of_images_that_a_private_client_loads_anew_no_refusal_tells_anything(
    tmp_path: Path,
) -> None:
    """A process that is started in the middle of a run reads its images for an update."""
    here = private_network(tmp_path)
    place = Path(str(node_of(here, 1).config["data"]))
    secret = tmp_path / "secret-class-folder" / "a-secret-class"
    secret.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(secret / "0.png")

    def before_push(messages: list[Message]) -> None:
        if messages and in_round(1, messages[0]):
            place.unlink(missing_ok=True)
            shutil.copytree(secret.parent, place, dirs_exist_ok=True)

    with_faults(here, before_push)
    assert [here.outcomes(n)[1] for n in (1, 2)] == ["failed", "failed"]
    failure = str(here.records()[1].clients[1].failure)
    assert "the client failed" in failure
    assert not any(word in failure for word in ("secret", "classes", str(place)))


def test_state_of_another_key_or_partition_is_refused(tmp_path: Path) -> None:
    here = network(tmp_path)
    here.run()
    node_of(here, 0).config = {**node_of(here, 0).config, "key": "SHA256:new"}
    with pytest.raises(QuorumError, match=r"state of partition 0 and key SHA256:key-of-0"):
        here.run(name="again")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.name", "{folder}/evil.py:build"),
        ("strategy", "{folder}/evil.py:Evil"),
        ("data.source", "folder:/etc"),
        ("data.source", "parquet:/etc"),
        ("data.source", "{folder}/evil.py:load"),
        ("partition.file", "/etc/passwd"),
    ],
)
def test_a_server_names_no_file_of_a_client(tmp_path: Path, key: str, value: str) -> None:
    """And nothing that it names is run."""
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w')")
    place = Place(0, state=str(tmp_path / "state"))
    run_config = {"partition.scheme": "iid", key: value.format(folder=tmp_path)}
    with pytest.raises(ConfigError, match="a server may not"):
        place.refuse_foreign_files(run_config)
    assert not canary.exists()


def test_of_the_servers_own_images_a_client_reads_nothing(tmp_path: Path) -> None:
    """Neither the file that makes them, of which a run's identity is made, nor their folder."""
    file = tmp_path / "images.py"
    named = parse_config({"partition.scheme": "own", "data.source": f"{file}:load"})
    place = Place(0, state=str(tmp_path / "state"))
    before = place.settled(named).identity()
    file.write_text("here now")
    assert place.settled(named).identity() == before
    rooted = parse_config({"data.source": "mnist", "data.root": "/etc", "data.download": True})
    data = place.settled(rooted).data
    assert (data.root, data.download) == (str(tmp_path / "state" / "data"), False)
    assert dataclasses.replace(place, data="/mine").settled(rooted).data.root == "/mine"
    assert Place(0).settled(rooted) == rooted


def test_run_folders_of_a_client_stay_in_its_state(tmp_path: Path) -> None:
    place = Place(0, state=str(tmp_path / "state"))
    config = parse_config({"runs": "/elsewhere", "name": "mine"})
    assert place.run_folder(config, 1).path == tmp_path / "state" / "runs" / "mine"
    assert place.ledgers(config, place.run_folder(config, 1)) == tmp_path / "state" / "ledgers"
    for name in ("../out", "/etc/x", "a/b", "..", "a\x00b"):
        with pytest.raises(ConfigError):
            parse_config({"name": name})


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"partition-id": -1},
        {"partition-id": "0"},
        {"partition-id": True},
        {"partition-id": 0, "data": 3},
        {"partition-id": 0, "max-epsilon": -1.0},
        {"partition-id": 0, "max-delta": 1.0},
    ],
)
def test_a_node_configured_wrongly_says_so(config: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"partition-id|data|max-epsilon"):
        Place.of(config)


@pytest.mark.parametrize(
    "keys",
    [
        {"strategy": "real-images"},
        {"strategy": "centralized"},
        {"canaries.kind": "noise"},
        {"attack.kind": "scale"},
        {"data.train-examples": 100},
        {"cohort.quorum": 11},
        {"resume": True},
    ],
)
def test_what_cannot_be_on_a_network_is_refused_at_once(keys: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        parse_config({"partition.scheme": "own", **keys})


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"strategy": "local"}, "strategy=.*local.*take another, such as fedavg"),
        ({"strategy": "fedavg", "groups.personal": "classifier"}, "groups.personal=.*leave it out"),
    ],
)
def test_models_that_only_clients_could_judge_are_refused(
    keys: dict[str, object], told: str
) -> None:
    config = parse_config({"partition.scheme": "own", **keys})
    with pytest.raises(ConfigError, match="no images held out to judge them by") as caught:
        prepare(config)
    assert re.search(told, str(caught.value))


def test_own_images_need_a_network() -> None:
    config = parse_config({"partition.scheme": "own"})
    with pytest.raises(ConfigError, match="tessera deploy run"):
        simulate(config, PlainProgress())


def test_a_client_that_comes_back_with_other_images_is_left_out(tmp_path: Path) -> None:
    here = network(tmp_path, rounds=4)
    mine, theirs = (Path(str(node_of(here, k).config["data"])) for k in (0, 1))

    def before_push(messages: list[Message]) -> None:
        if messages and in_round(1, messages[0]):
            node_of(here, 0).is_present = False
        if messages and in_round(2, messages[0]):
            node_of(here, 0).is_present = True
            mine.write_bytes(theirs.read_bytes())

    with_faults(here, before_push)
    assert [here.outcomes(n)[0] for n in (1, 2, 3, 4)] == ["failed"] * 4
    assert "images are not those" in str(here.records()[4].clients[0].failure)


@pytest.mark.parametrize("make", [network, private_network])
def test_a_client_whose_restart_nobody_saw_does_not_go_on_with_other_images(
    tmp_path: Path, make: Callable[[Path], Network]
) -> None:
    here = make(tmp_path)
    mine, theirs = (Path(str(node_of(here, k).config["data"])) for k in (0, 1))

    def before_push(messages: list[Message]) -> None:
        if messages and in_round(2, messages[0]):
            mine.write_bytes(theirs.read_bytes())

    with_faults(here, before_push)
    assert [here.outcomes(n)[0] for n in (1, 2)] == ["counted", "failed"]


def test_a_client_that_has_lost_its_state_is_told_anew_what_it_joins(tmp_path: Path) -> None:
    here = network(tmp_path, rounds=3)

    def before_push(messages: list[Message]) -> None:
        if messages and in_round(1, messages[0]):
            node_of(here, 0).is_present = False
        if messages and in_round(2, messages[0]):
            node_of(here, 0).is_present = True
            shutil.rmtree(tmp_path / "state-0", ignore_errors=True)

    with_faults(here, before_push)
    assert [here.outcomes(n)[0] for n in (1, 2, 3)] == ["failed", "failed", "counted"]


def test_a_twin_that_answers_last_is_waited_for(tmp_path: Path) -> None:
    """Every partition has a node by then; which of the two comes first must not decide."""
    here, looks = network(tmp_path), list[int]()
    twin = {**node_of(here, 1).config, "state": str(tmp_path / "twin"), "key": "SHA256:twin"}
    held: list[Message] = []

    def slow(node_id: int, request: Message, reply: Message) -> list[Message | Exception]:
        held.append(reply)
        return []

    here.nodes[4242] = Node(twin, fault=slow)
    flat = parse_config(dict(here.run_config)).flat()
    with run_identity(77) as identity:
        grid = NetworkGrid(flat, here.nodes)
        grid.set_run(identity)
        present = grid.get_node_ids

        def look() -> Iterable[int]:
            looks.append(1)
            if len(looks) == 3 and held:
                grid.replies[held[0].metadata.reply_to_message_id].append(held.pop())
            return present()

        grid.get_node_ids = look  # type: ignore[method-assign]
        with pytest.raises(RunError, match=r"two nodes hold partition 1"):
            here.go(grid)


def test_another_node_does_not_take_a_key_at_its_word(tmp_path: Path) -> None:
    """The SuperLink knows a key by one node id; what a node tells of its key is its own word."""
    here = network(tmp_path, rounds=3)
    liar = {**node_of(here, 1).config, "state": str(tmp_path / "liar")}

    def before_push(messages: list[Message]) -> None:
        if messages and in_round(1, messages[0]):
            node_of(here, 1).is_present = False
            here.nodes[31337] = Node(liar)

    with_faults(here, before_push)
    assert [here.outcomes(n)[1] for n in (1, 2, 3)] == ["failed"] * 3
