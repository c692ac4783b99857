"""Weights to start from: what is loaded of a run or a file, what is refused, and identities."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from core.errors import ConfigError, RecordError
from core.groups import ParameterGroups
from core.parameters import weights_of
from core.records import RunFolder
from core.seeds import seeded_globals
from core.tensor_file import write_tensors
from pairing.configuration import parse_config
from server.checkpoint import NUMBERING, Checkpoint
from server.preparation import prepare
from server.starting import file_of, load_start
from strategies.base import ServerState
from tests.conftest import Federate, tiny_keys

SHARED = ParameterGroups()


def network(seed: int) -> nn.Module:
    """Two layers and a head, with a counter."""
    with seeded_globals(seed):
        parts = {"body": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), "head": nn.Linear(4, 2)}
        return nn.ModuleDict(parts)


def run_folder(
    root: Path, rounds: dict[int, nn.Module], numbering: Mapping[str, str] | None = None
) -> RunFolder:
    """A run with these checkpoints."""
    folder = RunFolder.create(root, "made", {})
    folder.write_json("run", {})
    for number, model in rounds.items():
        slots = {"momentum/head.bias": torch.ones(2)}
        Checkpoint(number, ServerState(weights_of(model), slots), {}, 0).write(
            folder.checkpoint(number), "identity", numbering or {}
        )
    return folder


def assert_equal(model: nn.Module, other: nn.Module, part: str = "") -> None:
    theirs = other.state_dict()
    for name, value in model.state_dict().items():
        if name.startswith(part):
            assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("rounds", [(1, 2), (9_999, 10_000)])
def test_a_runs_folder_means_its_last_checkpoint(rounds: tuple[int, int], tmp_path: Path) -> None:
    first, last = network(1), network(2)
    folder = run_folder(tmp_path, {rounds[0]: first, rounds[1]: last})
    assert file_of(str(folder.path)) == folder.checkpoint(rounds[1])
    model = network(3)
    load_start(model, SHARED, str(folder.path))
    assert_equal(model, last)
    load_start(model, SHARED, str(folder.checkpoint(rounds[0])))
    assert_equal(model, first)


def test_a_file_from_elsewhere_is_loaded_by_its_names(tmp_path: Path) -> None:
    """Also in another precision; what it holds besides is passed over."""
    source = network(1)
    tensors = {name: value.clone() for name, value in source.state_dict().items()}
    tensors["head.weight"] = tensors["head.weight"].double()
    save_file({**tensors, "other": torch.zeros(3)}, tmp_path / "own.safetensors")
    model = network(2)
    load_start(model, SHARED, str(tmp_path / "own.safetensors"))
    assert_equal(model, source)


def test_what_a_file_lacks_stays_as_it_was_drawn(tmp_path: Path) -> None:
    """Another task's head begins where the seed puts it."""
    source = network(1)
    body = {n: v for n, v in source.state_dict().items() if n.startswith("body.")}
    save_file(body, tmp_path / "own.safetensors")
    model = network(2)
    load_start(model, SHARED, str(tmp_path / "own.safetensors"))
    assert_equal(model, source, "body.")
    assert_equal(model, network(2), "head.")


def test_what_is_personal_is_not_loaded(tmp_path: Path) -> None:
    source, model = network(1), network(2)
    folder = run_folder(tmp_path, {1: source})
    personal = frozenset({"head.weight", "head.bias"})
    load_start(model, ParameterGroups(personal=personal), str(folder.path))
    assert_equal(model, source, "body.")
    assert_equal(model, network(2), "head.")


def test_what_is_frozen_is_refused_where_it_would_be_loaded(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, {1: network(1)})
    groups = ParameterGroups(frozen=frozenset({"head.bias"}))
    with pytest.raises(ConfigError, match=r"holds head\.bias, which groups\.frozen names"):
        load_start(network(2), groups, str(folder.path))
    body = {n: v for n, v in network(1).state_dict().items() if n.startswith("body.")}
    save_file(body, tmp_path / "body.safetensors")
    load_start(network(2), groups, str(tmp_path / "body.safetensors"))


def test_another_shape_is_refused_and_nothing_is_loaded(tmp_path: Path) -> None:
    tensors = {**network(1).state_dict(), "head.weight": torch.zeros(3, 4)}
    save_file(tensors, tmp_path / "own.safetensors")
    model = network(2)
    with pytest.raises(ConfigError, match=r"head\.weight of shape 3 x 4, and the model's is 2 x 4"):
        load_start(model, SHARED, str(tmp_path / "own.safetensors"))
    assert_equal(model, network(2))


