"""Clients that fail: refused with the reason on record, while the others count."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Error, Message
from safetensors.torch import load_file

import client.app as client_app
from core.errors import RunError
from core.records import RoundRecord, RunFolder
from core.wire import Record
from engine.grid import ResidentGrid
from pairing.configuration import parse_config
from server.checkpoint import Checkpoint
from server.preparation import prepare
from strategies.flower import from_flower, serialise
from strategies.table import STRATEGIES
from strategies.told import tell
from tests.conftest import TINY, Federate, tiny_keys

FAULTY = '''
"""A method in which some clients misbehave in some rounds."""
import dataclasses
import numpy as np
from core.config import text
from strategies.base import ClientUpdate
from strategies.{module} import {base}

@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    fault: str = text("none", "what goes wrong")
    clients: str = text("1", "which clients misbehave")
    rounds: str = text("123456789", "when")

class Faulty({base}):
    name = "faulty"
    sections = {{**{base}.sections, "faulty": Options}}

    def client_update(self, task):
        update = super().client_update(task)
        options = self.config.section(Options)
        if str(task.partition_id) not in options.clients or str(task.round) not in options.rounds:
            return update
        arrays, metrics = dict(update.arrays), dict(update.metrics)
        first = next(iter(arrays))
        match options.fault:
            case "raise":
                raise ArithmeticError(f"client {{task.partition_id}} gave up")
            case "exit":
                raise SystemExit(3)
            case "nan" | "inf" | "-inf":
                arrays[first] = np.full_like(arrays[first], float(options.fault))
            case "one-nan":
                arrays[first] = arrays[first].copy()
                arrays[first].flat[-1] = np.nan
            case "shape":
                arrays[first] = arrays[first][:1]
            case "dtype":
                arrays[first] = arrays[first].astype(np.float64)
            case "key":
                arrays["extra"] = np.zeros(1)
            case "no-key":
                del arrays[first]
            case "bytes":
                arrays[first] = np.zeros(1_000_000, np.float32)
            case "long-name":
                metrics["n" * 100_000] = 1
            case "negative-count":
                metrics["num_examples"] = -5
            case "zero-count":
                metrics["num_examples"] = 0
            case "absurd-count":
                metrics["num_examples"] = 2**62
            case "huge-count":
                metrics["num_examples"] = 10**400
            case "fraction":
                metrics["num_examples"] += 0.5
            case "no-metric":
                del metrics["train_loss"]
            case "metric-nan":
                metrics["train_loss"] = float("nan")
            case "absurd-loss":
                metrics["train_loss"] = 1e308
            case "negative-loss":
                metrics["train_loss"] = -1.0
            case "absurd-weights":
                arrays[first] = np.full_like(arrays[first], 3e38)
            case "long-words":
                raise ValueError("\x1b[2J" + "x" * 1_000_000)
            case "pixels":
                arrays["images"] = arrays["images"] * np.float32(1e6)
            case "metric-list":
                metrics["train_loss"] = [1.0, 2.0]
            case "label":
                arrays["labels"] = arrays["labels"] + 7
            case "negative-label":
                arrays["labels"] = arrays["labels"] - 1
            case "no-images":
                arrays = {{name: array[:0] for name, array in arrays.items()}}
            case "class-counts":
                arrays["class_counts"] = arrays["class_counts"] * 1_000
            case unknown:
                assert unknown == "none"
        return ClientUpdate(arrays, metrics, update.state)
'''

FAULTS = [
    ("raise", "failed", "ArithmeticError: client 1 gave up"),
    ("exit", "failed", "SystemExit: 3"),
    ("nan", "refused", "holds NaN or infinity"),
    ("one-nan", "refused", "holds NaN or infinity"),
    ("inf", "refused", "holds NaN or infinity"),
    ("-inf", "refused", "holds NaN or infinity"),
    ("shape", "refused", "has shape"),
    ("dtype", "refused", "is float64, expected float32"),
    ("key", "refused", "'extra' was not asked for"),
    ("no-key", "refused", "is missing"),
    ("bytes", "refused", " B are expected"),
    ("long-name", "refused", " B are expected"),
    ("negative-count", "refused", "num_examples is -5, but the client holds "),
    ("zero-count", "refused", "num_examples is 0, but the client holds "),
    ("absurd-count", "refused", "'num_examples' is 4.61169e+18, expected "),
    ("huge-count", "refused", "'num_examples' does not fit 64 bits"),
    ("fraction", "refused", ".5, but the client holds "),
    ("no-metric", "refused", "'train_loss' is missing"),
    ("metric-nan", "refused", "'train_loss' is nan"),
    ("metric-list", "refused", "'train_loss' is a list"),
    ("absurd-loss", "refused", "'train_loss' is 1e+308, expected 0 to 1e+09"),
    ("negative-loss", "refused", "'train_loss' is -1, expected 0 to 1e+09"),
    ("absurd-weights", "refused", "holds a magnitude above 1e+09"),
    ("long-words", "failed", r"ValueError: \x1b[2Jxxx"),
]

OF_A_METHOD = [
    ("FedDM", "label", "holds label 1"),
    ("FedDM", "negative-label", "holds label -1, expected 0 to 9"),
    ("FedDM", "no-images", "has shape (0, "),
    ("FedDM", "class-counts", "class_counts are not those"),
    ("FedDM", "pixels", "holds a pixel of "),
]


def write_faulty(folder: Path, base: str = "FedAvg") -> str:
    path = folder / "faulty.py"
    path.write_text(FAULTY.format(module=base.lower(), base=base))
    return f"{path}:Faulty"


@pytest.fixture
def faulty(tmp_path: Path) -> str:
    return write_faulty(tmp_path)


def rounds_of(path: Path) -> list[RoundRecord]:
    return RunFolder.open(path).read_rounds()


def but_seconds(records: list[RoundRecord]) -> list[RoundRecord]:
    return [dataclasses.replace(record, seconds={}) for record in records]


def weights_after(path: Path, round: int) -> dict[str, torch.Tensor]:
    return load_file(RunFolder.open(path).checkpoint(round))


def same_tensors(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) for name, value in ours.items()
    )


@pytest.fixture
def keep_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.recorder.CHECKPOINTS_KEPT", 100)


@pytest.mark.parametrize(("fault", "outcome", "reason"), FAULTS)
def test_one_client_fails_and_the_others_count(
    fault: str, outcome: str, reason: str, faulty: str, federate: Federate
) -> None:
    folder = RunFolder.open(federate({**TINY, "strategy": faulty, "faulty.fault": fault}))
    for record in folder.read_rounds()[1:]:
        assert [client.outcome for client in record.clients] == ["counted", outcome, "counted"]
        assert [client.failure for client in record.clients][::2] == [None, None]
        failure = record.clients[1].failure or ""
        assert reason in failure
        assert len(failure) < 2_000
        assert record.clients[1].metrics == {}
        assert record.clients[1].bytes_up == 0 or outcome == "refused"
    weights = load_file(folder.checkpoint(2))
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_what_is_refused_leaves_no_trace_in_the_weights(faulty: str, federate: Federate) -> None:
    """Every way to fail of the same client leads to the same bits, which are not the honest's."""
    ways = ("raise", "nan", "bytes", "absurd-count", "none")
    paths = [federate({**TINY, "strategy": faulty, "faulty.fault": fault}) for fault in ways]
    failed, *others, honest = (weights_after(path, 2) for path in paths)
    for other in others:
        assert same_tensors(failed | {"acknowledged": other["acknowledged"]}, other)
    assert any(not torch.equal(value, honest[name]) for name, value in failed.items())


