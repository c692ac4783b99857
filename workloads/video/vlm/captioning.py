"""Video captioning: a sentence that tells what a clip shows (section 4.5).

The text segment starts with ``[CLS]`` and each of its states, which sees the video and what stands
before, tells the next token, by the head that pre-training used; ``[SEP]`` ends a caption. Trained
by cross-entropy of every token, and searched with beams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional

from core.errors import DataError, RunError
from core.scores import Score
from data.video.records import Span
from workloads.video.dataset import Clip
from workloads.video.metrics import captions as caption_metrics
from workloads.video.vlm.model import Tokens, VideoLanguageModel, padded
from workloads.video.vlm.task import Judgement, Sample, Task, nothing

CHUNK = 64
SAMPLES = 8
METEOR = Score("meteor", "METEOR", is_percent=True)
CAPTION_SCORES = (
    Score("cider", "CIDEr", is_percent=False),
    Score("bleu_4", "BLEU-4", is_percent=True),
    Score("rouge_l", "ROUGE-L", is_percent=True),
)


def shifted(words: torch.Tensor, cls: int) -> torch.Tensor:
    """A text segment that ends with ``[SEP]``, shifted right behind ``[CLS]``; both (B, T)."""
    starts = words.new_full((len(words), 1), cls)
    return torch.cat([starts, words[:, :-1]], 1)


class Captioning(Task):
    """Events, or whole videos where a corpus has no events, each with its caption."""

    name = "captioning"
    scores = CAPTION_SCORES
    own_entries = ("lm",)

    def items(self, clip: Clip) -> list[tuple[Span | None, tuple[str, ...]]]:
        """Stretches of a video, each with all captions that tell of it."""
        video = clip.video
        found: list[tuple[Span | None, tuple[str, ...]]] = [
            (event.span, (event.caption,)) for event in video.events if event.caption
        ]
        return found or ([(None, video.captions)] if video.captions else [])

    def num_items(self, clip: Clip) -> int:
        """Captioned stretches."""
        return len(self.items(clip))

    def losses(
        self, model: VideoLanguageModel, pairs: Sequence[tuple[torch.Tensor, str]]
    ) -> torch.Tensor:
        """Cross-entropy of every token of every caption, its ``[SEP]`` included, shape (tokens,).

        Args:
            model: The model.
            pairs: Features of a stretch, shape (n, D), and its caption.
        """
        features, video_valid = padded([stretch for stretch, _ in pairs])
        words, valid = self.batcher.texts([self._ids(caption) for _, caption in pairs])
        inputs = shifted(words, self.batcher.vocabulary.cls)
        _, states = model.states(Tokens(features, video_valid, inputs, valid), "captioning")
        logits = model.word_logits(states[valid])
        return functional.cross_entropy(logits, words[valid], reduction="none")

    def loss(
        self, model: VideoLanguageModel, clips: Sequence[Clip], generator: torch.Generator
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        """The mean over all tokens; of a stretch with several captions one is drawn."""
        pairs = [
            (
                self.batcher.stretch(clip, span),
                told[int(torch.randint(len(told), (), generator=generator))],
            )
            for clip in clips
            for span, told in self.items(clip)
        ]
        if not pairs:
            return nothing(model), {}
        loss = self.losses(model, pairs).mean()
        return loss, {f"loss/{self.name}": float(loss.detach())}

    def judge(self, model: VideoLanguageModel, clips: Sequence[Clip]) -> Judgement:
        """Write a caption of every stretch, and compare with all that it was given.

        The loss is training's, on the first caption of each.
        """
        items = [(clip, span, told) for clip in clips for span, told in self.items(clip)]
        if not items:
            raise DataError("captioning: no video has a caption; use a corpus that has, or a task")
        total, count = 0.0, 0
        written: list[str] = []
        for start in range(0, len(items), CHUNK):
            few = items[start : start + CHUNK]
            stretches = [self.batcher.stretch(clip, span) for clip, span, _ in few]
            told = [captions[0] for _, _, captions in few]
            losses = self.losses(model, list(zip(stretches, told, strict=True)))
            total, count = total + float(losses.double().sum()), count + len(losses)
            written += [self.batcher.vocabulary.text(ids) for ids in self.write(model, stretches)]
        references = [list(captions) for _, _, captions in items]
        scores = {
            "cider": caption_metrics.cider(written, references),
            "bleu_4": caption_metrics.bleu(written, references)[3],
            "rouge_l": caption_metrics.rouge_l(written, references),
        }
        if self.options.meteor:
            found = caption_metrics.meteor(written, references)
            if isinstance(found, caption_metrics.Missing):
                raise RunError(f"vlm.meteor=true: {found.reason}")
            scores["meteor"] = found
        samples = [
            Sample(
                "Captions",
                items[i][0],
                items[i][1],
                {"gold": references[i][0], "model": written[i]},
            )
            for i in range(0, len(items), max(1, len(items) // SAMPLES))
        ]
        return Judgement(total / count, len(items), scores, tuple(samples[:SAMPLES]))

    def write(
        self, model: VideoLanguageModel, stretches: Sequence[torch.Tensor]
    ) -> list[tuple[int, ...]]:
        """Captions by beam search, as ids.

        In each step every beam is extended by every word, and the best of them are kept by the sum
        of their tokens' log-probabilities among words and ``[SEP]``. A beam that ends leaves the
        search with that sum over its length, ``[SEP]`` included, to the power of
        ``vlm.length-penalty``; so do, without ``[SEP]``, those still open when captions are as long
        as they may be. The best of those that left is the caption.
        """
        options, vocabulary = self.options, self.batcher.vocabulary
        beams, device = options.beams, self.batcher.device
        features, valid = padded(list(stretches))
        features = features.repeat_interleave(beams, 0)
        valid = valid.repeat_interleave(beams, 0)
        count = len(stretches)
        rows = torch.arange(count, device=device).unsqueeze(1)
        words = torch.full((count, beams, 1), vocabulary.cls, device=device)
        sums = torch.full((count, beams), -torch.inf, device=device)
        sums[:, 0] = 0
        best: list[tuple[float, tuple[int, ...]]] = [(-torch.inf, ())] * count
        barred = [vocabulary.pad, vocabulary.cls, vocabulary.mask, vocabulary.unk]
        for length in range(1, options.max_caption + 2):
            flat = words.view(count * beams, length)
            tokens = Tokens(features, valid, flat, torch.ones_like(flat, dtype=torch.bool))
            _, states = model.states(tokens, "captioning")
            logits = model.word_logits(states[:, -1])
            logits[:, barred] = -torch.inf
            steps = functional.log_softmax(logits, 1).view(count, beams, -1)
            extended = sums.unsqueeze(2) + steps
            penalty = length**options.length_penalty
            ended = extended[:, :, vocabulary.sep] / penalty
            if length == options.max_caption + 1:
                ended = torch.maximum(ended, sums / max(1, length - 1) ** options.length_penalty)
            _keep_best(best, ended, words)
            if length == options.max_caption + 1:
                break
            extended[:, :, vocabulary.sep] = -torch.inf
            sums, chosen = extended.flatten(1).topk(beams, 1)
            from_beam, token = chosen // steps.shape[2], chosen % steps.shape[2]
            words = torch.cat([words[rows, from_beam], token.unsqueeze(2)], 2)
            if _none_can_win(best, sums, length, options.max_caption, options.length_penalty):
                break
        return [ids for _, ids in best]

    def _ids(self, caption: str) -> tuple[int, ...]:
        return self.batcher.ids(caption)[: self.options.max_caption]


def _keep_best(
    best: list[tuple[float, tuple[int, ...]]], ended: torch.Tensor, words: torch.Tensor
) -> None:
    """Note the best caption of each clip that ends now; of equal ones the earlier stays."""
    values, beams = ended.max(1)
    for i, (value, beam) in enumerate(zip(values.tolist(), beams.tolist(), strict=True)):
        if value > best[i][0]:
            best[i] = (value, tuple(words[i, beam, 1:].tolist()))


def _none_can_win(
    best: Sequence[tuple[float, tuple[int, ...]]],
    sums: torch.Tensor,
    length: int,
    most: int,
    penalty: float,
) -> bool:
    """Whether no open beam can still beat what has ended: sums only fall, lengths end at `most`."""
    bound = sums.max(1).values / (most + 1) ** penalty
    return all(value >= limit for (value, _), limit in zip(best, bound.tolist(), strict=True))
