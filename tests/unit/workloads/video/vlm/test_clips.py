"""Which seconds and which words clips are made of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.seeds import torch_generator
from data.video.records import Event, Utterance
from tests.unit.workloads.video.handmade import clip_of, numbered_clip
from tests.unit.workloads.video.vlm.models import VOCABULARY
from workloads.video.dataset import Clip
from workloads.video.vlm.clips import Batcher, Pair, sample_pairs, told

SAID = "a red square slides to the left then a star spins"
times = st.floats(-5, 50, allow_nan=False)


def batcher(max_video: int = 8, max_text: int = 10) -> Batcher:
    return Batcher(VOCABULARY, max_video, max_text, torch.device("cpu"))


def seconds_of(features: torch.Tensor) -> list[int]:
    """The seconds that features of a numbered clip were taken from."""
    return [int(second) for second in features[:, 0].tolist()]


@given(seconds=st.integers(1, 40), start_s=times, length_s=st.floats(0, 30))
def test_a_stretch_has_every_second_that_its_span_touches(
    seconds: int, start_s: float, length_s: float
) -> None:
    span = (start_s, start_s + length_s)
    found = seconds_of(batcher(max_video=100).stretch(numbered_clip(seconds), span))
    touched = [k for k in range(seconds) if k < span[1] and span[0] < k + 1]
    if touched:
        assert found == touched
    else:  # it lies outside, or is a point between two seconds: there is one, the nearest
        assert found in ([0], [seconds - 1], [min(int(max(start_s, 0)), seconds - 1)])


@given(seconds=st.integers(1, 200), most=st.integers(1, 40))
def test_a_stretch_that_is_too_long_is_thinned_evenly(seconds: int, most: int) -> None:
    found = seconds_of(batcher(max_video=most).stretch(numbered_clip(seconds), None))
    assert len(found) == min(seconds, most)
    assert found[0] == 0 and found[-1] < seconds
    gaps = [after - before for before, after in zip(found, [*found[1:], seconds], strict=True)]
    assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1


def test_a_span_is_thinned_within_itself() -> None:
    assert seconds_of(batcher(max_video=4).stretch(numbered_clip(30), (10.5, 18.2))) == [
        10,
        12,
        14,
        16,
    ]


def test_texts_are_cut_and_end_with_sep() -> None:
    short = batcher(max_text=3)
    assert list(short.ids(SAID)) == VOCABULARY.ids(SAID)[:3]
    ids, valid = short.texts([short.ids(SAID), (), short.ids("star")])
    sep, pad, star = VOCABULARY.sep, VOCABULARY.pad, VOCABULARY.ids("star")[0]
    assert ids.tolist() == [
        [*VOCABULARY.ids(SAID)[:3], sep],
        [sep, *[pad] * 3],
        [star, sep, pad, pad],
    ]
    assert valid.tolist() == [[True] * 4, [True, *[False] * 3], [True, True, False, False]]


def test_pairs_of_differing_lengths_make_one_batch() -> None:
    clip = numbered_clip(5)
    pairs = [
        Pair(clip.features[:3], (7,)),
        Pair(clip.features[:0], (7, 8)),
        Pair(clip.features, ()),
    ]
    tokens = batcher().tokens(pairs)
    assert tokens.features.shape == (3, 5, 1) and tokens.words.shape == (3, 3)
    assert tokens.video_valid.sum(1).tolist() == [3, 0, 5]
    assert tokens.text_valid.sum(1).tolist() == [2, 3, 1]
    assert not tokens.features[~tokens.video_valid].any()


def narrated(spans: list[tuple[float, float]], seconds: int = 40) -> Clip:
    """A video of which all of `SAID` is said in each of the spans."""
    said = tuple(Utterance(span, SAID) for span in sorted(spans))
    return numbered_clip(seconds, narration=said)


spans = st.lists(
    st.tuples(st.floats(0, 35), st.floats(0.1, 12)).map(lambda t: (t[0], t[0] + t[1])),
    min_size=1,
    max_size=4,
)


@given(
    spans=spans,
    max_text=st.integers(1, 60),
    min_text=st.integers(1, 60),
    max_video=st.integers(1, 50),
    seed=st.integers(0, 2**31 - 1),
)
def test_drawn_clips_are_runs_of_words_and_the_seconds_in_which_they_are_said(
    spans: list[tuple[float, float]], max_text: int, min_text: int, max_video: int, seed: int
) -> None:
    clip, made = narrated(spans), batcher(max_video, max_text)
    timed = VOCABULARY.timed(clip.video.narration)
    words = tuple(one for one, _ in timed)
    most = min(max_text, len(timed))
    pairs = sample_pairs(clip, 5, made, torch_generator(seed), min_text=min_text)
    assert len(pairs) == 5
    for pair in pairs:
        length = len(pair.words)
        assert min(min_text, most) <= length <= most
        places = [i for i in range(len(words) - length + 1) if words[i : i + length] == pair.words]
        expected = []
        for i in places:  # the same words may be said more than once
            run = [span for _, span in timed[i : i + length]]
            span = (min(start for start, _ in run), max(end for _, end in run))
            expected.append(seconds_of(made.stretch(clip, span)))
        assert seconds_of(pair.features) in expected


def test_every_length_and_every_place_is_drawn() -> None:
    """Of 3 words at least 2: two runs of two words, one of three; lengths are drawn first."""
    clip = numbered_clip(6, narration=(Utterance((0, 6), "a red square"),))
    pairs = sample_pairs(clip, 2000, batcher(), torch_generator(0), min_text=2)
    a, red, square = VOCABULARY.ids("a red square")
    shares = {
        run: sum(pair.words == run for pair in pairs) / len(pairs)
        for run in ((a, red), (red, square), (a, red, square))
    }
    assert sum(shares.values()) == 1
    assert shares[a, red, square] == pytest.approx(0.5, abs=0.06)
    assert shares[a, red] == pytest.approx(0.25, abs=0.05)
    assert {tuple(seconds_of(p.features)) for p in pairs if p.words == (red, square)} == {
        (2, 3, 4, 5)
    }


@given(seconds=st.integers(1, 40), seed=st.integers(0, 2**31 - 1))
def test_without_text_clips_are_runs_of_seconds(seconds: int, seed: int) -> None:
    said = narrated([(0.0, 9.0)], seconds)
    silent = numbered_clip(seconds)
    for clip, has_text in ((said, False), (silent, True), (silent, False)):
        pairs = sample_pairs(
            clip, 5, batcher(), torch_generator(seed), min_text=2, has_text=has_text
        )
        assert len(pairs) == 5
        for pair in pairs:
            found = seconds_of(pair.features)
            assert pair.words == () and 1 <= len(found) <= min(8, seconds)
            assert found == list(range(found[0], found[0] + len(found)))


@given(seed=st.integers(0, 2**31 - 1))
def test_without_video_clips_are_words_alone(seed: int) -> None:
    clip = narrated([(0.0, 9.0)])
    pairs = sample_pairs(clip, 5, batcher(), torch_generator(seed), min_text=2, has_video=False)
    assert len(pairs) == 5
    for pair in pairs:
        assert pair.features.shape == (0, 1) and 2 <= len(pair.words) <= 10


def test_without_video_and_without_a_word_there_is_no_clip() -> None:
    silent = numbered_clip(5)
    assert sample_pairs(silent, 5, batcher(), torch_generator(0), min_text=2, has_video=False) == []


def test_captions_are_told_where_nothing_is_said() -> None:
    said = (Utterance((1.0, 2.0), "a star spins"),)
    events = (Event((0, 3), "a red square"), Event((3, 4), step="a star"))
    assert told(clip_of(5, narration=said, events=events)) == said
    assert told(clip_of(5, events=events)) == (Utterance((0, 3), "a red square"),)
    assert told(clip_of(5, captions=("a star", "a ring"))) == (Utterance((0.0, 5.0), "a star"),)
    assert told(clip_of(5)) == ()