@pytest.mark.parametrize(("base", "fault", "reason"), OF_A_METHOD)
def test_faults_of_one_method(
    base: str, fault: str, reason: str, tmp_path: Path, federate: Federate
) -> None:
    keys = tiny_keys(base.lower()) | {"rounds": 1, "strategy": write_faulty(tmp_path, base)}
    if fault == "class-counts":
        keys["mosaic.weighting"] = "counts"
    record = rounds_of(federate({**keys, "faulty.fault": fault}))[1]
    assert [client.outcome for client in record.clients] == ["counted", "refused", "counted"]
    assert reason in (record.clients[1].failure or "")


def test_a_client_without_any_class_to_send_is_refused(federate: Federate) -> None:
    shares = {"partition.alpha": 0.1, "partition.min-examples": 1, "partition.clients": 6}
    keys = {**tiny_keys("real-images"), **shares, "rounds": 1}
    counts = prepare(parse_config(keys)).partition.class_counts
    least = int(counts.max(axis=1).min()) + 1
    without = [k for k, most in enumerate(counts.max(axis=1)) if most < least]
    assert 0 < len(without) < 6
    record = rounds_of(federate({**keys, "mosaic.min-examples": least}))[1]
    for client in record.clients:
        refused = client.partition_id in without
        assert client.outcome == ("refused" if refused else "counted")
        assert not refused or "holds no images" in (client.failure or "")


