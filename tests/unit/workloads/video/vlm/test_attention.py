"""Who sees whom, by hand and by what states depend on."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.seeds import torch_generator
from tests.unit.workloads.video.vlm.models import VOCABULARY, small_model, some_tokens
from workloads.video.vlm.attention import may_attend
from workloads.video.vlm.model import with_sep

V2, T2 = torch.tensor([[True, False]]), torch.tensor([[True, True]])


def rows(text: str) -> torch.Tensor:
    """A mask drawn as a table: x sees, . does not."""
    return torch.tensor([[cell == "x" for cell in line.split()] for line in text.split("\n")])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # columns and rows: CLS, video, padding, SEP of the video, two words of text
        (
            "joint",
            "x x . x x x\nx x . x x x\n. . x . . .\nx x . x x x\nx x . x x x\nx x . x x x",
        ),
        (
            "isolated",
            "x . . . . .\n. x . x . .\n. . x . . .\n. x . x . .\n. . . . x x\n. . . . x x",
        ),
        (
            "captioning",
            "x x . x . .\nx x . x . .\n. . x . . .\nx x . x . .\nx x . x x .\nx x . x x x",
        ),
    ],
)
def test_masks_by_hand(kind: str, expected: str) -> None:
    assert torch.equal(may_attend(kind, V2, T2)[0], rows(expected))  # type: ignore[arg-type]


@given(seed=st.integers(0, 2**31 - 1))
def test_isolated_video_states_do_not_depend_on_text_to_the_last_bit(seed: int) -> None:
    model, tokens = small_model(), some_tokens(seed=seed)
    words = torch.randint(
        5, VOCABULARY.num_tokens, tokens.words.shape, generator=torch_generator(seed)
    )
    other = dataclasses.replace(tokens, words=words)
    valid = with_sep(tokens.video_valid)
    with torch.no_grad():
        video, text = model.states(tokens, "isolated")
        video_too, text_too = model.states(other, "isolated")
        joint, joint_too = model.states(tokens, "joint")[0], model.states(other, "joint")[0]
    assert torch.equal(video[valid], video_too[valid])
    assert not torch.equal(text, text_too)
    assert not torch.equal(joint[valid], joint_too[valid])


@given(seed=st.integers(0, 2**31 - 1))
def test_isolated_text_states_do_not_depend_on_video_to_the_last_bit(seed: int) -> None:
    model, tokens = small_model(), some_tokens(seed=seed)
    other = dataclasses.replace(tokens, features=tokens.features.flip(0) + 1)
    with torch.no_grad():
        text, text_too = model.states(tokens, "isolated")[1], model.states(other, "isolated")[1]
    assert torch.equal(text[tokens.text_valid], text_too[tokens.text_valid])


@given(seed=st.integers(0, 2**31 - 1))
def test_modalities_forwarded_apart_equal_the_isolated_joint_forward(seed: int) -> None:
    model, tokens = small_model(double=True), some_tokens(seed=seed, double=True)
    with torch.no_grad():
        video, text = model.states(tokens, "isolated")
        video_alone = model.video_states(tokens.features, tokens.video_valid)
        text_alone = model.text_states(tokens.words, tokens.text_valid)
    valid = with_sep(tokens.video_valid)
    torch.testing.assert_close(video[valid], video_alone[valid], rtol=0, atol=1e-12)
    torch.testing.assert_close(
        text[tokens.text_valid], text_alone[tokens.text_valid], rtol=0, atol=1e-12
    )


def test_states_do_not_depend_on_what_others_are_padded_to() -> None:
    """A text keeps its positions however long videos are, and padding is never seen."""
    model, tokens = small_model(double=True), some_tokens(double=True)
    for row in range(len(tokens.words)):
        num_video, num_text = int(tokens.video_valid[row].sum()), int(tokens.text_valid[row].sum())
        alone = dataclasses.replace(
            tokens,
            features=tokens.features[row : row + 1, :num_video],
            video_valid=tokens.video_valid[row : row + 1, :num_video],
            words=tokens.words[row : row + 1, :num_text],
            text_valid=tokens.text_valid[row : row + 1, :num_text],
        )
        for kind in ("joint", "isolated", "captioning"):
            with torch.no_grad():
                video, text = model.states(tokens, kind)
                own_video, own_text = model.states(alone, kind)
            torch.testing.assert_close(
                video[row, :num_video], own_video[0, :-1], rtol=0, atol=1e-12
            )
            torch.testing.assert_close(text[row, :num_text], own_text[0], rtol=0, atol=1e-12)


@given(seed=st.integers(0, 2**31 - 1), place=st.integers(0, 6))
def test_caption_logits_do_not_depend_on_text_behind(seed: int, place: int) -> None:
    model, tokens = small_model(), some_tokens(seed=seed)
    words = tokens.words.clone()
    words[:, place + 1 :] = torch.randint(
        5, VOCABULARY.num_tokens, words[:, place + 1 :].shape, generator=torch_generator(seed)
    )
    with torch.no_grad():
        ours = model.word_logits(model.states(tokens, "captioning")[1])
        changed = dataclasses.replace(tokens, words=words)
        theirs = model.word_logits(model.states(changed, "captioning")[1])
        earlier = tokens.words.clone()
        earlier[:, 0] = torch.where(earlier[:, 0] == 5, 6, 5)
        moved = dataclasses.replace(tokens, words=earlier)
        by_first = model.word_logits(model.states(moved, "captioning")[1])
    assert torch.equal(ours[:, : place + 1], theirs[:, : place + 1])
    assert not torch.equal(ours[:, 0], by_first[:, 0])
