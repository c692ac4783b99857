"""What guessing scores on a corpus: against draws, by hand, and where a corpus lacks something."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.vlm_chance import chances
from core.config import parse_assignments
from data.video.records import Corpus
from pairing.configuration import parse_config
from tests.unit.workloads.video.corpora import write_corpus
from workloads.video.metrics.retrieval import median_rank, ranks, recall_at

EVERY = {
    "retrieval": ["R@1", "R@5", "R@10", "median rank"],
    "segmentation": ["frame accuracy", "frame accuracy within steps"],
    "localization": ["average recall of steps"],
    "question-answering": ["accuracy of answers", "accuracy of the most usual answer"],
    "captioning": ["CIDEr", "BLEU-4", "ROUGE-L"],
}


def corpus_of(root: Path, **told: object) -> tuple[Corpus, dict[str, str]]:
    """A generated corpus, every video with these fields in place of its own; and its keys."""
    keys = parse_assignments(write_corpus(root, train=8, validation=2, test=6))
    corpus = Corpus.read(root)
    videos = tuple(dataclasses.replace(video, **told) for video in corpus.videos)  # type: ignore[arg-type]
    dataclasses.replace(corpus, videos=videos).write()
    return corpus, keys


def chances_of(keys: dict[str, str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for task, score, value in chances(
        parse_config({"workload": "vlm", "strategy": "fedavg", **keys})
    ):
        found.setdefault(task, {})[score] = value
    return found


def test_every_score_of_every_task_is_told(tmp_path: Path) -> None:
    corpus, keys = corpus_of(tmp_path / "c")
    found = chances_of(keys)
    assert {task: list(scores) for task, scores in found.items()} == EVERY
    asked = [
        len(q.candidates) for v in corpus.of_split("test") for q in v.questions if q.candidates
    ]
    assert (
        found["question-answering"]["accuracy of answers"] == f"{np.mean(1 / np.array(asked)):.2%}"
    )


def test_retrieval_is_what_random_scores_give(tmp_path: Path) -> None:
    """Equal texts have equal scores, as a model gives them, and each other's clips are right."""
    corpus, keys = corpus_of(tmp_path / "c")
    texts = [event.caption for video in corpus.of_split("test") for event in video.events]
    assert max(Counter(texts).values()) > 1
    names = list(dict.fromkeys(texts))
    row = [names.index(text) for text in texts]
    same = np.equal.outer(row, row)
    generator = np.random.default_rng(0)
    drawn = [ranks(generator.normal(size=(len(names), len(texts)))[row], same) for _ in range(4000)]
    found = chances_of(keys)["retrieval"]
    for k in (1, 5, 10):
        share = float(found[f"R@{k}"].rstrip("%")) / 100
        assert np.mean([recall_at(one, k) for one in drawn]) == pytest.approx(share, abs=0.01)
    medians = [median_rank(one) for one in drawn]
    error = np.std(medians) / np.sqrt(len(medians))
    assert abs(np.mean(medians) - float(found["median rank"])) < 5 * error


@pytest.mark.parametrize(
    ("told", "left_out"),
    [
        ({"questions": ()}, {"question-answering"}),
        ({"events": (), "captions": ("a star",)}, {"segmentation", "localization"}),
        (
            {"events": (), "captions": (), "paragraph": ""},
            {"segmentation", "localization", "retrieval", "captioning"},
        ),
    ],
)
def test_tasks_that_a_corpus_has_nothing_for_are_left_out(
    told: dict[str, object], left_out: set[str], tmp_path: Path
) -> None:
    _, keys = corpus_of(tmp_path / "c", **told)
    assert set(chances_of(keys)) == EVERY.keys() - left_out


def test_a_corpus_that_tells_nothing_is_refused_and_so_are_unknown_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, keys = corpus_of(tmp_path / "c", events=(), captions=(), paragraph="", questions=())
    words = [f"{key}={value}" for key, value in keys.items()]
    for more, code, told in (([], 3, "tells nothing of its videos"), (["colour=red"], 2, "colour")):
        monkeypatch.setattr(sys, "argv", ["benchmarks", "vlm_chance", *words, *more])
        assert main() == code
        assert told in capsys.readouterr().err
