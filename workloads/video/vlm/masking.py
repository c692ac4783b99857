"""What is masked, and what masked tokens cost: MFM-MLM, MMM, masked token loss (section 3).

=================  ==============================================================================
some tokens        the masked frame and masked language models (MFM-MLM): every video token and
                   every text token is masked with a probability of its own
all text           the masked modality model: every text token is masked, no video token is
all video          the masked modality model: every video token is masked, no text token is
=================  ==============================================================================

A masked video token is the token of a feature of zeros; what it is to be is the token of its own
feature, into which gradients flow too. ``[CLS]``, ``[SEP]`` and padding are never masked.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch.nn import functional

from workloads.video.text import Vocabulary
from workloads.video.vlm.model import Tokens, VideoLanguageModel

SOME, ALL_TEXT, ALL_VIDEO = 0, 1, 2
KEPT, REPLACED = 0.1, 0.1
"""Of masked words, the share that stays as it is and the share that another word stands for."""


@dataclass(frozen=True, slots=True)
class Masking:
    """How a batch is masked.

    Attributes:
        modality_rate: Share of examples of which a whole modality is masked, text and video evenly
            (p_mm).
        token_rate: Probability with which each token of the others is masked.
        corrupts_modality: Whether BERT's 10% kept and 10% replaced words hold of wholly masked text
            too; if not, every token of it is ``[MASK]``.
    """

    modality_rate: float
    token_rate: float
    corrupts_modality: bool


@dataclass(frozen=True, slots=True)
class Masked:
    """A masked batch.

    Attributes:
        tokens: As it was.
        seen: What the encoder sees.
        video: Which video tokens are masked, bool, shape (B, V).
        text: Which text tokens are masked, bool, shape (B, T).
        scheme: Of each example, `SOME`, `ALL_TEXT` or `ALL_VIDEO`, int64, shape (B,).
    """

    tokens: Tokens
    seen: Tokens
    video: torch.Tensor
    text: torch.Tensor
    scheme: torch.Tensor

    @property
    def visible_video(self) -> torch.Tensor:
        """Video tokens that are not masked (V'), bool, shape (B, V)."""
        return self.tokens.video_valid & ~self.video


def mask_tokens(
    tokens: Tokens, masking: Masking, vocabulary: Vocabulary, generator: torch.Generator
) -> Masked:
    """Draw a masking of a batch.

    An example without video or without text has nothing to tell a whole modality by: of it some
    tokens are masked, whatever was drawn.
    """
    device, count = tokens.words.device, len(tokens.words)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    words = tokens.text_valid & (tokens.words != vocabulary.sep)
    both = tokens.video_valid.any(1) & words.any(1)
    modality, which = drawn(count) < masking.modality_rate, drawn(count) < 0.5
    scheme = torch.where(modality & both, torch.where(which, ALL_TEXT, ALL_VIDEO), SOME)
    some = (scheme == SOME).unsqueeze(1)
    few_video = drawn(*tokens.video_valid.shape) < masking.token_rate
    few_text = drawn(*words.shape) < masking.token_rate
    video = tokens.video_valid & ((scheme == ALL_VIDEO).unsqueeze(1) | (some & few_video))
    text = words & ((scheme == ALL_TEXT).unsqueeze(1) | (some & few_text))

    fate = drawn(*words.shape)
    if not masking.corrupts_modality:
        fate = torch.where(some, fate, 1.0)
    others = torch.randint(vocabulary.num_tokens, tuple(words.shape), generator=generator)
    seen = torch.where(text & (fate >= KEPT + REPLACED), vocabulary.mask, tokens.words)
    seen = torch.where(text & (fate >= KEPT) & (fate < KEPT + REPLACED), others.to(device), seen)
    features = tokens.features.masked_fill(video.unsqueeze(2), 0.0)
    shown = dataclasses.replace(tokens, features=features, words=seen)
    return Masked(tokens, shown, video, text, scheme)


@dataclass(frozen=True, slots=True)
class MaskedLoss:
    """What a batch's masked tokens cost.

    Attributes:
        loss: What is minimised, shape ().
        video_sum: Sum over masked video tokens, shape (), no gradient.
        text_sum: Sum over masked text tokens, likewise.
        num_video: Masked video tokens.
        num_text: Masked text tokens.
        num_negatives: Video tokens to choose from (|V'|).
    """

    loss: torch.Tensor
    video_sum: torch.Tensor
    text_sum: torch.Tensor
    num_video: int
    num_text: int
    num_negatives: int


def masked_loss(model: VideoLanguageModel, masked: Masked, *, joint: bool) -> MaskedLoss:
    """Predict what is masked.

    Args:
        model: The model.
        masked: The batch.
        joint: Whether video and text tokens are told out of both vocabularies (the masked token
            loss, equations 8 and 9), or each out of its own (MFM-MLM, equations 5 to 7).
    """
    of_video, of_text = model.states(masked.tokens, "joint", seen=masked.seen)
    tokens = model.video_tokens(masked.tokens.features)
    return token_loss(
        predicted_video=model.predictions(of_video[:, :-1][masked.video]),
        video=tokens[masked.video],
        predicted_text=model.predictions(of_text[masked.text]),
        text=masked.tokens.words[masked.text],
        candidates=tokens[masked.visible_video],
        words=model.words,
        bias=model.vocabulary_bias,
        joint=joint,
    )


def token_loss(
    *,
    predicted_video: torch.Tensor,
    video: torch.Tensor,
    predicted_text: torch.Tensor,
    text: torch.Tensor,
    candidates: torch.Tensor,
    words: torch.Tensor,
    bias: torch.Tensor | None,
    joint: bool,
) -> MaskedLoss:
    """Noise-contrastive losses of predicted embeddings.

    Args:
        predicted_video: Of masked video tokens (e_s), shape (m, d).
        video: What they are (x_s), shape (m, d).
        predicted_text: Of masked text tokens (e_s), shape (n, d).
        text: What they are, ids, int64, shape (n,).
        candidates: Video tokens that are not masked (V'), shape (k, d).
        words: All word embeddings (D), shape (|D|, d).
        bias: Of each word, shape (|D|,), or none; MFM-MLM's language model alone reads it.
        joint: As `masked_loss`.
    """
    own = (predicted_video * video).sum(1, keepdim=True)
    others = [own, predicted_video @ candidates.T]
    if joint:
        others.append(predicted_video @ words.T)
    video_sum = (torch.logsumexp(torch.cat(others, 1), 1) - own.squeeze(1)).sum()
    if joint:
        logits = torch.cat([predicted_text @ words.T, predicted_text @ candidates.T], 1)
    else:
        logits = functional.linear(predicted_text, words, bias)
    text_sum = functional.cross_entropy(logits, text, reduction="sum")
    num_video, num_text = len(video), len(text)
    if joint:
        loss = (video_sum + text_sum) / max(1, num_video + num_text)
    else:
        loss = video_sum / max(1, num_video) + text_sum / max(1, num_text)
    return MaskedLoss(
        loss, video_sum.detach(), text_sum.detach(), num_video, num_text, len(candidates)
    )
