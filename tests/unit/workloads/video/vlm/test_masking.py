"""Maskings by statistics, and the masked token loss against a sum written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.seeds import torch_generator
from tests.unit.workloads.video.vlm.models import VOCABULARY, small_model, some_tokens
from workloads.video.vlm.masking import (
    ALL_TEXT,
    ALL_VIDEO,
    SOME,
    Masked,
    Masking,
    mask_tokens,
    masked_loss,
)
from workloads.video.vlm.model import Tokens

PAPER = Masking(modality_rate=0.5, token_rate=0.15, corrupts_modality=False)
COUNT = 6000


def drawn(masking: Masking, count: int = COUNT) -> Masked:
    """Many examples, masked under one seed."""
    return mask_tokens(some_tokens(count), masking, VOCABULARY, torch_generator(7))


def is_near(share: float, rate: float, count: int) -> bool:
    """Whether a share lies within five standard deviations of a binomial's rate."""
    return abs(share - rate) < 5 * math.sqrt(rate * (1 - rate) / count)


def words_of(tokens: Tokens) -> torch.Tensor:
    return tokens.text_valid & (tokens.words != VOCABULARY.sep)


def test_half_of_examples_lose_a_modality_and_the_two_evenly() -> None:
    masked = drawn(PAPER)
    for scheme, rate in ((SOME, 0.5), (ALL_TEXT, 0.25), (ALL_VIDEO, 0.25)):
        assert is_near(float((masked.scheme == scheme).double().mean()), rate, COUNT)


def test_a_modality_is_masked_wholly_and_the_other_not_at_all() -> None:
    masked = drawn(PAPER)
    tokens, words = masked.tokens, words_of(masked.tokens)
    text_rows, video_rows = masked.scheme == ALL_TEXT, masked.scheme == ALL_VIDEO
    assert torch.equal(masked.text[text_rows], words[text_rows])
    assert not masked.video[text_rows].any()
    assert torch.equal(masked.video[video_rows], tokens.video_valid[video_rows])
    assert not masked.text[video_rows].any()
    assert (masked.seen.words[text_rows][words[text_rows]] == VOCABULARY.mask).all()


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_other_examples_lose_tokens_of_both_at_the_rate(rate: float) -> None:
    masked = drawn(Masking(0.5, rate, corrupts_modality=False))
    some, words = masked.scheme == SOME, words_of(masked.tokens)
    for mask, valid in ((masked.text, words), (masked.video, masked.tokens.video_valid)):
        count = int(valid[some].sum())
        assert is_near(float(mask[some].sum()) / count, rate, count)


def test_no_special_token_and_no_padding_is_ever_masked_or_changed() -> None:
    masked = drawn(Masking(0.5, 0.9, corrupts_modality=True))
    tokens, words = masked.tokens, words_of(masked.tokens)
    assert not masked.text[~words].any()
    assert torch.equal(masked.seen.words[~masked.text], tokens.words[~masked.text])
    assert not masked.video[~tokens.video_valid].any()
    unmasked = ~masked.video
    assert torch.equal(masked.seen.features[unmasked], tokens.features[unmasked])
    assert not masked.seen.features[masked.video].any()


@pytest.mark.parametrize("corrupts", [False, True])
def test_words_are_masked_kept_and_replaced_as_bert_does(corrupts: bool) -> None:
    masked = drawn(Masking(0.5, 0.5, corrupts_modality=corrupts))
    schemes = (SOME, ALL_TEXT) if corrupts else (SOME,)
    for scheme in schemes:
        at = masked.text & (masked.scheme == scheme).unsqueeze(1)
        was, seen, count = masked.tokens.words[at], masked.seen.words[at], int(at.sum())
        # A word drawn in place of another is the mask, or the word itself, now and then.
        by_chance = 0.1 / VOCABULARY.num_tokens
        assert is_near(float((seen == VOCABULARY.mask).double().mean()), 0.8 + by_chance, count)
        assert is_near(float((seen == was).double().mean()), 0.1 + by_chance, count)