def test_rows_that_stand_for_something_else_are_refused_and_nothing_is_loaded(
    tmp_path: Path,
) -> None:
    """Two vocabularies of one size have the same shapes, and other words."""
    folder = run_folder(tmp_path, {1: network(1)}, {"head": "cats, dogs", "gone": "this"})
    for place in (folder.path, folder.checkpoint(1)):
        model = network(2)
        with pytest.raises(
            ConfigError, match=r"holds head\.weight with rows for cats, dogs"
        ) as told:
            load_start(model, SHARED, str(place), {"body": "any", "head": "dogs, cats"})
        assert "the model's are for dogs, cats" in str(told.value)
        assert_equal(model, network(2))
        load_start(model, SHARED, str(place), {"body": "any", "head": "cats, dogs"})
        assert_equal(model, network(1))


def test_rows_are_compared_where_both_sides_tell_and_entries_are_loaded(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, {1: network(1)})
    model = network(2)
    load_start(model, SHARED, str(folder.path), {"head": "dogs"})
    assert_equal(model, network(1))
    body = {n: v for n, v in network(1).state_dict().items() if n.startswith("body.")}
    about = {NUMBERING: '{"head": "cats"}'}
    write_tensors(tmp_path / "body.safetensors", body, about)
    load_start(model, SHARED, str(tmp_path / "body.safetensors"), {"head": "dogs"})


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    save_file({"other": torch.zeros(3)}, tmp_path / "own.safetensors")
    with pytest.raises(ConfigError, match=r"none of this model's parameters, such as body\.0"):
        load_start(network(2), SHARED, str(tmp_path / "own.safetensors"))


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("nowhere", "there is no such folder or file"),
        ("empty", "the run has no checkpoint"),
        ("folder", "folder"),
        ("text.safetensors", "damaged"),
        ("cut.safetensors", "damaged"),
        ("changed.safetensors", "does not give its xxh3_128"),
    ],
)
def test_what_is_missing_or_damaged_is_refused(place: str, told: str, tmp_path: Path) -> None:
    RunFolder.create(tmp_path, "empty", {}).write_json("run", {})
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.safetensors").write_text("no tensors")
    made = run_folder(tmp_path, {1: network(1)})
    whole = made.checkpoint(1).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-8])
    (tmp_path / "changed.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RecordError, match=told):
        load_start(network(2), SHARED, str(tmp_path / place))


def keys_from(start: Path, **more: object) -> dict[str, object]:
    return tiny_keys("fedavg", rounds=1, start_from=str(start), **more)


def test_a_run_begins_where_the_other_ended(federate: Federate) -> None:
    before = federate(tiny_keys("fedavg", name="before"))
    after = federate(keys_from(before, name="after"))
    ends, begins = (RunFolder.open(path).read_rounds() for path in (before, after))
    assert begins[0].test == ends[-1].test and begins[0].validation == ends[-1].validation
    assert begins[1].test != ends[-1].test
    assert RunFolder.open(before).read_rounds()[0].test != begins[0].test


def test_identities_are_of_what_the_weights_are_not_of_where_they_lie(tmp_path: Path) -> None:
    config = parse_config(tiny_keys("fedavg"))
    width = {"model.width": config.model.width}
    source, other = (prepare(config).workload.build_model(seed) for seed in (1, 2))
    folder = run_folder(tmp_path, {1: source, 2: other})

    def identity(place: Path) -> str:
        return parse_config({**tiny_keys("fedavg"), **width, "start-from": str(place)}).identity()

    drawn = config.identity()
    last = identity(folder.path)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(folder.checkpoint(2).read_bytes())
    assert last == identity(folder.checkpoint(2)) == identity(copy)
    assert len({drawn, last, identity(folder.checkpoint(1))}) == 3
    folder.checkpoint(2).unlink()
    assert identity(folder.path) == identity(folder.checkpoint(1))


def test_the_identity_of_a_long_run_is_of_its_last_checkpoint(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, {9_999: network(1), 10_000: network(2)})
    places = (folder.path, folder.checkpoint(10_000))
    keys = [{**tiny_keys("fedavg"), "start-from": str(place)} for place in places]
    assert parse_config(keys[0]).identity() == parse_config(keys[1]).identity()


def test_large_weights_are_read_once_for_an_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each client's update asks for it; a file that was written anew is read again."""
    start = tmp_path / "own.safetensors"
    start.write_bytes(b"first")
    config = parse_config({**tiny_keys("fedavg"), "start-from": str(start)})
    digests: list[object] = []
    digest = hashlib.file_digest

    def counted(*args: Any) -> Any:
        digests.append(args)
        return digest(*args)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    assert config.identity() == config.identity()
    assert len(digests) == 1
    before = config.identity()
    start.write_bytes(b"second")
    assert config.identity() != before and len(digests) == 2


def test_clients_of_their_own_models_start_from_the_seed_alone(tmp_path: Path) -> None:
    keys = {**tiny_keys("local"), "start-from": str(tmp_path)}
    with pytest.raises(ConfigError, match="strategy local has no model at the server"):
        parse_config(keys)
