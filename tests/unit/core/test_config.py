"""Parsing: every problem at once, each with value, rule and what is allowed."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import RunConfig, parse_assignments
from core.errors import ConfigError
from distill.matching import MatchingConfig
from pairing.configuration import config_keys, parse_config, rules_read
from strategies.mosaic import MosaicConfig


def problems_of(flat: dict[str, object]) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(flat)
    return {problem.key: str(problem) for problem in caught.value.problems}


def test_defaults_are_valid_and_round_trip() -> None:
    config = parse_config({})
    assert parse_config(config.flat()) == config
    assert config.section(MosaicConfig).images_per_class == 10
    assert config.section(MatchingConfig).iterations == 1000


def test_text_is_converted_by_the_keys_type() -> None:
    config = parse_config(
        {"rounds": "3", "partition.alpha": "1e-2", "data.download": "True", "name": "a"}
    )
    assert (config.rounds, config.partition.alpha, config.data.download) == (3, 0.01, True)


def test_all_problems_come_at_once() -> None:
    found = problems_of(
        {
            "rounds": 0,
            "alpha": 0.1,
            "strategy": "fedvag",
            "data.source": "cifar",
            "partition.alpha": "small",
            "seed": 1.5,
            "data.download": "yes",
            "train.momentum": float("nan"),
        }
    )
    assert len(found) == 8
    assert found["rounds"] == "rounds=0: must be a whole number at least 1 and at most 100000"
    assert "did you mean partition.alpha?" in found["alpha"]
    assert "did you mean fedavg" in found["strategy"]
    assert "did you mean cifar10" in found["data.source"]
    assert found["partition.alpha"] == "partition.alpha=small: must be a number above 0"
    assert "seed=1.5" in found["seed"]
    assert "true or false" in found["data.download"]


def test_a_key_that_the_strategy_does_not_read_is_refused() -> None:
    found = problems_of({"strategy": "fedavg", "mosaic.epochs": 3})
    assert "strategy fedavg does not read it" in found["mosaic.epochs"]
    assert parse_config({"strategy": "fedavg", "mosaic.epochs": 500}).strategy == "fedavg"


@pytest.mark.parametrize("value", ["a/b", "..", "a\\b", "."])
def test_a_name_cannot_leave_the_folder_of_runs(value: str) -> None:
    assert "single folder name" in problems_of({"name": value})["name"]


def test_identity_leaves_out_what_cannot_change_a_result() -> None:
    base = parse_config({})
    same = parse_config({"name": "x", "runs": "y", "engine.kind": "ray", "engine.workers": 2})
    other = parse_config({"seed": 1})
    threads = parse_config({"engine.client-threads": 2})
    assert base.identity() == same.identity()
    assert len({base.identity(), other.identity(), threads.identity()}) == 3


@pytest.mark.parametrize("address", ["", "auto", "10.0.0.1:6379", "head.local:6379", "[::1]:6379"])
def test_where_a_ray_cluster_is(address: str) -> None:
    joined = parse_config({"engine.ray-address": address})
    assert joined.engine.ray_address == address
    assert joined.identity() == parse_config({}).identity()


@pytest.mark.parametrize("address", ["head", ":6379", "head:", "ray://head:10001", "head:port"])
def test_what_is_no_address_of_a_ray_cluster(address: str) -> None:
    assert "HOST:PORT" in problems_of({"engine.ray-address": address})["engine.ray-address"]


def test_a_cluster_is_joined_by_ray_alone() -> None:
    found = problems_of({"engine.kind": "in-process", "engine.ray-address": "auto"})
    assert "engine.kind=auto or ray" in found["engine.ray-address"]


def test_every_key_has_a_meaning_and_a_default_that_is_allowed() -> None:
    found = config_keys()
    assert len({key.name for key in found}) == len(found)
    for key in found:
        assert key.rule.meaning, key.name
        assert type(key.default) is key.type, key.name
        assert key.rule.allows(key.default), key.name


@given(st.sampled_from(config_keys()), st.text(max_size=8))
def test_no_text_breaks_the_parser(key: object, value: str) -> None:
    name = getattr(key, "name")  # noqa: B009
    try:
        config = parse_config({name: value})
    except ConfigError:
        return
    assert dataclasses.is_dataclass(config)


def test_assignments_refuse_what_is_no_assignment() -> None:
    with pytest.raises(ConfigError, match="write key=value") as caught:
        parse_assignments(["rounds", "seed=1", "seed=2"])
    assert len(caught.value.problems) == 2


VIDEOS = {
    "workload": "vlm",
    "strategy": "fedavg",
    "video.source": "coin:/corpus",
    "video.encoder": "given:/features",
    "video.cache": "/cache",
    "vlm.bert": "/bert",
    "vlm.width": 64,
}


def test_files_that_are_named_can_be_left_out_and_caches_moved() -> None:
    config = parse_config({**VIDEOS, "rounds": 7})
    changed = config.without_files().with_caches_in(Path("/mine"))
    kept = {"workload": "vlm", "strategy": "fedavg", "vlm.width": 64, "rounds": 7}
    assert changed == parse_config({**kept, "video.cache": "/mine"})
    images = parse_config({"data.source": "folder:/images", "data.root": "/root", "seed": 3})
    assert images.without_files() == parse_config({"data.root": "/root", "seed": 3})
    assert images.with_caches_in(Path("/mine")) == images
    named = parse_config({"data.source": "digits", "partition.file": "/dealt.json"})
    assert named.without_files() == parse_config({})


def test_files_are_named_by_keys_that_are_read() -> None:
    def naming(flat: dict[str, object]) -> set[str]:
        rules = rules_read(flat)
        return {
            name
            for name, value in flat.items()
            if name in rules and rules[name].names_file(str(value))
        }

    assert naming(dict(VIDEOS)) == {"video.source", "video.encoder", "vlm.bert"}
    assert naming({**VIDEOS, "workload": "meltr"}) == set()
    assert naming({**VIDEOS, "video.encoder": "conv3d-random", "vlm.bert": ""}) == {"video.source"}
    for source, is_file in (("digits", False), ("parquet:x", True), ("mine.py:load", True)):
        assert naming({"data.source": source}) == ({"data.source"} if is_file else set())


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().rounds = 3  # type: ignore[misc]


def test_identity_follows_the_content_of_a_users_file(tmp_path: Path) -> None:
    identities = []
    for folder, content in (("a", "x = 1"), ("b", "x = 1"), ("a", "x = 2")):
        path = tmp_path / folder / "mine.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        identities.append(parse_config({"model.name": f"{path}:x"}).identity())
    assert identities[0] == identities[1] != identities[2]


def test_identity_follows_the_content_of_a_partition_file(tmp_path: Path) -> None:
    path = tmp_path / "partition.json"
    identities = []
    for content in ("{}", "{}", "[]"):
        path.write_text(content)
        identities.append(parse_config({"partition.file": str(path)}).identity())
    assert identities[0] == identities[1] != identities[2]


@pytest.mark.parametrize(
    "flat",
    [
        {"partition.scheme": "iid", "partition.alpha": 0.3},
        {"partition.classes-per-client": 3},
        {"feddm.weight-sigma": 2.0},
        {"engine.kind": "in-process", "engine.workers": 4},
    ],
)
def test_a_key_that_another_key_leaves_unread_is_refused(flat: dict[str, object]) -> None:
    found = problems_of(flat)
    assert len(found) == 1
    assert "is read only with" in next(iter(found.values()))


WRONG = {
    "no_name": ("", "it has no name"),
    "no_images_sent": ('name = "a"', "images_sent must be one of none, synthetic, raw"),
    "abstract": ('name = "a"; images_sent = "none"', "it lacks add, begin"),
    "taken": (
        'name = "a"; images_sent = "none"; sections = {"train": object}',
        "section 'train' is taken",
    ),
    "builtin": ('name = "fedavg"; images_sent = "none"', "is a built-in strategy's"),
}


@pytest.mark.parametrize(("body", "reason"), WRONG.values(), ids=list(WRONG))
def test_a_users_class_that_is_no_strategy_is_refused(
    body: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        f"from strategies.base import Strategy\nclass Mine(Strategy):\n    {body or 'pass'}\n"
    )
    with pytest.raises(ConfigError, match=reason):
        parse_config({"strategy": f"{path}:Mine"})
