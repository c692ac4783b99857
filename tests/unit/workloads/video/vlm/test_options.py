"""Keys of video and VLM that are refused, each with what to do."""

from __future__ import annotations

import pytest

from core.config import RunConfig
from core.errors import ConfigError
from pairing.configuration import parse_config
from workloads.video.metrics.captions import Missing
from workloads.video.options import VideoOptions
from workloads.video.vlm import workload
from workloads.video.vlm.options import TASKS, VlmOptions


def parsed(*words: str, strategy: str = "fedavg") -> RunConfig:
    """The configuration of a run of VLM."""
    keys = dict(word.split("=", 1) for word in words)
    return parse_config({"workload": "vlm", "strategy": strategy, **keys})


def refused(*words: str, strategy: str = "fedavg") -> dict[str, str]:
    """The rules that a configuration breaks, by key."""
    with pytest.raises(ConfigError) as caught:
        parsed(*words, strategy=strategy)
    return {problem.key: str(problem) for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("words", "key", "told"),
    [
        (["vlm.width=130"], "vlm.width", "multiple of vlm.heads=4"),
        (["vlm.window-step=33"], "vlm.window-step", "at most vlm.max-video=32, or seconds are"),
        (
            ["vlm.tasks=captioning", "vlm.max-caption=62"],
            "vlm.max-caption",
            "at most vlm.max-text=61",
        ),
        (["vlm.max-text=12", "vlm.min-text=13"], "vlm.min-text", "at most vlm.max-text=12"),
        (
            ["vlm.clients-without-text=0.6", "vlm.clients-without-video=0.5"],
            "vlm.clients-without-video",
            "without either has nothing to train on",
        ),
        (["vlm.tasks=writing"], "vlm.tasks", "names out of pretraining, retrieval"),
        (["vlm.tasks=retrieval,retrieval"], "vlm.tasks", "names out of"),
        (["vlm.tasks=retrieval;"], "vlm.tasks", "names out of"),
        (["vlm.tasks="], "vlm.tasks", "names out of"),
        (["vlm.loss=nce"], "vlm.loss", "masked-token"),
        (["vlm.token-rate=0"], "vlm.token-rate", "above 0"),
        (["vlm.dropout=1"], "vlm.dropout", "below 1"),
        (["video.source=msrvtt"], "video.source", "a colon and a folder"),
        (["video.source=msrvtt:"], "video.source", "a colon and a folder"),
        (["video.source=other:data"], "video.source", "one of shapestory, msrvtt"),
        (["video.encoder=s3d"], "video.encoder", "given:DIR"),
        (["video.encoder=given:"], "video.encoder", "given:DIR"),
        (["video.sight=half"], "video.sight", "single-frame"),
        (
            ["video.encoder=given:s3d", "video.sight=single-frame"],
            "video.sight",
            "an encoder is sh",
        ),
        (["video.strata=length"], "video.strata", "narration"),
        (["model.width=64"], "model.width", "workload vlm brings its own model"),
        (["data.source=mnist"], "data.source", "workload vlm brings its own data"),
    ],
)
def test_each_unfit_value_is_refused(words: list[str], key: str, told: str) -> None:
    found = refused(*words)
    assert list(found) == [key]
    assert told in found[key]
    assert words[-1].partition("=")[2] in found[key]


@pytest.mark.parametrize(
    ("word", "tasks", "readers"),
    [
        ("clips=4", "retrieval", "pretraining"),
        ("min-text=4", "captioning", "pretraining"),
        ("modality-rate=0.3", "segmentation", "pretraining"),
        ("token-rate=0.3", "localization", "pretraining"),
        ("corrupts-modality=true", "retrieval", "pretraining"),
        ("loss=mfm-mlm", "captioning", "pretraining"),
        ("clients-without-text=0.5", "retrieval;captioning", "pretraining"),
        ("clients-without-video=0.5", "retrieval", "pretraining"),
        ("retrieval=videos", "question-answering", "pretraining and retrieval"),
        ("window-step=8", "retrieval", "localization and pretraining and segmentation"),
        ("beams=2", "pretraining", "captioning"),
        ("max-caption=8", "retrieval", "captioning"),
        ("length-penalty=0.5", "retrieval", "captioning"),
        ("meteor=true", "retrieval", "captioning"),
    ],
)
def test_a_key_that_no_configured_task_reads_is_refused(
    word: str, tasks: str, readers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "meteor_missing", lambda: None)
    name, _, value = word.partition("=")
    found = refused(f"vlm.{word}", f"vlm.tasks={tasks}")
    assert list(found) == [f"vlm.{name}"]
    assert f"is read by {readers} alone, not by vlm.tasks={tasks}" in found[f"vlm.{name}"]
    assert value in found[f"vlm.{name}"]
    for reader in readers.split(" and "):
        parsed(f"vlm.{word}", f"vlm.tasks={reader}")
        parsed(f"vlm.{word}", f"vlm.tasks={tasks};{reader}")


