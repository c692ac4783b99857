"""VLM as a workload: one shared encoder, on which clients may do different tasks.

An example is a video. A step takes a batch of videos and all items of theirs that its tasks have:
clips drawn of them in pre-training, captioned events, seconds, questions. What belongs to one task
alone, such as the classifier of segmentation, is exchanged by that task's clients, or stays
personal (``groups.personal=heads``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from core.config import RunConfig
from core.errors import ConfigError, DataError, Problem
from core.examples import ExampleSet
from core.exhibits import Exhibit
from core.groups import ParameterGroups, is_in
from core.records import EvaluationRecord
from core.scores import Scores
from core.seeds import derive_seed, numpy_generator, torch_generator
from core.workload import Objective, Offer, OwnData, Split, Workload
from data.video.formats.table import read_corpus
from data.video.records import Corpus
from data.video.shares import write_share
from data.video.stills import stills
from workloads.video.dataset import Clip, VideoDataset, VideoExamples, on_device
from workloads.video.loading import load_videos
from workloads.video.metrics.captions import meteor_missing
from workloads.video.options import GIVEN, VideoOptions
from workloads.video.own import VideoForm, check_own_videos, load_own_videos
from workloads.video.text import Vocabulary
from workloads.video.vlm.answering import Answering
from workloads.video.vlm.captioning import METEOR, Captioning
from workloads.video.vlm.clips import Batcher
from workloads.video.vlm.localization import Localization
from workloads.video.vlm.model import (
    FILLED_BY_BERT,
    EncoderSizes,
    VideoLanguageModel,
    load_bert,
)
from workloads.video.vlm.options import TASKS, VlmOptions
from workloads.video.vlm.pretraining import Pretraining
from workloads.video.vlm.retrieval import Retrieval
from workloads.video.vlm.segmentation import Segmentation
from workloads.video.vlm.task import Task

READS_VIDEO = "video"
"""The part of the model that only clients with video train: the MLP of equation 1."""

EXHIBITED_VIDEOS = 24
STILLS = 4

BY_NAME: Mapping[str, type[Task]] = {
    task.name: task
    for task in (Pretraining, Retrieval, Segmentation, Localization, Answering, Captioning)
}
assert tuple(BY_NAME) == TASKS


@dataclass(frozen=True)
class Vlm(Workload, OwnData):
    """The video-language model; see the module's text."""

    name = "vlm"
    noun = "videos"
    sections: ClassVar[Mapping[str, type]] = MappingProxyType(
        {"video": VideoOptions, "vlm": VlmOptions}
    )

    dataset: VideoDataset

    @classmethod
    def problems(cls, config: RunConfig) -> Iterable[Problem]:
        """Keys that do not go together."""
        options = config.section(VlmOptions)
        yield from config.section(VideoOptions).problems()
        yield from options.problems()
        if options.meteor and (missing := meteor_missing()):
            yield Problem("vlm.meteor", "true", f"{missing.reason}, or leave it out")

    @classmethod
    def lacks(cls, config: RunConfig) -> Mapping[Offer, str]:
        """Losses of single examples: items of a batch are told apart from each other."""
        options = config.section(VlmOptions)
        lacks: dict[Offer, str] = {
            "labelled-images": "trains on videos with text",
            "image-loss": "trains on videos with text",
            "per-example-gradients": "makes one loss of all items of a batch of videos, which are "
            "told apart from each other",
        }
        own = {frozenset(e for t in s for e in BY_NAME[t].own_entries) for s in options.task_sets}
        if len(own) > 1:
            lacks["equal-forms"] = (
                f"gives clients different tasks (vlm.tasks={options.tasks}), so that they send "
                "different entries"
            )
        elif _num_without_video(config) and ("pretraining",) in options.task_sets:
            lacks["equal-forms"] = (
                "has clients without video (vlm.clients-without-video="
                f"{options.clients_without_video:g}), which do not train or send what reads it"
            )
        return lacks

    @classmethod
    def data_key(cls, config: RunConfig) -> Hashable:
        """The corpus, its features and the vocabulary."""
        return (cls.name, config.section(VideoOptions), config.section(VlmOptions).bert)

    @classmethod
    def load(cls, config: RunConfig) -> VideoDataset:
        """The videos of ``video.source`` with their features.

        Raises:
            DataError: They are missing or unfit.
        """
        options = config.section(VlmOptions)
        vocabulary = Vocabulary.of_folder(Path(options.bert).expanduser()) if options.bert else None
        return load_videos(config.section(VideoOptions), vocabulary)

    @classmethod
    def most_examples(cls, config: RunConfig) -> int | None:
        """Training videos that the corpus names; some may turn out to be unreadable.

        Raises:
            DataError: There is no corpus, or it cannot be read.
        """
        return len(read_corpus(config.section(VideoOptions).source).of_split("train"))

    def form(self) -> str:
        """Words, topics, steps, recipes, and the frozen encoder with its weights."""
        return VideoForm.of(self.dataset, self.config.section(VideoOptions)).to_text()

    @classmethod
    def check_own(cls, config: RunConfig, source: str) -> None:
        """See `workloads.video.own`."""
        check_own_videos(source)

    @classmethod
    def load_own(cls, config: RunConfig, source: str, form: str) -> VideoDataset:
        """See `workloads.video.own`.

        Raises:
            DataError: Also where no configured task finds anything in the videos.
        """
        agreed = VideoForm.from_text(form)
        dataset = load_own_videos(source, config.section(VideoOptions), agreed)
        here = cls(config, dataset, torch.device("cpu"))
        tasks = [here.task(name) for name in here.options.all_tasks]
        if not any(task.num_items(clip) for clip in dataset.splits["train"] for task in tasks):
            raise DataError(
                f"{source} tells nothing of its videos that vlm.tasks={here.options.tasks} could "
                "be trained on; bring others, or take no part in this run"
            )
        return dataset

    def write_shares(
        self, clients: Sequence[npt.NDArray[np.int64]], folder: Path
    ) -> Sequence[Path]:
        """A corpus for each client; features, too, where they are given."""
        options = self.config.section(VideoOptions)
        given = options.encoder.startswith(GIVEN)
        features = Path(options.encoder.removeprefix(GIVEN)).expanduser() if given else None
        train = [clip.record for clip in self.dataset.splits["train"]]
        corpus = Corpus(self.dataset.root, self.dataset.name, (), self.dataset.recipes)
        return [
            write_share(
                corpus,
                [train[i] for i in indices.tolist()],
                folder / f"client-{k}",
                client=k,
                features=features,
            )
            for k, indices in enumerate(clients)
        ]

    def groups(self, model: nn.Module) -> ParameterGroups:
        """What of the model is shared, personal and frozen.

        Raises:
            ConfigError: Also where clients that bring their own data would miss what BERT fills.
        """
        groups, options = super().groups(model), self.options
        if options.bert and self.config.partition.scheme == "own":
            for name in model.state_dict():
                if any(is_in(name, part) for part in FILLED_BY_BERT) and not groups.is_shared(name):
                    rule = (
                        f"fills {name}, which groups.personal or groups.frozen keeps from clients; "
                        "with partition.scheme=own these have no BERT: leave one of both out"
                    )
                    raise ConfigError([Problem("vlm.bert", options.bert, rule)])
        return groups

    @property
    def options(self) -> VlmOptions:
        """Its own section of keys."""
        return self.config.section(VlmOptions)

    @property
    def scores(self) -> Scores:
        """Those of all tasks, the primary task's first."""
        tasks = [self.task(name) for name in self.options.all_tasks]
        found = [score for task in tasks for score in task.judged_by()]
        if self.options.meteor:
            found.append(METEOR)
        return Scores(dict.fromkeys(found))

    @cached_property
    def batcher(self) -> Batcher:
        """Makes batches."""
        options = self.options
        return Batcher(self.dataset.vocabulary, options.max_video, options.max_text, self.device)

    def task(self, name: str) -> Task:
        """One task on this corpus."""
        return BY_NAME[name](self.options, self.dataset, self.batcher)

    def tasks_of(self, partition_id: int | None) -> tuple[str, ...]:
        """The tasks of a client; all of them in one place."""
        sets = self.options.task_sets
        return self.options.all_tasks if partition_id is None else sets[partition_id % len(sets)]

    def make_model(self) -> nn.Module:
        """The encoder, with what its tasks need.

        Raises:
            ConfigError: The corpus lacks what a configured task is trained or judged on.
            DataError: ``vlm.bert`` does not load.
        """
        self._refuse_unfit_tasks()
        options, vocabulary = self.options, self.dataset.vocabulary
        sizes = EncoderSizes(
            num_words=vocabulary.num_tokens,
            feature_width=self.dataset.feature_width,
            width=options.width,
            layers=options.layers,
            heads=options.heads,
            feedforward=options.feedforward,
            dropout=options.dropout,
            max_video=options.max_video,
            max_text=options.max_text,
        )
        segmented = "segmentation" in options.all_tasks
        labels = len(self.dataset.steps) + 1 if segmented else 0
        writes = "captioning" in options.all_tasks
        pretrains = "pretraining" in options.all_tasks
        model = VideoLanguageModel(
            sizes,
            cls=vocabulary.cls,
            sep=vocabulary.sep,
            predicts=writes or pretrains,
            biased=writes or options.loss == "mfm-mlm",
            segments=labels,
        )
        if options.bert:
            load_bert(model, Path(options.bert).expanduser())
        return model

    def lacking(self, name: str) -> str:
        """What the corpus lacks for a task, as a clause after ``which``; empty if nothing."""
        task, splits = self.task(name), self.dataset.splits
        if lacking := task.lacking(self.dataset):
            return lacking
        if not any(map(task.num_items, splits["train"])):
            return "has no training video to train it on"
        for split in ("validation", "test"):
            if not task.can_judge(splits[split]):
                return f"has no {split} video to judge it on"
        return ""

    def _refuse_unfit_tasks(self) -> None:
        """Refuse tasks that the corpus has nothing for, before anything is trained.

        Raises:
            ConfigError: With the way out.
        """
        if not self.dataset.splits["test"]:  # a client's own videos need not serve every task
            return
        for name in self.options.all_tasks:
            if lacking := self.lacking(name):
                rule = f"{name} does not fit the corpus {self.dataset.name}, which {lacking}"
                raise ConfigError(
                    [Problem("vlm.tasks", self.options.tasks, f"{rule}; take another")]
                )
        size = self.config.train.batch_size
        if size == 1 and "retrieval" in self.options.all_tasks:
            retrieval = self.task("retrieval")
            if all(retrieval.num_items(clip) < 2 for clip in self.dataset.splits["train"]):
                rule = (
                    "retrieval tells the clips of a batch apart, and each video gives one: nothing "
                    "would be trained; take 2 or more"
                )
                raise ConfigError([Problem("train.batch-size", str(size), rule)])

    def examples(self, indices: torch.Tensor) -> VideoExamples:
        """Training videos at `indices`, their features on the device."""
        train = self.dataset.splits["train"]
        return on_device([train[i] for i in indices.tolist()], self.device)

    def objective(
        self, model: nn.Module, examples: ExampleSet, *, seed: int, partition_id: int | None
    ) -> Objective:
        """The sum of a client's tasks' losses on its videos."""
        return VlmObjective(
            self,
            cast(VideoLanguageModel, model),
            cast(VideoExamples, examples),
            seed,
            partition_id,
        )

    def modalities(self, partition_id: int | None) -> tuple[bool, bool]:
        """Whether a client pre-trains with video, and with what is said; one place has both.

        Clients without are drawn by the run's seed, those without text first.
        """
        options = self.options
        if partition_id is None:
            return True, True
        count = self.config.partition.clients
        order = numpy_generator(derive_seed(self.config.seed, "modalities")).permutation(count)
        place = int((order == partition_id).argmax())
        without_text = round(options.clients_without_text * count)
        without_video = _num_without_video(self.config)
        is_without_text = place < without_text
        is_without_video = not is_without_text and place < without_text + without_video
        return not is_without_video, not is_without_text

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> EvaluationRecord:
        """Judge a model at all tasks; the loss and the number of items are the primary task's."""
        clips = on_device(self.dataset.splits[split], self.device).clips
        with _judged(model):
            judged = [
                self.task(name).judge(cast(VideoLanguageModel, model), clips)
                for name in self.options.all_tasks
            ]
        found = {name: value for one in judged for name, value in one.scores.items()}
        scores = {name: found[name] for name in self.scores.names}
        return EvaluationRecord(
            num_examples=judged[0].num_items, loss=judged[0].loss, scores=scores
        )

    @torch.no_grad()
    def exhibits(self, model: nn.Module, split: Split) -> tuple[Exhibit, ...]:
        """What the model makes of a split's first videos, at the tasks that these are told for."""
        clips = on_device(self.dataset.splits[split][:EXHIBITED_VIDEOS], self.device).clips
        tasks = [self.task(name) for name in self.options.all_tasks]
        with _judged(model):
            found = [
                task.judge(cast(VideoLanguageModel, model), clips)
                for task in tasks
                if task.can_judge(clips)
            ]
        return tuple(
            Exhibit(
                sample.kind,
                sample.title,
                stills(self.dataset.root, sample.clip.video, sample.span, count=STILLS),
                sample.lines,
            )
            for one in found
            for sample in one.samples
        )

    def is_trained(self, entry: str, partition_id: int) -> bool:
        """Whatever belongs to no task, or to one of the client's; what reads video, where it has.

        Without video its tokens' MLP gets no gradient, and an average over it would hold back
        clients that do train it.
        """
        tasks = self.tasks_of(partition_id)
        is_for_video = is_in(entry, READS_VIDEO) and _num_without_video(self.config) > 0
        if is_for_video and tasks == ("pretraining",) and not self.modalities(partition_id)[0]:
            return False
        mine = {group for task in tasks for group in BY_NAME[task].own_entries}
        others = {group for task in self.options.all_tasks for group in BY_NAME[task].own_entries}
        return not any(is_in(entry, group) for group in others - mine)

    def numbering(self) -> Mapping[str, str]:
        """Words by the vocabulary, places by how long videos may be, labels by the steps."""
        dataset = self.dataset
        words = f"the vocabulary {dataset.vocabulary.sha256[:12]}"
        steps = hashlib.sha256(json.dumps(dataset.steps).encode()).hexdigest()[:12]
        return {
            "encoder.embeddings.word_embeddings": words,
            "encoder.embeddings.position_embeddings": f"vlm.max-video={self.options.max_video}",
            "lm.bias": words,
            "heads.segmentation": f"the steps {steps}",
        }

    def measures(self, partition_id: int) -> tuple[str, ...]:
        """Means over the round's steps of what its tasks measure."""
        tasks = self.tasks_of(partition_id)
        return tuple(dict.fromkeys(m for task in tasks for m in self.task(task).measures()))


