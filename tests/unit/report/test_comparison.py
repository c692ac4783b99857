from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from core.errors import RecordError
from core.scores import CLASSIFICATION, Score
from report import comparison
from report.comparison import Entry, write_comparison
from report.loading import LoadedRun, load_run, load_runs
from tests.unit.report.conftest import RETRIEVAL, judged_as, make_private, make_retrieval

MakeRun = Callable[..., Path]
Table = dict[str, dict[str, str]]


def tables_of(markdown: str) -> list[Table]:
    """Every table: for each row, by its first cell, the other cells by heading."""
    tables: list[Table] = []
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        head, rule, *rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in block.splitlines()
        ]
        assert set(rule) <= {"---", "---:"} and len(rule) == len(head)
        tables.append({row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows})
    return tables


def written(entries: Iterable[Entry], folder: Path, target: float | None = None) -> tuple[str, str]:
    """The Markdown and the LaTeX."""
    write_comparison(
        list(entries),
        folder,
        title="A_title",
        scores=CLASSIFICATION,
        target=target,
        notes=["50% note."],
    )
    return (folder / "comparison.md").read_text(), (folder / "comparison.tex").read_text()


@pytest.fixture
def three_seeds(make_run: MakeRun) -> tuple[LoadedRun, ...]:
    """Every second round evaluated; seeds reach 60% in rounds 2 and 4, and never."""
    tests: list[list[float | None]] = [
        [0.1, None, 0.6, None, 0.8],
        [0.1, None, 0.5, None, 0.7],
        [0.1, None, 0.4, None, 0.3],
    ]
    validations: list[list[float | None]] = [
        [0.1, None, 0.9, None, 0.9],
        [0.1, None, 0.5, None, 0.7],
        [0.1, None, 0.4, None, 0.3],
    ]
    return tuple(
        judged_as(make_run("fedavg", seed, rounds=4), test=test, validation=validation,
                  bytes_up=1000, client_s=10.0)
        for seed, (test, validation) in enumerate(zip(tests, validations, strict=True))
    )  # fmt: skip


def test_the_tables_are_the_records_by_hand(
    three_seeds: tuple[LoadedRun, ...], tmp_path: Path
) -> None:
    markdown, _ = written([Entry("", "fedavg", three_seeds, 3)], tmp_path, 0.6)
    accuracies, costs = tables_of(markdown)
    spread = statistics.stdev([80, 70, 30])
    best = statistics.stdev([60, 70, 40])
    row = accuracies["fedavg"]
    assert row["Seeds"] == "0 to 2"
    assert row["Test accuracy, %"] == f"60.00 ± {spread:.2f}"
    assert row["At best validation, %"] == f"{170 / 3:.2f} ± {best:.2f}"
    assert row["Best round"] == "2 to 4"
    worst = [100 * (run.final.worst_client_score or 0) for run in three_seeds if run.final]
    assert row["Worst client, %"] == f"{statistics.mean(worst):.2f} ± {statistics.stdev(worst):.2f}"
    assert costs["fedavg"] == {
        "Reached 60%": "2 of 3 seeds",
        "Rounds to 60%": "3.0 ± 1.4",
        "Uploaded to 60%": "3.00 ± 1.41 kB",
        "Client s to 60%": "30.00 ± 14.14",
        "Rounds": "4",
        "Uploaded": "4.00 ± 0 kB",
        "Downloaded": "12.00 ± 0 kB",
        "Client s": "40.00 ± 0",
        "Server s": "2.00 ± 0",
    }
    assert "test accuracy of at least 60%" in markdown


def test_a_target_that_nobody_reaches_has_no_cost(
    three_seeds: tuple[LoadedRun, ...], tmp_path: Path
) -> None:
    _, costs = tables_of(written([Entry("", "fedavg", three_seeds, 3)], tmp_path, 0.81)[0])
    row = costs["fedavg"]
    assert row["Reached 81%"] == "0 of 3 seeds"
    assert {row[f"{what} to 81%"] for what in ("Rounds", "Uploaded", "Client s")} == {"—"}


def test_no_target_is_invented(three_seeds: tuple[LoadedRun, ...], tmp_path: Path) -> None:
    markdown, latex = written([Entry("", "fedavg", three_seeds, 3)], tmp_path)
    _, costs = tables_of(markdown)
    assert list(costs["fedavg"]) == ["Rounds", "Uploaded", "Downloaded", "Client s", "Server s"]
    for text in (markdown, latex):
        assert not re.search(r"\b(reached|to \d+\\?%)", text, re.IGNORECASE)


