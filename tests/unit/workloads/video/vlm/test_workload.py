"""VLM as a workload: one encoder, clients with tasks and modalities of their own."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from core.config import parse_assignments
from core.errors import ConfigError, DataError
from core.groups import is_in
from core.parameters import ParameterVector, weights_of
from core.seeds import derive_seed, seeded_globals, torch_generator
from core.wire import Record
from data.video.records import Corpus, Event, Video
from pairing.configuration import parse_config
from server.checkpoint import Checkpoint
from server.preparation import prepare
from strategies.base import ClientTask, ServerState, ServerTask
from strategies.centralized import Centralized
from strategies.fedavg import FedAvg
from tests.unit.strategies.toy import fold
from tests.unit.workloads.video.corpora import write_corpus
from workloads.table import open_dealt, open_workload
from workloads.video.dataset import VideoExamples
from workloads.video.vlm.model import VideoLanguageModel
from workloads.video.vlm.options import TASKS
from workloads.video.vlm.workload import BY_NAME, Vlm

TINY = {
    "workload": "vlm",
    "strategy": "fedavg",
    "partition.clients": "3",
    "partition.min-examples": "1",
    "vlm.width": "16",
    "vlm.layers": "1",
    "vlm.heads": "2",
    "vlm.feedforward": "16",
}
BEAMS = {"vlm.beams": "1", "vlm.max-caption": "4"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Keys of a corpus of 12 training videos, 3 for validation and 3 for test."""
    root = tmp_path_factory.mktemp("corpus")
    return parse_assignments(write_corpus(root, train=12, validation=3, test=3))


def opened(corpus: dict[str, str], tasks: str = "retrieval", **keys: str) -> Vlm:
    """The workload; keys are spelled with ``__`` for a dot and ``_`` for a dash."""
    more = {name.replace("__", ".").replace("_", "-"): value for name, value in keys.items()}
    beams = BEAMS if "captioning" in tasks else {}
    config = parse_config({**TINY, **corpus, **beams, "vlm.tasks": tasks, **more})
    found = open_workload(config, torch.device("cpu"))
    assert isinstance(found, Vlm)
    return found


@pytest.mark.parametrize(
    ("tasks", "parts"),
    [
        ("retrieval", set()),
        ("question-answering,localization", set()),
        ("pretraining", {"lm.transform"}),
        ("captioning", {"lm.transform", "lm.bias"}),
        ("segmentation;retrieval", {"heads.segmentation"}),
        ("segmentation;captioning", {"heads.segmentation", "lm.transform", "lm.bias"}),
    ],
)
def test_the_model_has_what_its_tasks_train(
    corpus: dict[str, str], tasks: str, parts: set[str]
) -> None:
    names = opened(corpus, tasks).build_model(0).state_dict().keys()
    found = {".".join(name.split(".")[:2]) for name in names if name.startswith(("lm", "heads"))}
    assert found == parts
    assert {name.partition(".")[0] for name in names} - {"lm", "heads"} == {"encoder", "video"}


def test_too_few_videos_are_refused_before_an_encoder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workloads.video.loading.frozen_encoder", None)
    source, _ = write_corpus(tmp_path, train=15)
    keys = dict(parse_assignments([source, "workload=vlm", "strategy=fedavg"]))
    with pytest.raises(
        DataError, match=r"clients=10 times .*min-examples=10 must be at most the 15"
    ):
        open_dealt(parse_config(keys), torch.device("cpu"))


def test_a_loss_for_each_modality_has_a_bias_for_each_word(corpus: dict[str, str]) -> None:
    model = opened(corpus, "pretraining", vlm__loss="mfm-mlm").build_model(0)
    assert "lm.bias" in model.state_dict()


def test_the_classifier_knows_all_steps_and_background(corpus: dict[str, str]) -> None:
    workload = opened(corpus, "segmentation")
    model = cast(VideoLanguageModel, workload.build_model(0))
    assert model.heads["segmentation"].out_features == len(workload.dataset.steps) + 1


