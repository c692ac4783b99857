"""What guessing scores on a video corpus, by every metric of VLM's tasks: what models must beat.

Exact expectations, on the test split: clips in a random order for each text, a candidate drawn and
the one that was most often right in training, the label that most seconds of the training videos
have, steps given one of all increasing tuples of seconds, and for captions the caption that most
training events have, written for every clip. Tasks that the corpus has nothing for are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from core.config import RunConfig
from core.errors import DataError, TesseraError
from pairing.configuration import parse_config
from workloads.table import open_workload
from workloads.video.dataset import Clip
from workloads.video.metrics.captions import bleu, cider, rouge_l
from workloads.video.metrics.chance import (
    guessed_answers,
    guessed_median_rank,
    guessed_ranks,
    guessed_recall,
    majority_accuracy,
    usual_answers,
)
from workloads.video.metrics.retrieval import recall_at
from workloads.video.options import VideoOptions
from workloads.video.vlm.answering import Answering
from workloads.video.vlm.captioning import Captioning
from workloads.video.vlm.localization import Localization
from workloads.video.vlm.retrieval import KS, Retrieval
from workloads.video.vlm.segmentation import BACKGROUND, Segmentation
from workloads.video.vlm.task import Task
from workloads.video.vlm.workload import Vlm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Keys of ``tessera run``."""
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="such as video.source=shapestory:DIR"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    try:
        words = [word.partition("=") for word in arguments.settings]
        values = {key: value for key, _, value in words}
        config = parse_config({"strategy": "fedavg", **values, "workload": "vlm"})
        rows = chances(config)
    except TesseraError as error:
        print(f"python -m benchmarks vlm_chance: {error}", file=sys.stderr)
        return error.exit_code
    print("| task | score | by chance |\n|---|---|---:|")
    for task, score, value in rows:
        print(f"| {task} | {score} | {value} |")
    return 0


def chances(config: RunConfig) -> list[tuple[str, str, str]]:
    """Task, score and its expected value as text, of the tasks that the corpus serves.

    Raises:
        DataError: It serves none.
    """
    workload = open_workload(config, torch.device("cpu"))
    assert isinstance(workload, Vlm)
    train, test = workload.dataset.splits["train"], workload.dataset.splits["test"]
    rows = [
        (name, score, value)
        for name, guess in GUESSES.items()
        if not workload.lacking(name)
        for score, value in guess(workload.task(name), train, test)
    ]
    if not rows:
        raise DataError(
            f"{config.section(VideoOptions).source} tells nothing of its videos that one of "
            f"{', '.join(GUESSES)} could be judged by; name another corpus"
        )
    return rows


Rows = list[tuple[str, str]]


def _retrieval(task: Task, train: Sequence[Clip], test: Sequence[Clip]) -> Rows:
    assert isinstance(task, Retrieval)
    counts = Counter(text for clip in test for _, text in task.items(clip))
    alike = np.array(list(counts.values()))
    ranks = guessed_ranks(np.repeat(alike, alike), int(alike.sum()))
    rank = guessed_median_rank(alike, alike, int(alike.sum()))
    shares = [(f"R@{k}", f"{recall_at(ranks, k):.2%}") for k in KS]
    return [*shares, ("median rank", f"{rank:.5g}")]


def _segmentation(task: Task, train: Sequence[Clip], test: Sequence[Clip]) -> Rows:
    assert isinstance(task, Segmentation)
    seen, wanted = (
        torch.cat([task.labels(clip) for clip in clips if task.num_items(clip)]).numpy()
        for clips in (train, test)
    )
    return [
        (told, f"{majority_accuracy(seen, wanted, background):.2%}")
        for told, background in (
            ("frame accuracy", None),
            ("frame accuracy within steps", BACKGROUND),
        )
    ]


def _localization(task: Task, train: Sequence[Clip], test: Sequence[Clip]) -> Rows:
    assert isinstance(task, Localization)
    clips = [clip for clip in test if task.num_items(clip)]
    happens = [task.happens(clip).numpy().astype(bool) for clip in clips]
    recall = guessed_recall(happens, [clip.video.topic for clip in clips])
    return [("average recall of steps", f"{recall:.2%}")]


def _answering(task: Task, train: Sequence[Clip], test: Sequence[Clip]) -> Rows:
    assert isinstance(task, Answering)
    answers = [question.answer for clip in train for question in task.items(clip)]
    asked = [(one.candidates, one.answer) for clip in test for one in task.items(clip)]
    drawn = guessed_answers([len(candidates) for candidates, _ in asked])
    return [
        ("accuracy of answers", f"{drawn:.2%}"),
        ("accuracy of the most usual answer", f"{usual_answers(answers, asked):.2%}"),
    ]


def _captioning(task: Task, train: Sequence[Clip], test: Sequence[Clip]) -> Rows:
    assert isinstance(task, Captioning)
    usual = Counter(text for clip in train for _, texts in task.items(clip) for text in texts)
    references = [list(texts) for clip in test for _, texts in task.items(clip)]
    written = [usual.most_common(1)[0][0]] * len(references)
    return [
        ("CIDEr", f"{cider(written, references):.5g}"),
        ("BLEU-4", f"{bleu(written, references)[3]:.2%}"),
        ("ROUGE-L", f"{rouge_l(written, references):.2%}"),
    ]


GUESSES: Mapping[str, Callable[[Task, Sequence[Clip], Sequence[Clip]], Rows]] = {
    "retrieval": _retrieval,
    "segmentation": _segmentation,
    "localization": _localization,
    "question-answering": _answering,
    "captioning": _captioning,
}
"""From a task with training and test videos to scores and their values as text."""