def test_missing_seeds_are_marked(make_run: MakeRun, tmp_path: Path) -> None:
    done = load_run(make_run("fedavg", 0, rounds=3))
    cut = load_run(make_run("fedavg", 1, rounds=3, done=2, status="interrupted"))
    markdown, latex = written(
        [Entry("", "fedavg", (done, cut), 3), Entry("", "none", (), 3)], tmp_path, 0.1
    )
    accuracies, costs = tables_of(markdown)
    assert done.final is not None and done.final.test is not None
    assert accuracies["fedavg"]["Seeds"] == "0 (1 of 3)"
    assert accuracies["fedavg"]["Test accuracy, %"] == f"{100 * done.final.test.primary:.2f}"
    assert accuracies["none"]["Seeds"] == "none (0 of 3)"
    assert set(accuracies["none"].values()) == {"none (0 of 3)", "—"}
    assert set(costs["none"].values()) == {"—"}
    note = "fedavg: 2 of 3 seeds missing: seed 1 is interrupted at round 2 of 3."
    assert f"- {note}\n" in markdown and note in latex
    assert "- none: 3 of 3 seeds missing." in markdown


def test_a_failed_method_keeps_its_row_and_tells_why(make_run: MakeRun, tmp_path: Path) -> None:
    failed = [
        load_run(make_run("fedavg", seed, rounds=3, done=seed, status="failed", failure=failure))
        for seed, failure in enumerate(["50% lost\nTraceback", None])
    ]
    markdown, latex = written([Entry("", "avg", tuple(failed), 2)], tmp_path, 0.1)
    for table in tables_of(markdown):
        assert set(table["avg"].values()) <= {"none (0 of 2)", "—"}
    note = (
        "avg: 2 of 2 seeds missing: seed 0 failed at round 0 of 3 (50% lost); seed 1 failed at "
        "round 1 of 3 (no reason on record)."
    )
    assert f"- {note}\n" in markdown
    assert note.replace("%", r"\%") in latex
    assert "Traceback" not in markdown + latex


def test_a_run_resumed_in_another_environment_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    at = "2026-11-21T10:00:00+00:00"
    resumed = [
        {"after_round": 1, "at": at, "changed": {}},
        {"after_round": 2, "at": at, "changed": {"torch": "2.14 -> 2.15"}},
    ]
    run = load_run(make_run("fedavg", 4, rounds=3, resumed=resumed))
    markdown, latex = written([Entry("", "avg", (run,), 1)], tmp_path)
    notes = [line for line in markdown.splitlines() if line.startswith("- ")]
    (note,) = notes
    assert note.startswith("- avg: seed 4 was resumed after round 2 with torch 2.14 -> 2.15; its")
    assert "may differ in their last bits" in note
    assert r"torch 2.14 -\textgreater{} 2.15" in latex


def test_captions_say_what_is_left_out_only_where_it_happens(
    make_run: MakeRun, tmp_path: Path
) -> None:
    plain = [Entry("", s, (load_run(make_run(s, rounds=1)),), 1) for s in ("fedavg", "feddm")]
    failures = {(1, 0): ("surplus", "closed")}
    path = make_run("local", rounds=1, clients=2, client_failures=failures)
    lines = (path / "rounds.jsonl").read_text().splitlines()
    last = json.loads(lines[-1]) | {"client_scores": [None, 0.5]}
    (path / "rounds.jsonl").write_text(f"{lines[0]}\n{json.dumps(last)}\n")
    faulty = Entry("", "alone", (load_run(path),), 1)
    told = (
        "Client seconds leave out replies that were surplus; uploads leave out those that were",
        "Accuracy of alone, the worst client's too, covers the clients that answered in that",
        "Horizontal lines: ",
    )
    for entries, expected in ((plain, False), ([*plain, faulty], True)):
        markdown, latex = written(entries, tmp_path)
        for words in told:
            assert (words in markdown) == (words in latex) == expected, words