def test_clients_take_task_sets_in_turn(corpus: dict[str, str]) -> None:
    workload = opened(corpus, "retrieval,captioning;segmentation")
    found = [workload.tasks_of(k) for k in range(4)]
    assert found == [("retrieval", "captioning"), ("segmentation",)] * 2
    assert workload.tasks_of(None) == ("retrieval", "captioning", "segmentation")


def test_a_client_trains_what_its_tasks_need_and_the_encoder(corpus: dict[str, str]) -> None:
    workload = opened(corpus, "retrieval;segmentation;captioning;pretraining,segmentation")
    names = list(workload.build_model(0).state_dict())
    own = [{name for name in names if workload.is_trained(name, k)} for k in range(4)]
    shared = {name for name in names if name.startswith(("encoder.", "video."))}
    heads = {name for name in names if name.startswith("heads.segmentation.")}
    words = {name for name in names if name.startswith("lm.")}
    assert heads and words and shared | heads | words == set(names)
    assert own == [shared, shared | heads, shared | words, shared | heads | words]


def test_with_one_set_of_tasks_everybody_trains_everything(corpus: dict[str, str]) -> None:
    workload = opened(corpus, "segmentation,captioning")
    names = workload.build_model(0).state_dict()
    assert all(workload.is_trained(name, k) for name in names for k in range(3))
    assert "equal-forms" not in Vlm.lacks(workload.config)
    assert "equal-forms" in Vlm.lacks(opened(corpus, "segmentation;captioning").config)
    # Both train the head that predicts tokens.
    assert "equal-forms" not in Vlm.lacks(opened(corpus, "pretraining;captioning").config)


@pytest.mark.parametrize(
    ("text", "video", "expected"),
    [
        ("0.3", "0.2", (3, 2)),
        ("0", "0.5", (0, 5)),
        ("1", "0", (10, 0)),
        ("0.25", "0.25", (2, 2)),  # halves are rounded to even
        ("0", "0", (0, 0)),
    ],
)
def test_the_configured_shares_of_clients_lack_a_modality(
    corpus: dict[str, str], text: str, video: str, expected: tuple[int, int]
) -> None:
    drawn = []
    for seed in ("0", "1", "2"):
        workload = opened(
            corpus,
            "pretraining",
            partition__clients="10",
            seed=seed,
            vlm__clients_without_text=text,
            vlm__clients_without_video=video,
        )
        found = [workload.modalities(k) for k in range(10)]
        counts = Counter(found)
        assert counts[True, False] == expected[0] and counts[False, True] == expected[1]
        assert counts[True, True] == 10 - sum(expected)
        assert found == [workload.modalities(k) for k in range(10)]
        assert workload.modalities(None) == (True, True)
        drawn.append(tuple(found))
    assert len(set(drawn)) == (1 if sum(expected) in (0, 10) else 3)


def test_clients_without_video_do_not_train_what_reads_it(corpus: dict[str, str]) -> None:
    """Unless another of their tasks does."""
    without = {"partition__clients": "4", "vlm__clients_without_video": "0.5"}
    alone = opened(corpus, "pretraining", **without)
    names = list(alone.build_model(0).state_dict())
    reading = {name for name in names if name.startswith("video.")}
    assert len(reading) == 6
    for client in range(4):
        untrained = {name for name in names if not alone.is_trained(name, client)}
        assert untrained == (set() if alone.modalities(client)[0] else reading)
    assert "clients-without-video=0.5" in Vlm.lacks(alone.config)["equal-forms"]
    # Others: a second task, a share that is rounded to no client, clients that lack text.
    for tasks, more in (
        ("pretraining,retrieval", without),
        ("pretraining", {**without, "vlm__clients_without_video": "0.1"}),
        ("pretraining", {"partition__clients": "4", "vlm__clients_without_text": "0.5"}),
    ):
        workload = opened(corpus, tasks, **more)
        assert all(workload.is_trained(name, client) for name in names for client in range(4))
        assert "equal-forms" not in Vlm.lacks(workload.config)


