"""Exhibits: kept with a run as they were made, refused where they are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import RecordError
from core.exhibits import Exhibit
from core.records import RunFolder
from tests.conftest import Federate, tiny_keys

ONE = Exhibit("Captions", "a video", (b"\x89PNG", b""), {"gold": "a <b>", "model": "é"})


@given(
    kind=st.text(),
    title=st.text(),
    images=st.lists(st.binary(), max_size=3),
    lines=st.dictionaries(st.text(), st.text(), max_size=3),
)
def test_exhibits_survive_json(
    kind: str, title: str, images: list[bytes], lines: dict[str, str]
) -> None:
    exhibit = Exhibit(kind, title, tuple(images), lines)
    back = Exhibit.from_json(json.loads(json.dumps(exhibit.to_json())))
    assert back == exhibit and list(back.lines) == list(lines)


@pytest.mark.parametrize(
    "changed",
    [
        {"images": ["not base64!"]},
        {"images": 3},
        {"images": None},
        {"lines": ["gold"]},
        {"lines": None},
    ],
)
def test_what_is_no_exhibit_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Exhibit.from_json({**ONE.to_json(), **changed})
    for name in ("kind", "title", "images", "lines"):
        partial = {key: value for key, value in ONE.to_json().items() if key != name}
        with pytest.raises(ValueError, match=name):
            Exhibit.from_json(partial)


def test_a_run_keeps_them_in_order(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "run", {})
    assert folder.read_exhibits() == ()
    folder.write_exhibits([])
    assert not (folder.path / "exhibits.json").exists()
    other = Exhibit("Questions", "another", (), {})
    folder.write_exhibits([ONE, other])
    assert folder.read_exhibits() == (ONE, other)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"exhibits": 3}',
        '{"exhibits": ["one"]}',
        '{"exhibits": {"a": 1}}',
        '{"exhibits": [{"kind": "a", "title": "b", "images": ["%"], "lines": {}}]}',
    ],
)
def test_a_damaged_file_is_refused_by_name(content: str, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "run", {})
    (folder.path / "exhibits.json").write_text(content)
    with pytest.raises(RecordError, match=r"exhibits\.json"):
        folder.read_exhibits()


SHOWING = """
from core.exhibits import Exhibit
from workloads.vision import ImageClassification


class Showing(ImageClassification):
    name = "showing"

    def exhibits(self, model, split):
        score = self.evaluate(model, split).scores["accuracy"]
        return (Exhibit("Scores", split, (b"image",), {"accuracy": repr(score)}),)
"""


def test_a_run_ends_with_those_of_its_final_model_on_test_examples(
    federate: Federate, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(SHOWING)
    keys = tiny_keys("fedavg", workload=f"{tmp_path}/own.py:Showing")
    folder = RunFolder.open(federate(keys))
    last = folder.read_rounds()[-1].test
    assert last is not None
    expected = Exhibit("Scores", "test", (b"image",), {"accuracy": repr(last.primary)})
    assert folder.read_exhibits() == (expected,)


@pytest.mark.parametrize("more", [{"strategy": "local"}, {"groups.personal": "classifier"}])
def test_where_clients_hold_the_models_there_are_none(
    more: dict[str, str], federate: Federate, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(SHOWING)
    keys = {**tiny_keys("fedavg", workload=f"{tmp_path}/own.py:Showing", rounds=1), **more}
    assert RunFolder.open(federate(keys)).read_exhibits() == ()