def test_a_workload_without_classes_is_compared_by_its_own_scores(
    make_run: MakeRun, tmp_path: Path
) -> None:
    measured = {"sensitivity/crop": [0.5, 0.25], "sensitivity/color_jitter": [0.75, 0.5]}
    paths = [make_run("fedavg", seed, rounds=1) for seed in (0, 1)]
    runs = tuple(
        load_run(make_retrieval(path, recalls, measured))
        for path, recalls in zip(paths, ([0.1, 0.3], [0.1, 0.5]), strict=True)
    )
    write_comparison(
        [Entry("msr", "avg", runs, 2), Entry("vtt", "avg", runs, 2)],
        tmp_path, title="t", scores=RETRIEVAL, target=0.2, notes=[],
    )  # fmt: skip
    markdown = (tmp_path / "comparison.md").read_text()
    scores, costs = tables_of(markdown)[:2]
    assert scores["avg"] == {
        "Seeds": "0, 1",
        "Test R@1, %": "40.00 ± 14.14",
        "R@5, %": "80.00 ± 28.28",
        "Median rank": "2.67 ± 0.94",  # of 1 / 0.3 and 1 / 0.5
        "At best validation, %": "40.00 ± 14.14",
        "Best round": "1",
    }
    assert costs["avg"]["Reached 20%"] == "2 of 2 seeds"
    assert "Test R@1, R@5 and median rank after the last round, mean" in markdown
    assert "Of median rank lower is better." in markdown
    assert "Worst client" not in markdown
    assert "test R@1 of at least 20%" in markdown
    files = {path.name for path in (tmp_path / "comparison").glob("*.svg")}
    assert files == {
        "final-recall-at-1.svg",
        "curves-01-msr.svg",
        "curves-02-vtt.svg",
        "measured-01-msr-1-sensitivity.svg",
        "measured-02-vtt-1-sensitivity.svg",
    }
    assert "![Sensitivity under msr against rounds](comparison/measured-01-msr-1-" in markdown
    for text in (markdown, (tmp_path / "comparison.tex").read_text()):
        assert "accurac" not in text.lower()


def test_runs_of_unlike_primary_scores_are_not_compared(make_run: MakeRun, tmp_path: Path) -> None:
    images = load_run(make_run("fedavg", name="images", rounds=1))
    videos = load_run(make_retrieval(make_run("fedavg", name="videos", rounds=1), [0.1, 0.3]))
    entries = [Entry("", "a", (images,), 1), Entry("", "b", (videos,), 1)]
    with pytest.raises(RecordError, match=r"images is judged by accuracy .* videos by R@1"):
        written(entries, tmp_path)
    assert not any(tmp_path.glob("comparison*"))


def test_a_suite_without_any_complete_run_has_no_figure(tmp_path: Path) -> None:
    entries = [Entry("a", "fedavg", (), 1), Entry("b", "fedavg", (), 1)]
    markdown, latex = written(entries, tmp_path)
    assert "![" not in markdown and "includegraphics" not in latex
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison.md", "comparison.tex"]


def test_raw_images_and_attacks_are_marked(make_run: MakeRun, tmp_path: Path) -> None:
    attack = {"attack.kind": "scale", "attack.fraction": 0.25, "attack.factor": -3.5}
    raw = load_run(make_run("real-images", rounds=1))
    attacked = load_run(make_run("fedavg", rounds=1, settings=attack))
    both = [Entry("", "pixels", (raw,), 1), Entry("", "avg", (attacked,), 1)]
    markdown, latex = written(both, tmp_path)
    for table in tables_of(markdown):
        assert list(table) == ["pixels (not private)", "avg (attack: scale x-3.5, 25% of clients)"]
    assert r"avg (attack: scale x-3.5, 25\% of clients) &" in latex
    assert "clients send real images as they are" in markdown


def test_settings_have_parts_of_their_own_and_are_seen_side_by_side(
    make_run: MakeRun, tmp_path: Path
) -> None:
    entries = [
        Entry(
            setting, strategy, (load_run(make_run(strategy, rounds=2, name=f"{strategy}{n}")),), 1
        )
        for n, setting in enumerate(("alpha=0.01", "alpha_1"))
        for strategy in ("feddm", "fedavg")
    ]
    markdown, latex = written(entries, tmp_path, 0.5)
    assert re.findall(r"^## (.*)$", markdown, re.MULTILINE) == ["alpha=0.01", "alpha_1"]
    assert [list(table) for table in tables_of(markdown)] == [["feddm", "fedavg"]] * 4
    images = re.findall(r"!\[.*?\]\((.*?)\)", markdown)
    assert images == [
        "comparison/final-accuracy.svg",
        "comparison/curves-01-alpha-0-01.svg",
        "comparison/curves-02-alpha-1.svg",
    ]
    prints = re.findall(r"\\includegraphics\[.*?\]\{(.*?)\}", latex)
    assert prints == [image.replace(".svg", ".pdf") for image in images]
    for name in (*images, *prints):
        assert (tmp_path / name).stat().st_size > 0
    assert r"\caption{alpha\_1. " in latex


