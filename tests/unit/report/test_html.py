from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from core.errors import RecordError
from report.figures import MOST_ROWS
from report.html import write_report
from report.loading import load_runs
from report.methods import compare
from report.tables import result_rows, to_csv, to_markdown
from tests.unit.report.conftest import judged_as, make_private, make_retrieval

MakeRun = Callable[..., Path]

VOID = {"meta", "link", "input", "path", "br", "img"}


class Page(HTMLParser):
    """What a page is made of; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"
        self.text += " " if tag in {"th", "td"} else ""

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        elif self.open and self.open[-1] != "style":
            self.text += data

    @property
    def prose(self) -> str:
        return " ".join(self.text.split())


def report(paths: list[Path], tmp_path: Path) -> str:
    return write_report(paths, tmp_path / "report.html").read_text()


def test_the_page_holds_every_part_in_order(three_methods: list[Path], tmp_path: Path) -> None:
    page = Page(report(three_methods, tmp_path))
    sections = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert sections == [
        "results", "curves", "classes", "clients", "partition", "images", "privacy", "reproduce",
        "environment",
    ]  # fmt: skip
    for path in three_methods:
        assert json.loads((path / "run.json").read_text())["command"] in page.prose
    assert "none: the images are not private" in page.prose
    assert "1f02fa7c0ffee" in page.prose
    assert "earlier attempts refused" in page.prose


def test_the_table_and_its_exports_are_the_records(
    three_methods: list[Path], tmp_path: Path
) -> None:
    page = Page(report(three_methods, tmp_path))
    rows = result_rows(compare(load_runs(three_methods)).methods)
    (exports,) = (json.loads(text) for _, text in page.scripts if text.startswith('{"csv"'))
    assert exports == {"markdown": to_markdown(rows), "csv": to_csv(rows)}
    for row in rows:
        assert row.primary is not None and row.primary.std is not None
        mean, std = 100 * row.primary.mean, 100 * row.primary.std
        assert f"{mean:.2f} ± {std:.2f}" in page.prose


def test_nothing_is_fetched_from_anywhere(three_methods: list[Path], tmp_path: Path) -> None:
    text = report(three_methods, tmp_path)
    assert text.count(get_plotlyjs()) == 1
    own = text.replace(get_plotlyjs(), "")
    assert re.findall(r"(?i)\b(?:https?|wss?|ftp):|[\"'(=]\s*//", own) == []
    assert "@import" not in own
    assert set(re.findall(r"url\((.{5})", own)) == {"data:"}
    page = Page(own)
    for tag, attrs in page.tags:
        assert not attrs.keys() & {"src", "srcset", "action", "data", "poster"}, tag
        assert re.match(r"#|data:,", attrs.get("href") or "#"), tag
        assert tag not in {"iframe", "object", "embed", "form", "base"}


def test_the_policy_allows_the_two_scripts_and_no_address(
    three_methods: list[Path], tmp_path: Path
) -> None:
    page = Page(report(three_methods, tmp_path))
    (policy,) = (
        attrs["content"] or ""
        for tag, attrs in page.tags
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    runnable = [text for kind, text in page.scripts if kind is None]
    assert len(runnable) == 2
    for script in runnable:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "'unsafe-inline'" not in policy.split("style-src")[0]
    assert "http" not in policy


def test_hostile_names_are_shown_and_not_obeyed(make_run: MakeRun, tmp_path: Path) -> None:
    attack = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'"
    run = make_run(
        "</style>{{ 7 * 7 }}.py:X",
        name="<script>alert(0)<&",
        rounds=2,
        done=2,
        status="failed",
        failure=attack,
        class_names=[attack, "<script>dog"],
        client_failures={(1, 3): ("refused", attack)},
    )
    (run / "privacy.json").write_text(
        json.dumps({"guarantee": attack, "images_sent": "raw", "text": attack})
    )
    environment = {attack: attack}
    (run / "environment.json").write_text(json.dumps(environment))
    text = report([run, make_run("feddm", rounds=1, class_names=[attack, "b"])], tmp_path)
    page = Page(text)
    assert "<script>alert" not in text and "<img" not in text
    assert all(not name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert len([kind for kind, _ in page.scripts if kind is None]) == 2
    assert [tag for tag, _ in page.tags].count("style") == 1
    assert attack in page.text
    assert "<script>alert(0)<&" in page.text
    assert "{{ 7 * 7 }}.py:X" in page.text


def test_raw_images_are_marked_wherever_they_appear(
    three_methods: list[Path], tmp_path: Path
) -> None:
    text = report(three_methods, tmp_path).replace(get_plotlyjs(), "")
    for path in three_methods:  # folder names, commands and keys repeat the strategy's bare name
        text = text.replace(path.name, "").replace("strategy=real-images", "")
    text = re.sub(r"<td>real-images</td>", "", text)
    text = re.sub(r"<[^>]*>", "", text)
    assert len(re.findall(r"real[-\u2011]images", text)) > 10
    assert re.findall(r"real[-\u2011]images(?! \(not private)[^\n]{0,30}", text) == []


def test_a_run_in_progress_and_a_failed_one_are_shown(make_run: MakeRun, tmp_path: Path) -> None:
    empty = make_run("fedprox", rounds=8, done=0, status="running")
    for name in ("rounds.jsonl", "partition.json", "privacy.json", "environment.json"):
        (empty / name).unlink()
    paths = [
        make_run("feddm", rounds=8, done=3, status="running"),
        make_run(
            "fedavg", rounds=8, done=2, status="failed", failure="3 of 10 clients answered",
            client_failures={
                (1, 2): ("late", "timed out"), (1, 5): ("late", "timed out"),
                (2, 4): ("refused", "NaN in images"),
            },
        ),
        make_run("local", rounds=8, done=4, status="interrupted"),
        empty,
    ]  # fmt: skip
    page = Page(report(paths, tmp_path))
    assert "is still running or was cut off; on record up to round 3 of 8." in page.prose
    assert "failed at round 2 of 8: 3 of 10 clients answered" in page.prose
    assert "was interrupted at round 4 of 8." in page.prose
    assert "feddm (unfinished)" in page.prose
    failures = page.prose.split("Who, when and why")[1]
    assert "0 2, 5 1 late 2 timed out" in failures
    assert "0 4 2 refused 1 NaN in images" in failures
    assert "No statement is on record" in page.prose


def test_only_an_empty_run(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_run(rounds=5, done=0, status="running")
    (path / "rounds.jsonl").unlink()
    page = Page(report([path], tmp_path))
    assert "No round has been evaluated yet." in page.prose
    (path / "partition.json").unlink()
    ahead = make_run(seed=1, rounds=5, done=2, status="running")
    assert 'id="plot-confusion-0"' in report([path, ahead], tmp_path)
    assert "classes" not in [attrs.get("id") for _, attrs in page.tags]


def test_there_is_no_section_of_failures_without_any(
    three_methods: list[Path], tmp_path: Path
) -> None:
    assert 'id="failures"' not in report(three_methods, tmp_path)


def test_outcomes_are_counted_and_surplus_is_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_run(
        "fedavg", rounds=2, clients=4,
        client_failures={(1, 0): ("surplus", "closed early"), (2, 1): ("dropped", "dropped out")},
    )  # fmt: skip
    section = Page(report([path], tmp_path)).prose.partition("What came of every request")[2]
    counts, _, who = section.partition("Who, when and why")
    assert "Asked Counted Dropped Surplus fedavg 8 6 1 1" in counts
    assert "Surplus is no failure" in counts
    assert "0 1 2 dropped 1 dropped out" in who
    assert "closed early" not in who


def test_surplus_alone_is_no_failure(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_run("fedavg", rounds=1, client_failures={(1, 0): ("surplus", "closed early")})
    assert 'id="failures"' not in report([path], tmp_path)


def test_images_that_are_gone_are_said(make_run: MakeRun, tmp_path: Path) -> None:
    paths = [make_run("feddm", rounds=2), make_run("real-images", rounds=2)]
    shutil.rmtree(paths[0] / "tesserae")
    prose = Page(report(paths, tmp_path)).prose
    assert (
        f"feddm: its clients sent images, and none of them can be shown. {paths[0].name}" in prose
    )
    assert "Each pair is an image sent" in prose
    shutil.rmtree(paths[1] / "tesserae")
    page = Page(report(paths, tmp_path))
    assert "real-images (not private): its clients sent images" in page.prose
    assert "Each pair is an image sent" not in page.prose
    assert "#images" in [attrs.get("href") for _, attrs in page.tags]


def test_a_resumed_run_says_after_which_round_and_when(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_run(
        "fedavg",
        rounds=5,
        resumed=[
            {"after_round": 1, "at": "2026-11-21T10:00:00+00:00"},
            {"after_round": 3, "at": "2026-11-22T01:30:00+02:00"},
        ],
    )
    prose = Page(report([path, make_run("local", rounds=5)], tmp_path)).prose
    resumed = (
        "resumed after round 1 (2026-11-21 10:00 UTC) and after round 3 (2026-11-21 23:30 UTC)"
    )
    assert f"{path.name}, complete, {resumed}" in prose
    assert prose.count("resumed") == 1
    assert "last bits" not in prose


def test_a_run_resumed_in_another_environment_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    entry = {"after_round": 1, "at": "2026-11-21T10:00:00+00:00"}
    path = make_run("fedavg", resumed=[entry, {**entry, "changed": {"torch": "2.14 -> 2.15"}}])
    prose = Page(report([path, make_run("local")], tmp_path)).prose
    assert f"Resumed in another environment than begun in: {path.name}. The results may" in prose
    assert "(2026-11-21 10:00 UTC) and after round 1 (2026-11-21 10:00 UTC; changed: torch" in prose
    assert "changed: torch 2.14 -> 2.15)" in prose


def test_an_attack_is_marked_wherever_the_method_appears(make_run: MakeRun, tmp_path: Path) -> None:
    attack = {"attack.kind": "scale", "attack.fraction": 0.2, "attack.factor": 10.0}
    paths = [make_run("fedavg", rounds=2, settings=attack), make_run("feddm", rounds=2)]
    prose = Page(report(paths, tmp_path)).prose
    for path in paths:
        prose = prose.replace(path.name, "").replace("strategy=fedavg", "")
    # The row `strategy` of the settings repeats the bare name.
    assert len(re.findall(r"fedavg(?! \(attack: scale x10, 20% of clients\))", prose)) == 1
    assert "Malicious clients took part (scale x10, 20% of clients)." in prose
    assert "feddm (attack" not in prose


def test_the_best_round_stands_beside_the_final_one(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_run("feddm", rounds=4)
    judged_as(path, test=[0.1, 0.2, 0.3, 0.4, 0.5], validation=[0.1, 0.5, 0.9, 0.9, 0.3])
    prose = Page(report([path], tmp_path)).prose
    row = re.search(r"feddm 0 50\.00 [\d.]+ [\d.]+ (\S+) (\S+) .*? 4 ", prose)
    assert row is not None and row.groups() == ("30.00", "2")


def test_labels_name_methods_wherever_they_appear(make_run: MakeRun, tmp_path: Path) -> None:
    paths = [
        make_run("/far/away/mine.py:Mine", seed, rounds=2, name=f"{setting}-{seed}",
                 settings={"partition.alpha": alpha})
        for setting, alpha in (("even", 9.0), ("skewed", 0.1)) for seed in (0, 1)
    ]  # fmt: skip
    labels = {
        path.parent / ".." / path.parent.name / path.name: f"mine, {path.name[:-2]}"
        for path in paths
    }
    out = write_report(paths, tmp_path / "report.html", labels)
    prose = Page(out.read_text()).prose
    methods = re.findall(r"(mine, \w+) 0, 1 ", prose.partition("Test accuracy, ")[2])
    assert methods == ["mine, even", "mine, skewed"]
    bare = Page(report(paths, tmp_path)).prose
    for text, name in ((prose, "mine, even"), (bare, "mine.py:Mine alpha=9.0")):
        shown, _, reproduce = text.partition("The command behind each run.")
        assert "/far/away" not in shown and shown.count(name) > 5
        assert "strategy=/far/away/mine.py:Mine" in reproduce


def test_of_a_failure_the_first_line_is_told(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_run("fedavg", rounds=3, done=2, status="failed", failure="gave up\n  in line 7")
    page = Page(report([path], tmp_path))
    assert "(fedavg, seed 0) failed at round 2 of 3: gave up" in page.prose
    assert "in line 7" not in page.prose
    assert re.search(r"fedavg \(unfinished\) 0 .* 2 of 3 ", page.prose)


def test_what_figures_leave_out_is_said_only_where_it_happens(
    make_run: MakeRun, tmp_path: Path
) -> None:
    failures = {(1, 0): ("late", "slow"), (2, 1): ("refused", "NaN")}
    plain = [make_run("fedavg", rounds=2, clients=3), make_run("local", rounds=2, clients=3)]
    prose = Page(report(plain, tmp_path)).prose
    for words in ("leave out", "clients that answered in that round", "have no dot"):
        assert words not in prose
    faulty = make_run("local", 1, rounds=2, clients=3, client_failures=failures)
    lines = [json.loads(line) for line in (faulty / "rounds.jsonl").read_text().splitlines()]
    lines[-1]["client_scores"] = [0.5, None, 0.25]
    (faulty / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prose = Page(report([*plain, faulty], tmp_path)).prose
    assert "Client seconds leave out replies that were refused or late; uploads leave out" in prose
    assert "Accuracy of local, the worst client's too, covers the clients that answered" in prose
    assert "Clients that did not answer then have no dot." in prose


def test_no_line_is_called_horizontal_that_is_not_drawn(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_run("local", rounds=3, done=0, status="running")
    (path / "rounds.jsonl").unlink()
    assert "Horizontal" not in Page(report([path], tmp_path)).prose
    assert "Horizontal: local, which" in Page(report([make_run("local", 1)], tmp_path)).prose


def test_what_is_left_out_is_said(make_run: MakeRun, tmp_path: Path) -> None:
    paths = [
        make_run("feddm", name="old", rounds=1),
        make_run("feddm", name="new", rounds=1, started="2026-05-01T00:00:00+00:00"),
        make_run("fedavg", rounds=1, settings={"partition.alpha": 5.0}),
    ]
    page = Page(report(paths, tmp_path))
    assert "old is left out: new is of the same method and seed, and newer." in page.prose
    assert "The methods differ in partition.alpha" in page.prose


def test_what_was_trained_on_is_what_was_dealt(make_run: MakeRun, tmp_path: Path) -> None:
    """Every configuration has data.source, also that of a workload with data of its own."""
    path = make_run("fedavg", rounds=1)
    partition = path / "partition.json"
    partition.write_text(json.dumps({**json.loads(partition.read_text()), "source": "shapestory"}))
    page = Page(report([path], tmp_path))
    assert "Federated training on shapestory" in page.prose
    assert "fedavg trained on shapestory, dealt to" in page.prose
    assert "digits" not in page.prose.partition("Results")[0]


def test_many_methods_are_summed_up(make_run: MakeRun, tmp_path: Path) -> None:
    paths = [make_run("fedavg", rounds=1, name=f"r{n}", settings={"train.learning-rate": n / 10})
             for n in range(1, 13)]  # fmt: skip
    page = Page(report(paths, tmp_path))
    assert "12 methods trained on digits" in page.prose
    assert "Test accuracy at the last evaluated round lies between" in page.prose


def test_every_table_plot_and_image_can_be_read_aloud(
    three_methods: list[Path], tmp_path: Path
) -> None:
    page = Page(report(three_methods, tmp_path))
    for tag, attrs in page.tags:
        if tag == "th":
            assert attrs["scope"] in {"col", "row"}
        if attrs.get("role") == "img":
            assert attrs["aria-label"]
        if tag == "svg":
            assert attrs["aria-hidden"] == "true"
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] or "" for tag, attrs in page.tags if tag == "a"]
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_every_figure_has_its_place(three_methods: list[Path], tmp_path: Path) -> None:
    page = Page(report(three_methods, tmp_path))
    places = {attrs["id"] for _, attrs in page.tags if "plot" in (attrs.get("class") or "").split()}
    drawn = {attrs["data-figure"] for _, attrs in page.tags if "data-figure" in attrs}
    assert drawn == places
    assert len(drawn) == 4 + 3 + 1 + 3


def test_equal_records_give_equal_pages(three_methods: list[Path], tmp_path: Path) -> None:
    assert report(three_methods, tmp_path) == report(three_methods, tmp_path)


def test_a_report_replaces_the_old_one_whole_or_not_at_all(
    make_run: MakeRun, tmp_path: Path
) -> None:
    path = make_run(rounds=1)
    out = tmp_path / "deep" / "report.html"
    assert write_report([path], out) == out.resolve()
    before = out.read_text()
    (path / "rounds.jsonl").write_text("{}\n")
    with pytest.raises(RecordError):
        write_report([path], out)
    assert out.read_text() == before
    assert [file.name for file in out.parent.iterdir()] == ["report.html"]


def test_a_folder_is_no_place_to_write_to(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="is a folder"):
        write_report([make_run(rounds=1)], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be written"):
        write_report([make_run("fedavg", rounds=1)], tmp_path / "file" / "report.html")


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_text_and_lines_stand_out_in_light_and_dark(make_run: MakeRun, tmp_path: Path) -> None:
    text = report([make_run(rounds=1)], tmp_path)
    schemes = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", scheme))
        for ground in ("paper", "surface"):
            for ink in ("ink", "muted", "accent", "warn"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
        for ground in ("heat-least", "heat-most"):
            assert contrast(colours["ink"], colours[ground]) >= 4.5, ground
        series = [name for name in colours if name.startswith("series-")]
        assert len(series) == 8
        for name in series:
            assert contrast(colours[name], colours["paper"]) >= 4.0, name


def test_the_privacy_section_of_private_runs(make_run: MakeRun, tmp_path: Path) -> None:
    private = make_private(make_run("fedavg", rounds=2), [0, 1.5, 2.5])
    text = report([private, make_run("fedprox", rounds=2)], tmp_path)
    page = Page(text)
    ids = {attrs.get("id") for tag, attrs in page.tags if tag == "div"}
    assert {"plot-epsilon-score", "plot-epsilon-0", "plot-signal"} <= ids
    for told in (
        "Epsilon of one round", "Epsilon of the whole run", "0.625", "2.5", "0.875, 4.625",
        "Epsilon of the whole run for one example, at delta 1e-05: fedavg 2.5.",
        "No privacy guarantee: fedprox.", "protects one example",
    ):  # fmt: skip
        assert told in page.prose, told
    assert "do not compare" not in page.prose


def test_unlike_epsilons_share_no_axis_and_the_page_says_why(
    make_run: MakeRun, tmp_path: Path
) -> None:
    example = make_private(make_run("fedavg", rounds=1), [0, 2.5])
    client = make_private(
        make_run("fedprox", rounds=1), [0, 1.5], unit="client", mechanism="client"
    )
    page = Page(report([example, client], tmp_path))
    ids = {attrs.get("id") for tag, attrs in page.tags if tag == "div"}
    assert "plot-epsilon-score" not in ids
    assert {"plot-epsilon-0", "plot-epsilon-1"} <= ids  # each unit has an axis of its own
    assert (
        "these epsilons do not compare: that for one example at delta 1e-05 of fedavg; that for "
        "one client at delta 1e-05 of fedprox. Report each kind by itself."
    ) in page.prose


def test_without_private_runs_the_page_has_no_epsilon(
    three_methods: list[Path], tmp_path: Path
) -> None:
    page = Page(report(three_methods, tmp_path))
    assert not any("epsilon" in (attrs.get("id") or "") for _, attrs in page.tags)
    assert "This is the plain demonstration" in page.prose


def test_refused_epsilon_is_no_number_anywhere(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_private(
        make_run("fedavg", rounds=1), [None, None], note="refused: seeded noise", snr=None
    )
    page = Page(report([path], tmp_path))
    ids = {attrs.get("id") for tag, attrs in page.tags if tag == "div"}
    assert not {"plot-epsilon-score", "plot-epsilon-0", "plot-signal"} & ids
    assert page.prose.count("refused: seeded noise") >= 2


def test_a_workload_without_classes_is_told_by_its_own_scores(
    make_run: MakeRun, tmp_path: Path
) -> None:
    paths = [
        make_retrieval(make_run("fedavg", 0, rounds=2), [0.1, 0.2, 0.3]),
        make_retrieval(make_run("fedavg", 1, rounds=2), [0.1, 0.4, 0.5]),
        make_retrieval(make_run("fedprox", 0, rounds=2), [0.1, 0.2, 0.25]),
    ]
    text = report(paths, tmp_path).replace(get_plotlyjs(), "")
    assert "accurac" not in text.lower()
    page = Page(text)
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert not ids & {"classes", "clients", "measured", "plot-clients", "plot-confusion-0"}
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert "#clients" not in links and "#measured" not in links
    heads = re.findall(r'<th scope="col">([^<]*)</th>', text)[:7]
    assert [head.replace("\u00a0", " ") for head in heads] == [
        "Method", "Seeds", "Test R@1, %", "R@5, %", "Median rank", "At best validation, %",
        "Best round",
    ]  # fmt: skip
    assert "fedavg 0, 1 40.00 ± 14.14 80.00 ± 28.28 2.67 ± 0.94 40.00 ± 14.14 2 " in page.prose
    assert "fedprox 0 25.00 50.00 4.00 25.00 2 " in page.prose
    assert "Test R@1 at the last evaluated round: fedavg 40.0 ± 14.1% and fedprox 25.0%." in (
        page.prose.replace("\u00a0", " ")
    )
    assert (
        "R@1, R@5 and median rank are of the last evaluated round, on the test set. Of median rank "
        "lower is better. “At best validation” is the test R@1 of each seed"
    ) in page.prose
    assert "How many training examples each client holds." in page.prose
    alts = [attrs["aria-label"] or "" for _, attrs in page.tags if attrs.get("role") == "img"]
    assert len([alt for alt in alts if alt.startswith("Line plot of test R@1 against")]) == 4
    assert "Bar chart of examples per client." in alts


def test_runs_of_unlike_primary_scores_do_not_share_a_page(
    make_run: MakeRun, tmp_path: Path
) -> None:
    images = make_run("fedavg", name="images", rounds=1)
    videos = make_retrieval(make_run("fedavg", name="videos", rounds=1), [0.1, 0.2])
    with pytest.raises(
        RecordError,
        match=r"images is judged by accuracy \(accuracy\), and videos by R@1 \(recall_at_1\)",
    ):
        report([images, videos], tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_what_the_workload_measured_has_a_plot_for_each_method_and_family(
    make_run: MakeRun, tmp_path: Path
) -> None:
    measured = {
        "sensitivity/crop": [0.5, 0.25, 0.125],
        "sensitivity/color_jitter": [0.75, 0.5, 0.4375],
        "loss/crop": [3.0, 2.0, 1.0],
        "displacement": [0.0, 1.0, 1.0],
    }
    both = {name: values for name, values in measured.items() if name != "loss/crop"}
    paths = [
        make_retrieval(make_run("fedavg", rounds=2), [0.1, 0.2, 0.3], measured),
        make_retrieval(make_run("fedprox", rounds=2), [0.1, 0.2, 0.3], both),
    ]
    page = Page(report(paths, tmp_path))
    plots = {
        attrs["id"]: attrs["aria-label"]
        for _, attrs in page.tags
        if (attrs.get("id") or "").startswith("plot-measured")
    }
    assert plots == {
        f"plot-measured-{place}": f"Line plot of {family} against communication rounds in "
        f"{method}, with lines for {members}. The last values are in the table below."
        for place, family, method, members in (
            ("0-0", "sensitivity", "fedavg", "crop and color jitter"),
            ("0-1", "sensitivity", "fedprox", "crop and color jitter"),
            ("1-0", "loss", "fedavg", "crop"),
        )
    }
    section = page.prose.partition("What the workload measured")[2]
    assert "Sensitivity in the last round crop color jitter fedavg 0.12 0.44 fedprox" in section
    assert "Loss in the last round crop fedavg 1.00 " in section
    assert "#measured" in [attrs.get("href") for _, attrs in page.tags]


def test_what_is_left_out_of_many_clients_is_said(make_run: MakeRun, tmp_path: Path) -> None:
    bare = make_retrieval(
        make_run("fedavg", rounds=1, name="bare", clients=MOST_ROWS + 20), [0.1, 0.2]
    )
    page = write_report([bare], tmp_path / "bare.html").read_text()
    assert "all of them hold" in page and " examples, on average 10." in page  # 1,200 by 120
    few = write_report([make_run("fedavg", rounds=1)], tmp_path / "few.html").read_text()
    many = make_run("fedavg", rounds=1, name="many", clients=MOST_ROWS + 20)
    page = write_report([many], tmp_path / "many.html").read_text()
    assert f"The first {MOST_ROWS} of {MOST_ROWS + 20} clients are shown" in page
    assert f"The first {MOST_ROWS} of" not in few