Tamper = Callable[["TamperingGrid", Message], Iterator[Message]]


class TamperingGrid(ResidentGrid):
    """A grid that delivers something else than what clients sent."""

    tamper: Tamper
    seen: list[Message]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen = []

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Iterator[Message]:
        replies = super().send_and_receive(messages, timeout=timeout)
        return (told for reply in replies for told in type(self).tamper(self, reply))


@pytest.fixture
def deliver(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tamper], None]:
    def install(tamper: Tamper) -> None:
        kind = type("Grid", (TamperingGrid,), {"tamper": tamper})
        monkeypatch.setattr("engine.simulation.ResidentGrid", kind)

    return install


def twin(message: Message, **metadata: object) -> Message:
    """A copy of a reply, with other metadata."""
    other = copy.deepcopy(message)
    other.metadata.__dict__.update({f"_{name}": value for name, value in metadata.items()})
    return other


def poisoned(message: Message) -> Message:
    """A valid reply of other weights: it would change the result if it counted."""
    record = from_flower(message.content)
    arrays = {name: np.full_like(array, 0.5) for name, array in record.arrays.items()}
    message.content["arrays"] = serialise(Record(arrays))
    return message


def twice(grid: TamperingGrid, reply: Message) -> Iterator[Message]:
    yield reply
    yield poisoned(twin(reply))


def replayed(grid: TamperingGrid, reply: Message) -> Iterator[Message]:
    yield from (poisoned(twin(old)) for old in grid.seen)
    grid.seen.append(twin(reply))
    yield reply


def from_a_stranger(grid: TamperingGrid, reply: Message) -> Iterator[Message]:
    yield poisoned(twin(reply, src_node_id=999_999))
    yield reply


def to_an_unknown_request(grid: TamperingGrid, reply: Message) -> Iterator[Message]:
    yield poisoned(twin(reply, reply_to_message_id="unknown"))
    yield reply


def for_another_client(grid: TamperingGrid, reply: Message) -> Iterator[Message]:
    """One node answers for all."""
    for node_id in grid.get_node_ids():
        if node_id != reply.metadata.src_node_id:
            yield poisoned(twin(reply, src_node_id=node_id))
    yield reply


@pytest.mark.parametrize(
    "tamper",
    [
        twice,
        replayed,
        from_a_stranger,
        to_an_unknown_request,
        for_another_client,
    ],
)
def test_what_was_not_asked_for_or_came_before_is_not_counted(
    tamper: Tamper, deliver: Callable[[Tamper], None], federate: Federate
) -> None:
    keys = {**TINY, "strategy": "fedavg", "rounds": 3}
    honest = federate(keys)
    deliver(tamper)
    path = federate(keys)
    assert but_seconds(rounds_of(path)) == but_seconds(rounds_of(honest))
    assert same_tensors(weights_after(path, 3), weights_after(honest, 3))