def test_an_objective_is_the_sum_of_its_tasks_and_measures_their_means(
    corpus: dict[str, str],
) -> None:
    workload = opened(corpus, "retrieval,segmentation", vlm__dropout="0")
    model = cast(VideoLanguageModel, workload.build_model(0))
    examples = cast(VideoExamples, workload.training_examples())
    objective = workload.objective(model, examples, seed=3, partition_id=None)
    assert objective.num_examples == 12
    batches = [torch.tensor([0, 1, 2]), torch.tensor([5, 7])]
    totals: dict[str, list[float]] = {"loss/retrieval": [], "loss/segmentation": []}
    for batch in batches:
        clips = [examples.clips[i] for i in batch.tolist()]
        parts = [
            workload.task(name).loss(model, clips, torch_generator(0))[0]
            for name in ("retrieval", "segmentation")
        ]
        assert float(objective.losses(batch).detach()) == pytest.approx(
            float((parts[0] + parts[1]).detach())
        )
        for values, part in zip(totals.values(), parts, strict=True):
            values.append(float(part.detach()))
    expected = {name: pytest.approx(sum(values) / 2) for name, values in totals.items()}
    assert objective.metrics() == expected
    assert set(workload.measures(0)) == set(expected)


def test_an_objective_draws_by_its_seed(corpus: dict[str, str]) -> None:
    workload = opened(corpus, "pretraining", vlm__dropout="0")
    model, examples = workload.build_model(0), workload.training_examples()

    def loss(seed: int) -> float:
        objective = workload.objective(model, examples, seed=seed, partition_id=0)
        return float(objective.losses(torch.arange(4)).detach())

    assert loss(1) == loss(1) != loss(2)


@pytest.mark.parametrize("tasks", TASKS)
def test_every_task_is_judged_by_what_it_says(corpus: dict[str, str], tasks: str) -> None:
    workload = opened(corpus, tasks)
    model = workload.build_model(0)
    model.train()
    found = workload.evaluate(model, "test")
    assert tuple(found.scores) == workload.scores.names
    assert [score.name for score in BY_NAME[tasks].scores] == list(found.scores)
    assert found.num_examples > 0 and found.confusion is None
    assert found == workload.evaluate(model, "test")  # without dropout, and drawn once for all
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_primary_score_is_the_first_tasks(corpus: dict[str, str]) -> None:
    workload = opened(corpus, "segmentation;retrieval,localization")
    assert list(workload.scores.names) == [
        "frame_accuracy",
        "step_frame_accuracy",
        "recall_at_1",
        "recall_at_5",
        "recall_at_10",
        "median_rank",
        "step_recall",
    ]
    clips = workload.dataset.splits["test"]
    found = workload.evaluate(workload.build_model(0), "test")
    assert found.num_examples == sum(len(clip.features) for clip in clips)
    # Pre-training is judged as retrieval and localization are: each score is told once.
    assert len(set(opened(corpus, "pretraining;retrieval").scores.names)) == 5


def handmade_corpus(
    root: Path, videos: list[Video], recipes: dict[str, tuple[str, ...]]
) -> dict[str, str]:
    """Write records with features; the keys that read them."""
    (root / "features").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for video in videos:
        np.save(root / "features" / f"{video.name}.npy", rng.normal(size=(5, 4)).astype(np.float32))
    Corpus(root, "shapestory", tuple(videos), recipes).write()
    return {
        "video.source": f"shapestory:{root}",
        "video.encoder": f"given:{root / 'features'}",
    }


STEP = "a red square slides"
EVENT = Event((0, 3), STEP, STEP)


def some_videos(**events_of: tuple[Event, ...]) -> list[Video]:
    """Three videos of each split with the events that are told, or none."""
    return [
        Video(
            name=f"{split}-{i}",
            path=f"{split}-{i}.mp4",
            split=split,
            topic="tea",
            events=events_of.get(split, ()),
        )
        for split in ("train", "validation", "test")
        for i in range(3)
    ]