def _num_without_video(config: RunConfig) -> int:
    """Clients that pre-train on what is said alone."""
    return round(config.section(VlmOptions).clients_without_video * config.partition.clients)


@contextmanager
def _judged(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode inside the block, and as it was behind it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class VlmObjective(Objective):
    """A client's tasks on its videos for one round."""

    def __init__(
        self,
        workload: Vlm,
        model: VideoLanguageModel,
        examples: VideoExamples,
        seed: int,
        partition_id: int | None,
    ) -> None:
        """Seed what is drawn.

        Args:
            workload: Makes the tasks.
            model: What is trained.
            examples: The client's videos.
            seed: Of this client and round.
            partition_id: The client; None for all in one place.
        """
        self._model, self._examples = model, examples
        self._tasks = [workload.task(name) for name in workload.tasks_of(partition_id)]
        self._modalities = workload.modalities(partition_id)
        self._generator = torch_generator(derive_seed(seed, "vlm"))
        self._sums: dict[str, tuple[float, int]] = {}

    @property
    def num_examples(self) -> int:
        """Videos."""
        return len(self._examples)

    @property
    def device(self) -> torch.device:
        """The CPU: rows of a list are looked up by them."""
        return torch.device("cpu")

    def losses(self, batch: torch.Tensor) -> torch.Tensor:
        """The sum of the tasks' losses on a batch of videos, shape ()."""
        clips = [self._examples.clips[i] for i in batch.tolist()]
        losses = [self._loss(task, clips) for task in self._tasks]
        return torch.stack(losses).sum()

    def metrics(self) -> Mapping[str, float]:
        """Means over the steps that measured it."""
        return {name: total / count for name, (total, count) in self._sums.items()}

    def _loss(self, task: Task, clips: Sequence[Clip]) -> torch.Tensor:
        if isinstance(task, Pretraining):
            has_video, has_text = self._modalities
            loss, measured = task.loss(
                self._model, clips, self._generator, has_video=has_video, has_text=has_text
            )
        else:
            loss, measured = task.loss(self._model, clips, self._generator)
        for name, value in measured.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)
        return loss