def test_a_reply_of_another_round_is_refused(
    deliver: Callable[[Tamper], None], federate: Federate
) -> None:
    def stale(grid: TamperingGrid, reply: Message) -> Iterator[Message]:
        if grid.partition_of(reply.metadata.src_node_id) == 1:
            reply.content.config_records["settings"]["round"] = 7
        yield reply

    deliver(stale)
    for record in rounds_of(federate({**TINY, "strategy": "fedavg"}))[1:]:
        assert [client.outcome for client in record.clients] == ["counted", "refused", "counted"]
        assert record.clients[1].failure == f"reply is of round 7, not {record.round}"


@pytest.mark.parametrize("missing", ["arrays", "metrics", "settings"])
def test_a_reply_without_a_part_is_refused(
    missing: str, deliver: Callable[[Tamper], None], federate: Federate
) -> None:
    def without(grid: TamperingGrid, reply: Message) -> Iterator[Message]:
        if grid.partition_of(reply.metadata.src_node_id) == 1:
            del reply.content[missing]
        yield reply

    deliver(without)
    record = rounds_of(federate({**TINY, "strategy": "fedavg"}))[1]
    assert [client.outcome for client in record.clients] == ["counted", "refused", "counted"]
    assert missing in (record.clients[1].failure or "")


def test_settings_that_flower_cannot_count_are_refused(
    deliver: Callable[[Tamper], None], federate: Federate
) -> None:
    def empty(grid: TamperingGrid, reply: Message) -> Iterator[Message]:
        if grid.partition_of(reply.metadata.src_node_id) == 1:
            reply.content.config_records["settings"]["x"] = []
        yield reply

    deliver(empty)
    record = rounds_of(federate({**TINY, "strategy": "fedavg"}))[1]
    assert [client.outcome for client in record.clients] == ["counted", "refused", "counted"]


def broken_in(*rounds: int) -> Tamper:
    """Every reply of these rounds is lost: half of them as errors, half as replies of no use."""

    def tamper(grid: TamperingGrid, reply: Message) -> Iterator[Message]:
        if int(reply.metadata.group_id) in rounds:
            if reply.metadata.src_node_id % 2:
                metadata = copy.deepcopy(reply.metadata)
                reply = Message(Error(0, "gone"), metadata=metadata)  # type: ignore[call-overload]
            else:
                reply.content.config_records["settings"]["round"] = 0
        yield reply

    return tamper


METHODS = [name for name, kind in STRATEGIES.items() if kind.asks_clients]


@pytest.mark.usefixtures("keep_checkpoints")
@pytest.mark.parametrize("method", METHODS)
def test_rounds_without_replies_leave_the_model_as_it_was(
    method: str, deliver: Callable[[Tamper], None], federate: Federate
) -> None:
    """The first, a middle and the last round."""
    keys = {**tiny_keys(method), "rounds": 5}
    deliver(broken_in(1, 3, 5))
    path = federate(keys)
    initial = prepare(parse_config(keys)).initial_state()
    after = [
        Checkpoint.read(RunFolder.open(path).checkpoint(r), parse_config(keys).identity()).state
        for r in range(6)
    ]
    for kept, before in ((0, None), (1, 0), (3, 2), (5, 4)):
        then = initial if before is None else after[before]
        assert same_tensors(dict(after[kept].weights), dict(then.weights)), kept
        assert same_tensors(dict(after[kept].slots), dict(then.slots)), kept
    if STRATEGIES[method].has_global_model:
        for moved, before in ((2, 1), (4, 3)):
            assert not same_tensors(dict(after[moved].weights), dict(after[before].weights))
    for record in rounds_of(path)[1:]:
        lost = record.round % 2 == 1
        outcomes = {client.outcome for client in record.clients}
        assert outcomes == ({"failed", "refused"} if lost else {"counted"})
        assert not lost or not any(record.server.values())


def status_of(runs: Path) -> tuple[str, list[int]]:
    (path,) = runs.iterdir()
    folder = RunFolder.open(path)
    return folder.read_json("run")["status"], [record.round for record in folder.read_rounds()]