def test_text_is_escaped_in_both_forms(make_run: MakeRun, tmp_path: Path) -> None:
    hostile = "a|b_{<script>}\n&%$x$"
    entries = [Entry(hostile, hostile, (load_run(make_run(rounds=1)),), 2)]
    markdown, latex = written(entries, tmp_path, 0.5)
    assert "<script>" not in markdown
    assert len(tables_of(markdown)) == 2
    bare = re.sub(r"\\[&%$_{}#]|\$\\pm\$", "", "\n".join(re.findall(r"a\\textbar.*", latex)))
    assert "script" in bare
    assert not re.search(r"[$%_#]|<|>", bare)
    assert "50\\% note." in latex and "50% note." in markdown


def test_equal_records_give_equal_files(three_methods: list[Path], tmp_path: Path) -> None:
    runs = load_runs(three_methods)
    entries = [
        Entry(setting, runs[n].strategy, tuple(runs[n : n + 3]), 3)
        for setting in ("a", "b")
        for n in (0, 3, 6)
    ]
    contents = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        paths = write_comparison(
            entries, folder, title="t", scores=CLASSIFICATION, target=0.5, notes=[]
        )
        assert len(paths) == 2 + 2 * 3
        assert sorted(paths) == sorted(path for path in folder.rglob("*") if path.is_file())
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]


def test_a_place_that_cannot_be_written_to_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    entry = Entry("", "feddm", (load_run(make_run(rounds=1)),), 1)
    with pytest.raises(RecordError, match=r"comparison\.md cannot be written"):
        write_comparison(
            [entry], tmp_path / "file", title="t", scores=CLASSIFICATION, target=None, notes=[]
        )


Private = Callable[..., tuple[LoadedRun, ...]]


@pytest.fixture
def private(make_run: MakeRun) -> Private:
    """Two seeds of a method at a budget."""

    def make(label: str, budget: float | None, tests: tuple[float, float], **terms: Any) -> Any:
        runs = []
        for seed, test in enumerate(tests):
            path = make_run("fedavg", seed, rounds=1, name=f"{label}-{budget}-{seed}")
            spent = 14.0 + seed / 10 if budget is None else budget - 0.005
            make_private(path, [0, spent], budget=budget, **terms)
            runs.append(judged_as(path, test=[0.1, test]))
        return tuple(runs)

    return make


def test_a_privacy_suite_is_a_table_of_methods_by_epsilon(
    private: Private, make_run: MakeRun, tmp_path: Path
) -> None:
    plain = tuple(
        judged_as(make_run("fedavg", seed, rounds=1, name=f"plain{seed}"), test=[0.1, test])
        for seed, test in enumerate((0.9, 0.94))
    )
    entries = [
        Entry("eps1", "dp", private("dp", 1.0, (0.4, 0.5)), 2),
        Entry("eps1", "dm", private("dm", 1.0, (0.6, 0.7)), 2),
        Entry("eps1", "plain", plain, 2),
        Entry("eps8", "dp", private("dp", 8.0, (0.7, 0.8)), 2),
        Entry("eps8", "dm", private("dm", 8.0, (0.75, 0.75)), 2),
        Entry("eps8", "plain", plain, 2),
        Entry("paper", "dp", private("dp", None, (0.8, 0.9)), 2),
    ]
    markdown, tex = written(entries, tmp_path)
    by_epsilon, first = tables_of(markdown)[:2]
    spread = f"{100 * statistics.stdev([0.4, 0.5]):.2f}"
    assert by_epsilon == {
        "dp": {
            "Epsilon 1": f"45.00 ± {spread}", "Epsilon 8": f"75.00 ± {spread}",
            "paper": f"85.00 ± {spread}", "No noise": "—",
        },
        "dm": {
            "Epsilon 1": f"65.00 ± {spread}", "Epsilon 8": "75.00 ± 0", "paper": "—",
            "No noise": "—",
        },
        "plain": {
            "Epsilon 1": "—", "Epsilon 8": "—", "paper": "—",
            "No noise": f"92.00 ± {100 * statistics.stdev([0.9, 0.94]):.2f}",
        },
    }  # fmt: skip
    assert {name: row["Epsilon per example"] for name, row in first.items()} == {
        "dp": "0.995", "dm": "0.995", "plain": "no noise",
    }  # fmt: skip
    assert "Epsilons on record: Epsilon 1: 0.995; Epsilon 8: 7.995; paper: 14.05." in markdown
    assert "![Test accuracy against epsilon](comparison/epsilon-01.svg)" in markdown
    for suffix in ("svg", "pdf"):
        assert (tmp_path / "comparison" / f"epsilon-01.{suffix}").stat().st_size > 1000
    assert r"\includegraphics[width=\linewidth]{comparison/epsilon-01.pdf}" in tex
    assert "Method & Epsilon 1 & Epsilon 8 & paper & No noise" in tex


