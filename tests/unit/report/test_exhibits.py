"""Exhibits in the report: by method and kind, their texts escaped."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import RecordError
from core.exhibits import Exhibit
from core.records import RunFolder
from report.exhibits import showcases
from report.html import write_report
from report.loading import load_runs
from report.methods import compare
from tests.unit.report.test_html import Page

MakeRun = Callable[..., Path]
PNG = b"\x89PNG not looked at"
NASTY = "<script>alert('x')</script> & \"quoted\""
FIRST = Exhibit("Captions", "a video", (PNG, PNG), {"gold": "a red square", "model": NASTY})
SECOND = Exhibit("Questions", f"another {NASTY}", (), {NASTY: "a star"})
THIRD = Exhibit("Captions", "a third", (), {})


def shown(path: Path, *exhibits: Exhibit) -> Path:
    RunFolder.open(path).write_exhibits(exhibits)
    return path


def page_of(paths: list[Path], tmp_path: Path) -> str:
    return write_report(paths, tmp_path / "report.html").read_text()


def test_exhibits_are_shown_by_kind_with_their_texts_escaped(
    make_run: MakeRun, tmp_path: Path
) -> None:
    text = page_of([shown(make_run(strategy="fedavg"), FIRST, SECOND, THIRD)], tmp_path)
    page = Page(text)
    assert "<script>alert" not in text
    assert NASTY in page.text and f"another {NASTY}" in page.text
    section = text[text.index('<section id="exhibits"') :]
    section = section[: section.index("</section>")]
    assert re.findall(r"<h4[^>]*>(.*?)</h4>", section) == ["Captions", "Questions"]
    assert re.findall(r"<h5>(.*?)</h5>", section)[:2] == ["a video", "a third"]
    images = re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="([^"]*)"', section)
    assert [base64.b64decode(image) for image, _ in images] == [PNG, PNG]
    assert [told for _, told in images] == ["Frame 1 of a video", "Frame 2 of a video"]
    assert ("a", {"href": "#exhibits"}) in page.tags


def test_without_exhibits_there_is_no_section(make_run: MakeRun, tmp_path: Path) -> None:
    text = page_of([make_run(strategy="fedavg")], tmp_path)
    assert 'id="exhibits"' not in text and "#exhibits" not in text


def test_each_method_shows_its_first_run_that_has_some(make_run: MakeRun) -> None:
    paths = [
        make_run(strategy="fedavg", seed=0),
        shown(make_run(strategy="fedavg", seed=1), FIRST),
        shown(make_run(strategy="fedavg", seed=2), SECOND),
        shown(make_run(strategy="feddm", seed=0), SECOND, FIRST),
        make_run(strategy="local", seed=0),
    ]
    found = showcases(compare(load_runs(paths)).methods)
    by_name = {one.run.config["strategy"]: one for one in found}
    assert set(by_name) == {"fedavg", "feddm"}
    assert by_name["fedavg"].run.seed == 1
    assert [kind for kind, _ in by_name["fedavg"].kinds] == ["Captions"]
    assert [kind for kind, _ in by_name["feddm"].kinds] == ["Questions", "Captions"]
    (caption,) = by_name["fedavg"].kinds[0][1]
    assert caption.lines == (("gold", "a red square"), ("model", NASTY))


def test_damaged_exhibits_are_refused(make_run: MakeRun) -> None:
    path = make_run(strategy="fedavg")
    (path / "exhibits.json").write_text('{"exhibits": [{}]}')
    with pytest.raises(RecordError, match=r"exhibits\.json cannot be read"):
        load_runs([path])
