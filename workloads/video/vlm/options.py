"""VLM's own keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from core.config import choice, flag, number, text
from core.errors import Problem
from core.groups import split_names

TASKS = (
    "pretraining",
    "retrieval",
    "segmentation",
    "localization",
    "question-answering",
    "captioning",
)


def _are_tasks(value: str) -> bool:
    sets = [split_names(part) for part in value.split(";")]
    return all(one and set(one) <= set(TASKS) and len(set(one)) == len(one) for one in sets)


@dataclass(frozen=True, kw_only=True, slots=True)
class VlmOptions:
    """The ``vlm`` section."""

    tasks: str = text(
        "pretraining",
        "what is trained, the primary task first; sets separated by semicolons are dealt to the "
        "clients in turn",
        f"names out of {', '.join(TASKS)}, separated by commas; sets of them by semicolons",
        _are_tasks,
    )
    bert: str = text(
        "",
        "folder with a BERT's weights and tokenizer to start from; empty draws them",
        names_file=bool,
    )
    width: int = number(128, "width of a hidden state (d)", least=1, most=8_192)
    layers: int = number(4, "transformer blocks", least=1, most=128)
    heads: int = number(4, "attention heads of each", least=1, most=256)
    feedforward: int = number(
        512, "hidden units of each block's feed-forward part", least=1, most=65_536
    )
    dropout: float = number(0.1, "dropout of hidden states and attention", least=0, below=1)
    max_video: int = number(32, "most video tokens of a sequence", least=1, most=4_096)
    max_text: int = number(61, "most tokens of a text", least=1, most=4_096)
    clips: int = number(8, "clips that pre-training draws of each video of a batch", least=1)
    min_text: int = number(8, "least tokens of a drawn clip's text", least=1)
    modality_rate: float = number(
        0.5,
        "share of clips of which all text or all video is masked (masked modality model)",
        least=0,
        most=1,
    )
    token_rate: float = number(
        0.15, "share of the other clips' tokens that is masked", above=0, below=1
    )
    corrupts_modality: bool = flag(
        False, "of wholly masked text leave 10% of the words and replace 10%, as BERT does"
    )
    loss: str = choice(
        "masked-token",
        "one masked token loss over both vocabularies, or a loss for each modality",
        ["masked-token", "mfm-mlm"],
    )
    clients_without_text: float = number(
        0.0, "share of clients that pre-train without what is said", least=0, most=1
    )
    clients_without_video: float = number(
        0.0, "share of clients that pre-train without video, on what is said alone", least=0, most=1
    )
    retrieval: str = choice(
        "clips",
        "what is retrieved: an event by its caption, or a whole video by its paragraph",
        ["clips", "videos"],
    )
    window_step: int = number(
        16, "seconds between windows of vlm.max-video seconds over a longer video", least=1
    )
    beams: int = number(5, "beams that captions are searched with", least=1, most=64)
    max_caption: int = number(24, "most words of a caption", least=1, most=4_096)
    length_penalty: float = number(
        1.0, "a caption's log-probability is divided by its length to this power", least=0
    )
    meteor: bool = flag(
        False, "judge captions by METEOR too, which takes Java and pip install tessera-fl[meteor]"
    )

    @property
    def task_sets(self) -> list[tuple[str, ...]]:
        """The tasks of each set."""
        return [split_names(part) for part in self.tasks.split(";")]

    @property
    def all_tasks(self) -> tuple[str, ...]:
        """All tasks of all sets, the primary one first."""
        return tuple(dict.fromkeys(task for one in self.task_sets for task in one))

    def problems(self) -> Iterable[Problem]:
        """Keys that do not go together, or that no configured task reads."""
        if self.width % self.heads:
            rule = f"must be a multiple of vlm.heads={self.heads}"
            yield Problem("vlm.width", str(self.width), rule)
        tasks = set(self.all_tasks)
        if self.window_step > self.max_video and _READ_BY["window_step"] & tasks:
            rule = f"must be at most vlm.max-video={self.max_video}, or seconds are left out"
            yield Problem("vlm.window-step", str(self.window_step), rule)
        if self.min_text > self.max_text and _READ_BY["min_text"] & tasks:
            rule = f"must be at most vlm.max-text={self.max_text}"
            yield Problem("vlm.min-text", str(self.min_text), rule)
        if self.max_caption > self.max_text and _READ_BY["max_caption"] & tasks:
            rule = f"must be at most vlm.max-text={self.max_text}"
            yield Problem("vlm.max-caption", str(self.max_caption), rule)
        if self.clients_without_text + self.clients_without_video > 1:
            rule = (
                f"and vlm.clients-without-text={self.clients_without_text:g} must add up to at "
                "most 1: a client without either has nothing to train on"
            )
            yield Problem("vlm.clients-without-video", f"{self.clients_without_video:g}", rule)
        for field in dataclasses.fields(self):
            readers = _READ_BY.get(field.name)
            value = getattr(self, field.name)
            if readers and not readers & tasks and value != field.default:
                names = " and ".join(sorted(readers))
                key = f"vlm.{field.name.replace('_', '-')}"
                rule = f"is read by {names} alone, not by vlm.tasks={self.tasks}; leave it out"
                text = str(value).lower() if isinstance(value, bool) else str(value)
                yield Problem(key, text, rule)


_PRETRAINING = frozenset({"pretraining"})
_READ_BY = {
    **dict.fromkeys(
        (
            "clips",
            "min_text",
            "modality_rate",
            "token_rate",
            "corrupts_modality",
            "loss",
            "clients_without_text",
            "clients_without_video",
        ),
        _PRETRAINING,
    ),
    "retrieval": frozenset({"pretraining", "retrieval"}),
    "window_step": frozenset({"pretraining", "segmentation", "localization"}),
    **dict.fromkeys(
        ("beams", "max_caption", "length_penalty", "meteor"), frozenset({"captioning"})
    ),
}
"""Keys that not every task reads, and which tasks do."""