def test_defaults_go_together_for_every_task() -> None:
    for task in TASKS:
        assert parsed(f"vlm.tasks={task}").section(VlmOptions).all_tasks == (task,)


@pytest.mark.parametrize("task", TASKS)
def test_short_sequences_fit_every_task_with_the_keys_that_it_reads(task: str) -> None:
    """A default that is too long counts where it is read alone: elsewhere it cannot be changed."""
    words = [f"vlm.tasks={task}", "vlm.max-video=8", "vlm.max-text=12"]
    read = {
        "vlm.window-step": ("pretraining", "segmentation", "localization"),
        "vlm.max-caption": ("captioning",),
    }
    needed = [f"{key}=8" for key, tasks in read.items() if task in tasks]
    parsed(*words, *needed)
    if needed:
        assert list(refused(*words)) == [needed[0].partition("=")[0]]


def test_meteor_is_refused_where_java_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "meteor_missing", lambda: Missing("there is no Java"))
    found = refused("vlm.tasks=captioning", "vlm.meteor=true")
    assert (
        found == {"vlm.meteor": found["vlm.meteor"]} and "there is no Java" in found["vlm.meteor"]
    )
    monkeypatch.setattr(workload, "meteor_missing", lambda: None)
    assert parsed("vlm.tasks=captioning", "vlm.meteor=true").section(VlmOptions).meteor


def test_task_sets_are_dealt_in_turn_and_the_first_is_primary() -> None:
    options = VlmOptions(tasks="captioning, retrieval; segmentation ;retrieval,localization")
    assert options.task_sets == [
        ("captioning", "retrieval"),
        ("segmentation",),
        ("retrieval", "localization"),
    ]
    assert options.all_tasks == ("captioning", "retrieval", "segmentation", "localization")


def test_sources_and_encoders_may_hold_colons() -> None:
    options = parsed("video.source=coin:/data/a:b", "video.encoder=given:c:d").section(VideoOptions)
    assert (options.source, options.encoder) == ("coin:/data/a:b", "given:c:d")


@pytest.mark.parametrize(
    ("strategy", "words", "key", "told"),
    [
        ("feddm", [], "strategy", "trains on videos with text"),
        ("real-images", [], "strategy", "trains on videos with text"),
        (
            "fedavg",
            ["privacy.mechanism=dp-sgd", "privacy.noise-multiplier=1"],
            "privacy.mechanism",
            "set privacy.mechanism=client",
        ),
        (
            "fedavg",
            [
                "privacy.mechanism=client",
                "privacy.noise-multiplier=1",
                "vlm.tasks=retrieval;segmentation",
            ],
            "privacy.mechanism",
            "gives clients different tasks",
        ),
        ("median", ["vlm.tasks=retrieval;segmentation"], "strategy", "gives clients different"),
        ("fedavg", ["canaries.kind=mislabelled"], "canaries.kind", "puts labelled images"),
        ("fedavg", ["attack.kind=label-flip"], "attack.kind", "flips the labels of images"),
        ("local", ["start-from=somewhere"], "start-from", "has no model at the server"),
        ("scaffold", ["train.optimizer=adam"], "strategy", "scales every coordinate"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(
    strategy: str, words: list[str], key: str, told: str
) -> None:
    found = refused(*words, strategy=strategy)
    assert told in found[key]


def test_tasks_that_train_the_same_entries_have_equal_forms() -> None:
    words = ["privacy.mechanism=client", "privacy.noise-multiplier=1"]
    parsed(*words, "vlm.tasks=retrieval;question-answering")
    parsed("vlm.tasks=retrieval;localization", strategy="median")
    assert refused(*words, "vlm.tasks=captioning;retrieval").keys() == {"privacy.mechanism"}