@pytest.mark.parametrize(
    ("task", "lacking", "told"),
    [
        ("retrieval", "train", "has no training video to train it on"),
        ("captioning", "validation", "has no validation video to judge it on"),
        ("segmentation", "test", "has no test video to judge it on"),
        ("localization", "test", "has no test video to judge it on"),
        ("pretraining", "validation", "has no validation video to judge it on"),
        ("question-answering", "", "has no training video to train it on"),
    ],
)
def test_tasks_that_a_split_has_nothing_for_are_refused_before_anything_starts(
    task: str, lacking: str, told: str, tmp_path: Path
) -> None:
    splits = {"train": (EVENT,), "validation": (EVENT,), "test": (EVENT,)}
    splits.pop(lacking, None)
    corpus = handmade_corpus(tmp_path / "c", some_videos(**splits), {"tea": (STEP,)})
    config = parse_config({**TINY, **corpus, "partition.scheme": "iid", "vlm.tasks": task})
    with pytest.raises(
        ConfigError, match=f"{task} does not fit the corpus shapestory, which {told}"
    ):
        prepare(config)


def test_retrieval_with_nothing_to_tell_apart_in_a_batch_is_refused(tmp_path: Path) -> None:
    """With one clip in a batch its loss is zero, whatever the model."""
    splits = {"train": (EVENT,), "validation": (EVENT,), "test": (EVENT,)}
    corpus = handmade_corpus(tmp_path / "c", some_videos(**splits), {"tea": (STEP,)})
    keys = {**TINY, **corpus, "partition.scheme": "iid", "train.batch-size": "1"}
    with pytest.raises(ConfigError, match=r"train\.batch-size=1: .* take 2 or more"):
        prepare(parse_config({**keys, "vlm.tasks": "segmentation;retrieval"}))
    prepare(parse_config({**keys, "vlm.tasks": "retrieval", "train.batch-size": "2"}))
    prepare(parse_config({**keys, "vlm.tasks": "segmentation"}))
    two = {**splits, "train": (EVENT, Event((3, 5), "a star spins"))}
    several = handmade_corpus(tmp_path / "s", some_videos(**two), {"tea": (STEP,)})
    alone = {**keys, **several, "vlm.tasks": "retrieval"}
    prepare(parse_config(alone))
    with pytest.raises(ConfigError, match=r"train\.batch-size=1"):
        prepare(parse_config({**alone, "vlm.retrieval": "videos"}))


def test_a_task_is_refused_whatever_the_same_corpus_was_loaded_for_before(tmp_path: Path) -> None:
    splits = {"train": (EVENT,), "validation": (EVENT,), "test": (EVENT,)}
    corpus = handmade_corpus(tmp_path / "c", some_videos(**splits), {})
    keys = {**TINY, **corpus, "partition.scheme": "iid"}
    prepare(parse_config({**keys, "vlm.tasks": "retrieval"}))
    with pytest.raises(ConfigError, match=r"localization does not fit .* no recipes"):
        prepare(parse_config({**keys, "vlm.tasks": "retrieval,localization"}))


def test_exhibits_are_of_the_tasks_that_a_splits_first_videos_are_told_for(tmp_path: Path) -> None:
    """A run that ended well does not fail on what is only looked at."""
    videos = some_videos(train=(EVENT,), validation=(EVENT,))
    captioned = [
        dataclasses.replace(video, captions=("a star",), name=f"more-{i}", split="test")
        for i, video in enumerate(some_videos() * 3)
    ]
    last = dataclasses.replace(videos[0], name="last", split="test")
    corpus = handmade_corpus(tmp_path / "c", [*videos, *captioned, last], {"tea": (STEP,)})
    workload = opened(corpus, "retrieval,segmentation", partition__scheme="iid")
    found = workload.exhibits(workload.build_model(0), "test")
    assert {exhibit.kind for exhibit in found} == {"Retrieval: the clip found"}
    assert all(exhibit.images == () for exhibit in found)  # there are no files
    both = workload.exhibits(workload.build_model(0), "validation")
    assert {exhibit.kind for exhibit in both} == {"Retrieval: the clip found", "Segmentation"}


