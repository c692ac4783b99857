"""Clients that do different tasks on one shared encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from core.config import parse_assignments
from core.records import RunFolder
from data.video.records import Corpus
from experiments.run import resume
from pairing.configuration import parse_config
from server.prediction import predict_bytes
from server.preparation import prepare
from server.progress import PlainProgress
from tests.conftest import Federate
from tests.integration.test_engines_agree import assert_same_run
from tests.integration.test_workloads import kept, tensors
from tests.integration.vlm import MIXED, vlm_keys
from tests.unit.workloads.video.corpora import write_corpus
from workloads.table import open_workload


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, object]:
    """Keys of a corpus of 15 training videos, 3 for validation and 3 for test."""
    root = tmp_path_factory.mktemp("corpus")
    return dict(parse_assignments(write_corpus(root, train=15, validation=3, test=3)))


@pytest.mark.parametrize("strategy", ["fedavg", "fednova", "scaffold", "fedadam"])
def test_clients_of_different_tasks_share_an_encoder(
    strategy: str, corpus: Mapping[str, object], federate: Federate
) -> None:
    keys = vlm_keys(corpus, strategy, MIXED)
    path, preparation = federate(keys), prepare(parse_config(keys))
    last = RunFolder.open(path).read_rounds()[-1]
    assert [
        set(client.metrics) & {f"loss/{task}" for task in MIXED.split(";")}
        for client in last.clients
    ] == [
        {"loss/retrieval"},
        {"loss/segmentation"},
        {"loss/captioning"},
    ]
    assert last.bytes_up == sum(predict_bytes(preparation).up[1])
    assert last.test is not None
    assert set(last.test.scores) == {
        "recall_at_1",
        "recall_at_5",
        "recall_at_10",
        "median_rank",
        "frame_accuracy",
        "step_frame_accuracy",
        "cider",
        "bleu_4",
        "rouge_l",
    }
    initial, final = preparation.initial_state().weights, tensors(path)
    for part in ("heads.segmentation.", "lm.", "encoder.encoder.", "video."):
        names = [name for name in final if name.startswith(part)]
        assert any(not torch.equal(final[name], initial[name]) for name in names), part


def test_heads_are_those_of_the_one_client_that_trains_them(
    corpus: Mapping[str, object], federate: Federate
) -> None:
    """With the encoder frozen, the mean over one client's head is what that client alone has."""
    frozen = {"groups__frozen": "encoder,video", "rounds": 1}
    mixed = federate(vlm_keys(corpus, "fedavg", MIXED, **frozen))
    own = federate(vlm_keys(corpus, "local", MIXED, rounds=1, groups__frozen="encoder,video"))
    for client, part in ((1, "heads.segmentation."), (2, "lm.")):
        expected = kept(own, client, 1)
        for name, value in tensors(mixed, 1).items():
            if name.startswith(part):
                torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)


def test_personal_heads_stay_with_the_clients_that_train_them(
    corpus: Mapping[str, object], federate: Federate
) -> None:
    keys = vlm_keys(corpus, "fedavg", MIXED, groups__personal="heads")
    path, preparation = federate(keys), prepare(parse_config(keys))
    initial, final = preparation.initial_state().weights, tensors(path)
    heads = [name for name in initial if name.startswith("heads.")]
    assert len(heads) == 2
    for name in heads:
        assert torch.equal(final[name], initial[name])
        for client, trains in ((0, False), (1, True), (2, False)):
            value = kept(path, client)[f"personal/{name}"]
            assert torch.equal(value, initial[name]) != trains, (name, client)
    shared = [shape.trained.weights for shape in preparation.client_shapes()]
    assert not any(name in form for form in shared for name in heads)
    last = RunFolder.open(path).read_rounds()[-1]
    assert last.bytes_up == sum(predict_bytes(preparation).up[1])
    assert last.client_scores is not None and None not in last.client_scores


@pytest.mark.parametrize(
    "more",
    [
        {"tasks": "pretraining", "vlm__clients_without_text": 0.34},
        {"tasks": MIXED, "groups__personal": "heads"},
        {"tasks": "retrieval;segmentation", "strategy": "scaffold"},
    ],
    ids=["pretraining", "personal-heads", "scaffold"],
)
def test_a_run_that_was_cut_off_goes_on_with_the_same_bits(
    more: dict[str, str], corpus: Mapping[str, object], federate: Federate
) -> None:
    keys = vlm_keys(corpus, **more)
    whole = federate({**keys, "name": "whole"})
    cut = RunFolder.open(federate({**keys, "name": "cut"}))
    cut.checkpoint(2).unlink()
    status = cut.read_json("run")
    cut.write_json("run", {**status, "status": "running"})
    resume(cut.path, PlainProgress())
    assert_same_run(whole, cut.path)


def test_a_client_whose_videos_have_nothing_for_its_task_takes_part_and_tells_so(
    tmp_path: Path, federate: Federate
) -> None:
    """Its loss is zero, and does not count in the mean that is told."""
    root = tmp_path / "corpus"
    words = write_corpus(root, train=12, validation=3, test=3)
    corpus = Corpus.read(root)
    names = [video.name for video in corpus.of_split("train")]
    bare = set(names[:4])
    videos = tuple(
        dataclasses.replace(video, events=(), captions=(), paragraph="")
        if video.name in bare
        else video
        for video in corpus.videos
    )
    dataclasses.replace(corpus, videos=videos).write()
    keys = vlm_keys(dict(parse_assignments(words)), tasks="retrieval", vlm__dropout=0.0, rounds=1)
    dealt = prepare(parse_config(keys)).partition
    held = [range(0, 4), range(4, 8), range(8, 12)]
    file = tmp_path / "partition.json"
    dataclasses.replace(
        dealt,
        clients=tuple(np.array(own, np.int64) for own in held),
        class_counts=_counts(keys, held, dealt.class_counts.shape[1]),
    ).write(file)
    path = federate({**keys, "partition.file": str(file)})
    last = RunFolder.open(path).read_rounds()[-1]
    assert [client.outcome for client in last.clients] == ["counted"] * 3
    told = ["loss/retrieval" in client.metrics for client in last.clients]
    assert told == [False, True, True]
    assert last.clients[0].metrics["train_loss"] == 0
    mean = sum(client.metrics["loss/retrieval"] for client in last.clients[1:]) / 2
    assert last.server["loss/retrieval"] == pytest.approx(mean)


def _counts(
    keys: Mapping[str, object], held: Sequence[range], num_classes: int
) -> npt.NDArray[np.int64]:
    labels = open_workload(parse_config(keys), torch.device("cpu")).dataset.train_labels.numpy()
    return np.stack([np.bincount(labels[list(own)], minlength=num_classes) for own in held])