def test_the_figure_holds_the_points_of_the_records(
    private: Private, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Any, str]] = []

    def keep(methods: Any, title: str, score: Score) -> tuple[bytes, bytes]:
        assert score == CLASSIFICATION.primary
        drawn.append((methods, title))
        return b"<svg/>", b"%PDF"

    monkeypatch.setattr(comparison, "draw_against_epsilon", keep)
    entries = [
        Entry("eps8", "dp", private("dp", 8.0, (0.7, 0.8)), 2),
        Entry("eps1", "dp", private("dp", 1.0, (0.4, 0.5)), 2),
    ]
    written(entries, tmp_path)
    (((one,), title),) = drawn
    assert [(p.epsilon, p.score.mean, p.budget) for p in one.points] == [
        (pytest.approx(0.995), pytest.approx(0.45), 1.0),
        (pytest.approx(7.995), pytest.approx(0.75), 8.0),
    ]
    assert one.reference is None
    assert title == "Epsilon of the whole run (one example, delta 1e-05)"


@pytest.mark.parametrize("unlike", [{"unit": "client", "mechanism": "client"}, {"delta": 1e-4}])
def test_unlike_epsilons_are_not_drawn_and_the_reason_is_told(
    private: Private, tmp_path: Path, unlike: dict[str, Any]
) -> None:
    entries = [
        Entry("", "dp", private("dp", 1.0, (0.4, 0.5)), 2),
        Entry("", "other", private("other", 1.0, (0.4, 0.5), **unlike), 2),
    ]
    markdown, tex = written(entries, tmp_path)
    assert "because these epsilons do not compare" in markdown
    assert "because these epsilons do not compare" in tex
    assert not list((tmp_path / "comparison").glob("epsilon*"))
    cells = [row["Epsilon" if "unit" in unlike else "Epsilon per example"]
             for row in tables_of(markdown)[0].values()]  # fmt: skip
    unit, delta = unlike.get("unit", "example"), unlike.get("delta", 1e-5)
    assert cells == ["0.995 (example, delta 1e-05)", f"0.995 ({unit}, delta {delta:g})"]


def test_settings_of_unlike_tasks_have_a_figure_each(private: Private, tmp_path: Path) -> None:
    def entries(alpha: float) -> list[Entry]:
        found = []
        for budget in (1.0, 8.0):
            runs = private(f"a{alpha}", budget, (0.4, 0.5))
            skewed = tuple(
                dataclasses.replace(run, config={**run.config, "partition.alpha": alpha})
                for run in runs
            )
            found.append(Entry(f"a{alpha}-e{budget:g}", "dp", skewed, 2))
        return found

    markdown, _ = written([*entries(0.1), *entries(0.5)], tmp_path)
    assert "## Accuracy against epsilon: a0.1-e1 and a0.1-e8" in markdown
    assert "## Accuracy against epsilon: a0.5-e1 and a0.5-e8" in markdown
    assert len(list((tmp_path / "comparison").glob("epsilon-*.svg"))) == 2


def test_refused_epsilon_has_no_point(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_private(make_run("fedavg", rounds=1), [None, None], note="refused: seeded noise")
    markdown, _ = written([Entry("", "dp", (load_run(path),), 1)], tmp_path)
    assert "Accuracy against epsilon" not in markdown
    assert tables_of(markdown)[0]["dp"]["Epsilon per example"] == "refused: seeded noise"