@pytest.mark.parametrize("limit", [1, 2])
def test_too_many_rounds_in_a_row_without_replies_end_the_run(
    limit: int, faulty: str, federate: Federate, tmp_path: Path
) -> None:
    keys = {"faulty.fault": "raise", "faulty.clients": "012", "faulty.rounds": "3456"}
    with pytest.raises(RunError) as caught:
        federate(
            {**TINY, "strategy": faulty, **keys, "rounds": 6, "cohort.max-empty-rounds": limit}
        )
    assert f"cohort.max-empty-rounds={limit}" in str(caught.value)
    assert "ArithmeticError: client 0 gave up" in str(caught.value)
    assert status_of(tmp_path / "runs") == ("failed", list(range(3 + limit)))
    (path,) = (tmp_path / "runs").iterdir()
    assert "ArithmeticError" in RunFolder.open(path).read_json("run")["failure"]
    assert not RunFolder.open(path).progress.exists()


def test_empty_rounds_that_are_not_in_a_row_do_not_add_up(faulty: str, federate: Federate) -> None:
    keys = {"faulty.fault": "nan", "faulty.clients": "012", "faulty.rounds": "1356"}
    path = federate({**TINY, "strategy": faulty, **keys, "rounds": 7, "cohort.max-empty-rounds": 3})
    assert RunFolder.open(path).read_json("run")["status"] == "complete"


def test_a_run_in_which_no_reply_ever_counted_is_a_failed_one(
    faulty: str, federate: Federate, tmp_path: Path
) -> None:
    keys = {"faulty.fault": "shape", "faulty.clients": "012"}
    with pytest.raises(RunError, match=r"no reply counted in 2 rounds.*has shape"):
        federate({**TINY, "strategy": faulty, **keys, "cohort.max-empty-rounds": 9})
    assert status_of(tmp_path / "runs") == ("failed", [0, 1, 2])


def test_a_last_round_without_replies_keeps_the_model_of_the_one_before(
    faulty: str, federate: Federate
) -> None:
    keys = {"faulty.fault": "raise", "faulty.clients": "012", "faulty.rounds": "2"}
    path = federate({**TINY, "strategy": faulty, **keys})
    records = rounds_of(path)
    assert records[2].test == records[1].test != records[0].test
    assert RunFolder.open(path).read_json("run")["status"] == "complete"


@pytest.mark.parametrize("fault", ["nan", "raise"])
def test_a_lost_client_keeps_the_state_that_the_server_believes_it_has(
    fault: str, tmp_path: Path, federate: Federate
) -> None:
    """SCAFFOLD's c is the mean of all c_k at any time, if c_k is what the last counted reply left.

    c moves by 1/K of what each counted c_k moves by, and all start at zero.
    """
    keys = {"faulty.fault": fault, "faulty.clients": "1", "faulty.rounds": "24"}
    strategy = write_faulty(tmp_path, "Scaffold")
    path = federate({**tiny_keys("scaffold"), "strategy": strategy, "rounds": 5, **keys})
    assert [record.clients[1].outcome != "counted" for record in rounds_of(path)[1:]] == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert_variates_add_up(path, 5)


