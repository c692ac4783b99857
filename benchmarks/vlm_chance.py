"""What guessing scores on a video corpus, by every metric of VLM's tasks: what models must beat.

Exact expectations, on the test split: clips in a random order, a candidate drawn, the label that
most seconds of the training videos have, steps given one of all increasing tuples of seconds, and
for captions the caption that most training events have, written for every clip.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np
import torch

from core.config import RunConfig
from core.errors import TesseraError
from pairing.configuration import parse_config
from workloads.table import open_workload
from workloads.video.metrics.captions import bleu, cider, rouge_l
from workloads.video.metrics.chance import (
    guessed_answers,
    guessed_ranks,
    guessed_recall,
    majority_accuracy,
)
from workloads.video.metrics.retrieval import median_rank, recall_at
from workloads.video.vlm.answering import Answering
from workloads.video.vlm.captioning import Captioning
from workloads.video.vlm.localization import Localization
from workloads.video.vlm.options import VlmOptions
from workloads.video.vlm.retrieval import KS, Retrieval
from workloads.video.vlm.segmentation import BACKGROUND, Segmentation
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
        print(f"vlm_chance: {error}")
        return error.exit_code
    print("| task | score | by chance |\n|---|---|---:|")
    for task, score, value in rows:
        print(f"| {task} | {score} | {value} |")
    return 0


def chances(config: RunConfig) -> list[tuple[str, str, str]]:
    """Task, score and its expected value as text."""
    workload = open_workload(config, torch.device("cpu"))
    assert isinstance(workload, Vlm)
    parts = (config.section(VlmOptions), workload.dataset, workload.batcher)
    train, test = workload.dataset.splits["train"], workload.dataset.splits["test"]
    rows = []

    told = [text for clip in test for _, text in Retrieval(*parts).items(clip)]
    counts = Counter(told)
    ranks = guessed_ranks(np.array([counts[text] for text in told]), len(told))
    rows += [("retrieval", f"R@{k}", f"{recall_at(ranks, k):.2%}") for k in KS]
    rows.append(("retrieval", "median rank", f"{median_rank(ranks):.5g}"))

    segmentation = Segmentation(*parts)
    seen, wanted = (
        torch.cat([segmentation.labels(clip) for clip in clips if segmentation.num_items(clip)])
        for clips in (train, test)
    )
    for score, background in (
        ("frame accuracy", None),
        ("frame accuracy within steps", BACKGROUND),
    ):
        value = majority_accuracy(seen.numpy(), wanted.numpy(), background)
        rows.append(("segmentation", score, f"{value:.2%}"))

    localization = Localization(*parts)
    clips = [clip for clip in test if localization.num_items(clip)]
    happens = [localization.happens(clip).numpy().astype(bool) for clip in clips]
    recall = guessed_recall(happens, [clip.video.topic for clip in clips])
    rows.append(("localization", "average recall of steps", f"{recall:.2%}"))

    asked = [len(q.candidates) for clip in test for q in Answering(*parts).items(clip)]
    rows.append(("question-answering", "accuracy of answers", f"{guessed_answers(asked):.2%}"))

    captioning = Captioning(*parts)
    usual = Counter(text for clip in train for _, texts in captioning.items(clip) for text in texts)
    references = [list(texts) for clip in test for _, texts in captioning.items(clip)]
    written = [usual.most_common(1)[0][0]] * len(references)
    rows += [
        ("captioning", "CIDEr", f"{cider(written, references):.5g}"),
        ("captioning", "BLEU-4", f"{bleu(written, references)[3]:.2%}"),
        ("captioning", "ROUGE-L", f"{rouge_l(written, references):.2%}"),
    ]
    return rows
