"""Captions: the loss token by token, and beam search against all captions there can be."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import DataError, RunError
from core.seeds import seeded_globals, torch_generator
from data.video.records import Event
from tests.unit.workloads.video.handmade import clip_of, dataset_with
from tests.unit.workloads.video.vlm.models import small_model, task_on
from workloads.video.metrics import captions as caption_metrics
from workloads.video.text import Vocabulary
from workloads.video.vlm import captioning
from workloads.video.vlm.captioning import METEOR, Captioning
from workloads.video.vlm.clips import Batcher
from workloads.video.vlm.model import EncoderSizes, Tokens, VideoLanguageModel
from workloads.video.vlm.options import VlmOptions

CLIPS = [
    clip_of(
        6,
        seed=1,
        double=True,
        events=(
            Event((0, 2.5), "a red square slides"),
            Event((3, 4)),
            Event((4, 6), "the blue circle blinks twice then a star spins"),
        ),
    ),
    clip_of(3, seed=2, double=True),
    clip_of(4, seed=3, double=True, captions=("a star", "then a circle")),
]
ITEMS = [
    (CLIPS[0].features[:3], "a red square slides"),
    (CLIPS[0].features[4:6], "the blue circle blinks twice then"),  # six words at most
    (CLIPS[2].features, "a star"),
]

TINY_WORDS = Vocabulary.of_texts(["left right up"])
WORDS = sorted(set(range(TINY_WORDS.num_tokens)) - set(range(5)))
LONGEST = 3
TINY = EncoderSizes(
    num_words=TINY_WORDS.num_tokens,
    feature_width=4,
    width=8,
    layers=1,
    heads=2,
    feedforward=8,
    dropout=0.0,
    max_video=4,
    max_text=LONGEST,
)


def captioning_on_clips(**options: object) -> Captioning:
    task = task_on(Captioning, CLIPS, None, **options)
    assert isinstance(task, Captioning)
    return task


def next_logits(
    model: VideoLanguageModel, features: torch.Tensor, prefix: list[int], cls: int
) -> torch.Tensor:
    """Logits of each next word after a prefix, from the prefix alone, shape (|D|,)."""
    words = torch.tensor([[cls, *prefix]])
    here = torch.ones(1, len(features), dtype=torch.bool)
    tokens = Tokens(features.unsqueeze(0), here, words, torch.ones_like(words, dtype=torch.bool))
    with torch.no_grad():
        return model.word_logits(model.states(tokens, "captioning")[1][0, -1])


def test_the_loss_is_a_sum_over_tokens_each_after_what_stands_before() -> None:
    """In float64, one token at a time without padding; [SEP] is a token too."""
    model, task = small_model(double=True), captioning_on_clips()
    vocabulary = task.batcher.vocabulary
    terms = []
    for features, caption in ITEMS:
        ids = [*vocabulary.ids(caption), vocabulary.sep]
        for t, word in enumerate(ids):
            logits = next_logits(model, features, ids[:t], vocabulary.cls).tolist()
            terms.append(math.log(sum(map(math.exp, logits))) - logits[word])
    assert len(terms) == 5 + 7 + 3
    with torch.no_grad():
        losses = task.losses(model, ITEMS)
        assert losses.tolist() == pytest.approx(terms, rel=1e-9)
        judged = task.judge(model, CLIPS)
    assert judged.loss == pytest.approx(sum(terms) / len(terms))
    assert judged.num_items == 3


def test_of_several_captions_one_is_drawn() -> None:
    model, task = small_model(double=True), captioning_on_clips()
    with torch.no_grad():
        each = [
            float(task.losses(model, [(CLIPS[2].features, told)]).mean())
            for told in CLIPS[2].video.captions
        ]
        found = {float(task.loss(model, CLIPS[2:], torch_generator(seed))[0]) for seed in range(20)}
    assert sorted(found) == pytest.approx(sorted(each))
    loss, measured = task.loss(model, CLIPS, torch_generator(0))
    assert measured == {"loss/captioning": pytest.approx(float(loss.detach()))}
    assert task.measures() == tuple(measured)


def test_items_are_captioned_events_or_else_the_whole_video() -> None:
    task = captioning_on_clips()
    assert [span for span, _ in task.items(CLIPS[0])] == [(0, 2.5), (4, 6)]
    assert task.items(CLIPS[2]) == [(None, ("a star", "then a circle"))]
    assert [task.num_items(clip) for clip in CLIPS] == [2, 0, 1]


def tiny_model(seed: int) -> VideoLanguageModel:
    """An encoder over three words, of which the next depends on those before, mostly not [SEP]."""
    with seeded_globals(seed):
        model = VideoLanguageModel(TINY, cls=TINY_WORDS.cls, sep=TINY_WORDS.sep)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.8)
        assert model.vocabulary_bias is not None
        model.vocabulary_bias.data[TINY_WORDS.sep] -= 2 * (seed % 3)
    return model.double().eval()


def tiny_task(beams: int, penalty: float, max_caption: int = LONGEST) -> Captioning:
    options = VlmOptions(
        max_video=TINY.max_video,
        max_text=TINY.max_text,
        max_caption=max_caption,
        beams=beams,
        length_penalty=penalty,
    )
    batcher = Batcher(TINY_WORDS, TINY.max_video, TINY.max_text, torch.device("cpu"))
    return Captioning(options, dataset_with([clip_of(1)], vocabulary=TINY_WORDS), batcher)


def stretches(seed: int, count: int = 2) -> list[torch.Tensor]:
    """Features of stretches of 1 to 4 seconds."""
    generator = torch_generator(seed)
    return [
        torch.randn(1 + i % 4, TINY.feature_width, generator=generator).double()
        for i in range(count)
    ]


class Told:
    """What captions of one stretch score, by definition."""

    def __init__(self, model: VideoLanguageModel, features: torch.Tensor, penalty: float) -> None:
        self._model, self._features, self._penalty = model, features, penalty
        self._steps: dict[tuple[int, ...], list[float]] = {}

    def steps(self, prefix: tuple[int, ...]) -> list[float]:
        """Log-probability of each word and [SEP] after a prefix, among these alone."""
        if prefix not in self._steps:
            logits = next_logits(self._model, self._features, list(prefix), TINY_WORDS.cls).tolist()
            allowed = [*WORDS, TINY_WORDS.sep]
            total = math.log(sum(math.exp(logits[word]) for word in allowed))
            self._steps[prefix] = [logit - total for logit in logits]
        return self._steps[prefix]

    def sum_of(self, ids: tuple[int, ...]) -> float:
        return sum(self.steps(ids[:t])[word] for t, word in enumerate(ids))

    def score(self, ids: tuple[int, ...], longest: int = LONGEST) -> float:
        """Of a caption that ends here; of the longest also without its [SEP]."""
        total = self.sum_of(ids)
        ended = (total + self.steps(ids)[TINY_WORDS.sep]) / math.pow(len(ids) + 1, self._penalty)
        if len(ids) < longest:
            return ended
        return max(ended, total / math.pow(len(ids), self._penalty))


ALL = [ids for length in range(LONGEST + 1) for ids in itertools.product(WORDS, repeat=length)]
penalties = st.sampled_from([0.0, 0.3, 1.0, 2.5])
seeds = st.integers(0, 2**31 - 1)


@settings(max_examples=15)
@given(seed=seeds, penalty=penalties)
def test_with_a_beam_for_every_prefix_the_best_of_all_captions_is_found(
    seed: int, penalty: float
) -> None:
    model, given_stretches = tiny_model(seed), stretches(seed)
    found = tiny_task(len(WORDS) ** LONGEST, penalty).write(model, given_stretches)
    for features, ids in zip(given_stretches, found, strict=True):
        told = Told(model, features, penalty)
        best = max(map(told.score, ALL))
        assert told.score(ids) == pytest.approx(best, rel=1e-9, abs=1e-12)


@settings(max_examples=25)
@given(seed=seeds, penalty=penalties, beams=st.integers(1, 4))
def test_with_few_beams_the_best_that_the_search_meets_is_found(
    seed: int, penalty: float, beams: int
) -> None:
    """A search written out: the best sums stay open, and whatever is met may end there."""
    model, given_stretches = tiny_model(seed), stretches(seed)
    found = tiny_task(beams, penalty).write(model, given_stretches)
    for features, ids in zip(given_stretches, found, strict=True):
        told = Told(model, features, penalty)
        held: list[tuple[int, ...]] = [()]
        met: list[tuple[int, ...]] = [()]
        for _ in range(LONGEST):
            longer = [(*prefix, word) for prefix in held for word in WORDS]
            held = sorted(longer, key=told.sum_of, reverse=True)[:beams]
            met += held
        best = max(map(told.score, met))
        assert ids in met
        assert told.score(ids) == pytest.approx(best, rel=1e-9, abs=1e-12)


@settings(max_examples=15)
@given(seed=seeds)
def test_one_beam_takes_the_likeliest_word_each_time(seed: int) -> None:
    """Where [SEP] is never worth it, that is greedy decoding to the longest caption."""
    model = tiny_model(seed)
    assert model.vocabulary_bias is not None
    with torch.no_grad():
        model.vocabulary_bias[TINY_WORDS.sep] = -1e4
    (features,) = stretches(seed, 1)
    greedy: tuple[int, ...] = ()
    for _ in range(LONGEST):
        logits = next_logits(model, features, list(greedy), TINY_WORDS.cls)
        greedy = (*greedy, max(WORDS, key=lambda word: float(logits[word])))
    assert tiny_task(1, 1.0).write(model, [features]) == [greedy]


@settings(max_examples=15)
@given(seed=seeds, beams=st.integers(1, 6), longest=st.integers(1, LONGEST))
def test_captions_hold_words_alone_and_end_in_time(seed: int, beams: int, longest: int) -> None:
    """However likely special tokens are."""
    model = tiny_model(seed)
    assert model.vocabulary_bias is not None
    with torch.no_grad():
        for special in (TINY_WORDS.pad, TINY_WORDS.unk, TINY_WORDS.cls, TINY_WORDS.mask):
            model.vocabulary_bias[special] = 50.0
    for ids in tiny_task(beams, 1.0, longest).write(model, stretches(seed, 3)):
        assert set(ids) <= set(WORDS) and len(ids) <= longest


def test_a_caption_that_ends_at_once_is_empty() -> None:
    model = tiny_model(0)
    assert model.vocabulary_bias is not None
    with torch.no_grad():
        model.vocabulary_bias[TINY_WORDS.sep] = 1e4
    for penalty in (0.0, 1.0):
        assert tiny_task(3, penalty).write(model, stretches(0)) == [(), ()]


@settings(max_examples=15)
@given(seed=seeds, beams=st.integers(1, 4), penalty=penalties)
def test_a_caption_does_not_depend_on_what_is_searched_beside_it(
    seed: int, beams: int, penalty: float
) -> None:
    model, task, together = tiny_model(seed), tiny_task(beams, penalty), stretches(seed, 4)
    alone = [task.write(model, [one])[0] for one in together]
    assert task.write(model, together) == alone


def test_written_captions_are_compared_with_all_that_were_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, model = captioning_on_clips(beams=2), small_model(double=True)
    written = ["a red circle", "a star spins", "then a circle"]
    ids = [tuple(task.batcher.vocabulary.ids(text)) for text in written]
    answers = iter(ids)
    object.__setattr__(task, "write", lambda model, few: [next(answers) for _ in few])
    monkeypatch.setattr(captioning, "CHUNK", 2)
    with torch.no_grad():
        found = task.judge(model, CLIPS)
    references = [
        ["a red square slides"],
        ["the blue circle blinks twice then a star spins"],
        ["a star", "then a circle"],
    ]
    assert found.scores == {
        "cider": caption_metrics.cider(written, references),
        "bleu_4": caption_metrics.bleu(written, references)[3],
        "rouge_l": caption_metrics.rouge_l(written, references),
    }
    assert [dict(s.lines) for s in found.samples] == [
        {"gold": told[0], "model": text} for told, text in zip(references, written, strict=True)
    ]
    assert [s.title for s in found.samples] == [
        "video-1, 0.0 to 2.5 s",
        "video-1, 4.0 to 6.0 s",
        "video-3, 0.0 to 4.0 s",
    ]


def test_meteor_is_told_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = captioning_on_clips(meteor=True, beams=1), small_model(double=True)
    with torch.no_grad():
        monkeypatch.setattr(caption_metrics, "meteor", lambda written, references: 0.25)
        assert task.judge(model, CLIPS).scores[METEOR.name] == 0.25
        lost = caption_metrics.Missing("Java went away")
        monkeypatch.setattr(caption_metrics, "meteor", lambda written, references: lost)
        with pytest.raises(RunError, match="Java went away"):
            task.judge(model, CLIPS)


def test_videos_without_a_caption_cost_nothing_and_cannot_be_judged() -> None:
    task, model = captioning_on_clips(), small_model(double=True)
    loss, measured = task.loss(model, CLIPS[1:2], torch_generator(0))
    assert float(loss.detach()) == 0 and measured == {}
    with pytest.raises(DataError, match="captioning: no video has a caption"):
        task.judge(model, CLIPS[1:2])
