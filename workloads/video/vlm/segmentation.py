"""Action segmentation: which step, or none, each second of a video shows (section 4.2).

A linear classifier on the states of a video encoded apart, over windows that slide and overlap;
trained by cross-entropy, judged by the share of seconds that are right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional

from core.errors import DataError
from core.scores import Score
from workloads.video.dataset import Clip, VideoDataset
from workloads.video.metrics.segmentation import frame_accuracy
from workloads.video.vlm.model import VideoLanguageModel
from workloads.video.vlm.task import Judgement, Sample, Task, nothing
from workloads.video.vlm.windows import over_windows

BACKGROUND = 0
CHUNK = 64
SAMPLES = 4


def step_of_seconds(clip: Clip) -> list[str]:
    """The step in the middle of each second; empty for background."""
    steps = [""] * len(clip.features)
    for event in clip.video.events:
        for second in range(len(steps)):
            if event.step and event.span[0] <= second + 0.5 < event.span[1]:
                steps[second] = event.step
    return steps


class Segmentation(Task):
    """Steps of all recipes and background."""

    name = "segmentation"
    scores = (
        Score("frame_accuracy", "frame accuracy", is_percent=True),
        Score("step_frame_accuracy", "frame accuracy within steps", is_percent=True),
    )
    own_entries = ("heads.segmentation",)

    @classmethod
    def lacking(cls, dataset: VideoDataset) -> str:
        """Steps."""
        return "" if dataset.steps else "names no steps"

    def num_items(self, clip: Clip) -> int:
        """Seconds, of a video of which some second shows a step."""
        return len(clip.features) if any(step_of_seconds(clip)) else 0

    def labels(self, clip: Clip) -> torch.Tensor:
        """Label of every second, int64, shape (seconds,)."""
        numbers = {step: i for i, step in enumerate(self.dataset.steps, start=1)}
        found = [numbers.get(step, BACKGROUND) for step in step_of_seconds(clip)]
        return torch.tensor(found, dtype=torch.int64, device=clip.features.device)

    def logits(self, model: VideoLanguageModel, clips: Sequence[Clip]) -> list[torch.Tensor]:
        """Logits of every second of each video, shape (seconds, labels)."""
        head = model.heads["segmentation"]
        options = self.options
        return over_windows(
            model, clips, options.max_video, options.window_step, lambda _, states: head(states)
        )

    def loss(
        self, model: VideoLanguageModel, clips: Sequence[Clip], generator: torch.Generator
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        """Cross-entropy of every second."""
        clips = [clip for clip in clips if self.num_items(clip)]
        if not clips:
            return nothing(model), {}
        logits = torch.cat(self.logits(model, clips))
        loss = functional.cross_entropy(logits, torch.cat([self.labels(clip) for clip in clips]))
        return loss, {f"loss/{self.name}": float(loss.detach())}

    def judge(self, model: VideoLanguageModel, clips: Sequence[Clip]) -> Judgement:
        """The share of seconds that are right, of all and of those within a step."""
        clips = [clip for clip in clips if self.num_items(clip)]
        if not clips:
            raise DataError("segmentation: no video has a step; use a corpus that has, or a task")
        found = [
            one
            for i in range(0, len(clips), CHUNK)
            for one in self.logits(model, clips[i : i + CHUNK])
        ]
        labels = torch.cat([self.labels(clip) for clip in clips])
        logits = torch.cat(found)
        chosen, right = logits.argmax(1).cpu().numpy(), labels.cpu().numpy()
        scores = {
            "frame_accuracy": frame_accuracy(chosen, right),
            "step_frame_accuracy": frame_accuracy(chosen, right, BACKGROUND),
        }
        loss = float(functional.cross_entropy(logits.double(), labels))
        return Judgement(loss, len(labels), scores, self._samples(clips, found))

    def _samples(self, clips: Sequence[Clip], logits: Sequence[torch.Tensor]) -> tuple[Sample, ...]:
        names = ["background", *self.dataset.steps]
        return tuple(
            Sample(
                "Segmentation",
                clip,
                None,
                {
                    "gold": _runs([step or names[0] for step in step_of_seconds(clip)]),
                    "model": _runs([names[i] for i in one.argmax(1).tolist()]),
                },
            )
            for clip, one in list(zip(clips, logits, strict=True))[:SAMPLES]
        )


def _runs(names: Sequence[str]) -> str:
    """Names of consecutive seconds as text.

    >>> _runs(["a", "a", "b"])
    '0-2 s a; 2-3 s b'
    """
    parts, start = [], 0
    for second in range(1, len(names) + 1):
        if second == len(names) or names[second] != names[start]:
            parts.append(f"{start}-{second} s {names[start]}")
            start = second
    return "; ".join(parts)