def assert_variates_add_up(path: Path, last_round: int) -> None:
    folder, tensors = RunFolder.open(path), weights_after(path, last_round)
    clients = []
    for partition_id, acknowledged in tensors["acknowledged"].tolist():
        name = f"partition-{partition_id:05d}/round-{acknowledged:05d}.safetensors"
        clients.append(load_file(folder.clients / name)["variate"])
    ours = [value for name, value in tensors.items() if name.startswith("slots/variate/")]
    theirs = torch.stack(clients).to(torch.float64).sum(0) / 3
    # The vector's order is that of the parameters, safetensors' that of the names: compare sorted.
    mine = torch.cat([value.flatten() for value in ours]).to(torch.float64)
    assert float(mine.norm()) > 1e-3
    torch.testing.assert_close(mine.sort().values, theirs.sort().values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("test_confusion", -np.ones((10, 10), np.int64), "expected counts of at least one image"),
        ("own_score", 7.0, "own_score is 7, expected 0 to 1"),
    ],
)
def test_what_a_client_tells_of_its_own_model_is_checked(
    name: str, value: Any, told: str, federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = itertools.count()

    def lying(*arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        arrays, metrics = tell(*arguments)
        if next(turns) == 0:
            (arrays if name in arrays else metrics)[name] = value
        return arrays, metrics

    monkeypatch.setattr(client_app, "tell", lying)
    keys = {**tiny_keys("local", rounds=1), "engine.kind": "in-process"}
    clients = rounds_of(federate(keys))[1].clients
    assert sorted(client.outcome for client in clients) == ["counted", "counted", "refused"]
    (refused,) = (client for client in clients if client.outcome == "refused")
    assert refused.failure is not None and told in refused.failure


def test_local_never_shows_a_model_that_no_client_has(federate: Federate, tmp_path: Path) -> None:
    keys = {"faulty.fault": "raise", "faulty.clients": "012", "faulty.rounds": "2"}
    strategy = write_faulty(tmp_path, "Local")
    records = rounds_of(federate({**TINY, "strategy": strategy, "rounds": 3, **keys}))
    assert records[2].test is None
    assert records[2].client_scores is None
    assert records[3].test is not None


def test_local_keeps_each_clients_place_when_one_fails(federate: Federate, tmp_path: Path) -> None:
    keys = {"faulty.fault": "raise", "faulty.clients": "0", "faulty.rounds": "2"}
    strategy = write_faulty(tmp_path, "Local")
    records = rounds_of(federate({**TINY, "strategy": strategy, **keys}))
    whole = rounds_of(federate({**TINY, "strategy": "local"}))
    found, expected = records[2].client_scores, whole[2].client_scores
    assert found is not None
    assert expected is not None
    assert found == [None, *expected[1:]]


@pytest.mark.parametrize(
    "keys",
    [
        {"strategy": "centralized", "train.learning-rate": 1e30},
        {"strategy": "real-images", "mosaic.ball": False, "mosaic.learning-rate": 1e30},
    ],
)
def test_divergence_on_the_server_is_named(keys: dict[str, object], federate: Federate) -> None:
    with pytest.raises(RunError, match=r"diverged in round \d.*lower the learning rate"):
        federate({**TINY, **keys})


@pytest.mark.parametrize(
    "keys",
    [
        {"strategy": "fedavgm", "fedavgm.server-learning-rate": 1e25},
        {"strategy": "fedadam", "fedadam.server-learning-rate": 1e39},
        {"strategy": "scaffold", "scaffold.server-learning-rate": 1e30},
    ],
)
def test_a_round_that_diverged_is_discarded(
    keys: dict[str, object], federate: Federate, tmp_path: Path
) -> None:
    """Nothing of it goes into a checkpoint, and nobody's reply counts."""
    with pytest.raises(RunError, match=r"diverged in round 2.*lower the learning rate"):
        federate({**TINY, **keys, "name": "it"})
    folder = RunFolder.open(tmp_path / "runs" / "it")
    records = folder.read_rounds()
    assert [c.outcome for r in records for c in r.clients] == ["refused"] * 6
    assert records[1].test == records[0].test
    final = load_file(folder.checkpoint(1))
    assert all(value.isfinite().all() for value in final.values())


def test_what_a_client_says_is_cut_and_harmless(faulty: str, federate: Federate) -> None:
    folder = federate({**TINY, "strategy": faulty, "faulty.fault": "long-words"})
    text = (folder / "rounds.jsonl").read_text()
    assert len(text) < 100_000
    assert "\x1b" not in text


def test_too_few_replies_for_a_defence_end_the_run(federate: Federate) -> None:
    keys = {"strategy": "multi-krum", "multi-krum.byzantine": 2, "partition.clients": 7}
    dropouts = {"faults.dropout-rate": 0.5, "rounds": 12}
    with pytest.raises(RunError, match="too few for multi-krum"):
        federate({**TINY, **keys, **dropouts})