def test_without_a_modality_the_other_is_never_masked_wholly() -> None:
    tokens = some_tokens(200)
    blind = Tokens(
        tokens.features, torch.zeros_like(tokens.video_valid), tokens.words, tokens.text_valid
    )
    masked = mask_tokens(
        blind, Masking(1.0, 0.15, corrupts_modality=False), VOCABULARY, torch_generator(0)
    )
    assert (masked.scheme == SOME).all()
    assert not masked.video.any()


@given(seed=st.integers(0, 2**31 - 1), joint=st.booleans())
def test_losses_equal_a_sum_over_candidates(seed: int, joint: bool) -> None:
    """Equations 5 to 9 in float64, candidate by candidate."""
    model, tokens = small_model(double=True, seed=seed), some_tokens(seed=seed, double=True)
    masked = mask_tokens(
        tokens, Masking(0.5, 0.4, corrupts_modality=False), VOCABULARY, torch_generator(seed)
    )
    with torch.no_grad():
        torch.nn.init.normal_(model.vocabulary_bias)  # type: ignore[arg-type]
        found = masked_loss(model, masked, joint=joint)
        of_video, of_text = model.states(tokens, "joint", seen=masked.seen)
        x_v, words = model.video_tokens(tokens.features), model.words
        e_video, e_text = model.predictions(of_video), model.predictions(of_text)
    assert model.vocabulary_bias is not None
    bias = model.vocabulary_bias.detach()
    visible = [
        x_v[b, j]
        for b in range(len(x_v))
        for j in range(x_v.shape[1])
        if tokens.video_valid[b, j] and not masked.video[b, j]
    ]
    video_terms, text_terms = [], []
    for b in range(len(x_v)):
        for j in range(x_v.shape[1]):
            if masked.video[b, j]:
                e, own = e_video[b, j], x_v[b, j]
                others = visible + (list(words) if joint else [])
                total = sum(math.exp(float(x @ e)) for x in others) + math.exp(float(own @ e))
                video_terms.append(-math.log(math.exp(float(own @ e)) / total))
        for t in range(tokens.words.shape[1]):
            if masked.text[b, t]:
                e, word = e_text[b, t], int(tokens.words[b, t])
                if joint:
                    total = sum(math.exp(float(x @ e)) for x in [*visible, *words])
                    own_logit = float(words[word] @ e)
                else:
                    total = sum(
                        math.exp(float(x @ e + c)) for x, c in zip(words, bias, strict=True)
                    )
                    own_logit = float(words[word] @ e + bias[word])
                text_terms.append(-math.log(math.exp(own_logit) / total))
    if joint:
        expected = sum(video_terms + text_terms) / max(1, len(video_terms) + len(text_terms))
    else:
        expected = sum(video_terms) / max(1, len(video_terms))
        expected += sum(text_terms) / max(1, len(text_terms))
    assert float(found.loss) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert (found.num_video, found.num_text) == (len(video_terms), len(text_terms))
    assert found.num_negatives == len(visible)


def test_gradient_flows_into_what_a_masked_video_token_is_to_be() -> None:
    """With the prediction held still, the loss moves the MLP by its targets and candidates."""
    model, tokens = small_model(double=True), some_tokens(double=True)
    masked = mask_tokens(
        tokens, Masking(1.0, 0.15, corrupts_modality=False), VOCABULARY, torch_generator(3)
    )
    assert masked.video.any()
    features = tokens.features.clone().requires_grad_()
    shown = Masked(
        Tokens(features, tokens.video_valid, tokens.words, tokens.text_valid),
        masked.seen,
        masked.video,
        masked.text,
        masked.scheme,
    )
    masked_loss(model, shown, joint=True).loss.backward()
    assert features.grad is not None
    assert (features.grad[masked.video].abs().sum(1) > 0).all()