@pytest.mark.parametrize("tasks", ["pretraining", "captioning", "retrieval,segmentation"])
def test_one_clients_round_is_the_central_step_on_the_same_batch(
    corpus: dict[str, str], tasks: str
) -> None:
    """FedAvg with one client that holds everything, one plain step without dropout: to the bit."""
    keys = {"vlm__dropout": "0", "train__batch_size": "64", "train__learning_rate": "0.1"}
    workload = opened(corpus, tasks, partition__clients="1", **keys)
    initial = weights_of(workload.build_model(0))
    seed = 11

    central = Centralized(dataclasses.replace(workload.config, strategy="centralized"))
    parameters = ParameterVector(workload.build_model(5))
    task = ServerTask(1, seed, parameters, workload, torch.device("cpu"), lambda: None)
    with seeded_globals(derive_seed(seed, "layers")):
        expected = central.finish(ServerState(initial), None, task)

    strategy, state = FedAvg(workload.config), ServerState(initial)
    parameters = ParameterVector(workload.build_model(6))
    examples = workload.training_examples()
    client = ClientTask(
        round=1,
        partition_id=0,
        seed=seed,
        received=Record(strategy.broadcast(state)),
        examples=examples,
        state=None,
        parameters=parameters,
        workload=workload,
        objective=workload.objective(parameters.model, examples, seed=seed, partition_id=0),
        device=torch.device("cpu"),
        count_step=lambda: None,
    )
    with seeded_globals(derive_seed(seed, "layers")):
        update = strategy.client_update(client)
    found = fold(strategy, state, [update])
    for name, value in expected.state.weights.items():
        assert torch.equal(found.state.weights[name], value), name
    moved = {n for n, value in initial.items() if not torch.equal(value, found.state.weights[n])}
    assert any(name.startswith("encoder.encoder.") for name in moved)
    assert any(name.startswith("video.") for name in moved)
    assert found.metrics["train_loss"] == pytest.approx(expected.metrics["train_loss"])
    assert client.objective.metrics() == {
        name: value for name, value in expected.metrics.items() if name != "train_loss"
    }


def test_weights_of_another_vocabulary_are_refused_whatever_their_shapes(tmp_path: Path) -> None:
    """Two corpora have the same words, the one more often this and the other that."""
    videos = some_videos(train=(EVENT,), validation=(EVENT,), test=(EVENT,))
    corpora = [
        handmade_corpus(
            tmp_path / said,
            [dataclasses.replace(video, paragraph=said) for video in videos],
            {"tea": (STEP,)},
        )
        | {"partition.scheme": "iid"}
        for said in ("tea tea milk", "milk milk tea")
    ]
    one, other = (opened(corpus, "segmentation,captioning") for corpus in corpora)
    model = one.build_model(0)
    shapes = [
        {n: v.shape for n, v in m.state_dict().items()} for m in (model, other.build_model(0))
    ]
    assert shapes[0] == shapes[1]
    assert all(any(is_in(name, group) for name in shapes[0]) for group in one.numbering())
    start = tmp_path / "start.safetensors"
    Checkpoint(1, ServerState(weights_of(model)), {}, 0).write(start, "run", one.numbering())
    keys = {**TINY, **BEAMS, "vlm.tasks": "segmentation,captioning", "start-from": str(start)}
    loaded = prepare(parse_config({**keys, **corpora[0]})).model.state_dict()
    assert torch.equal(loaded["lm.bias"], model.state_dict()["lm.bias"])
    with pytest.raises(ConfigError, match=r"word_embeddings\.weight with rows for the vocabulary"):
        prepare(parse_config({**keys, **corpora[1]}))
    longer = {"vlm.max-video": "20", "vlm.max-text": "73", "vlm.window-step": "8"}
    with pytest.raises(ConfigError, match=r"rows for vlm\.max-video=32, .* vlm\.max-video=20"):
        prepare(parse_config({**keys, **corpora[0], **longer}))


def test_steps_of_the_classifier_are_numbered_by_their_texts(tmp_path: Path) -> None:
    videos = some_videos(train=(EVENT,), validation=(EVENT,), test=(EVENT,))
    one: dict[str, tuple[str, ...]] = {"tea": (STEP,)}
    found = [
        opened(
            handmade_corpus(tmp_path / str(i), videos, recipe),
            "segmentation",
            partition__scheme="iid",
        ).numbering()
        for i, recipe in enumerate([one, one, one | {"milk": ("a star spins",)}])
    ]
    assert found[0] == found[1]
    assert found[0]["heads.segmentation"] != found[2]["heads.segmentation"]
