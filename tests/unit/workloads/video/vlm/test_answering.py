"""Multiple-choice questions: candidates' scores, ties, and the loss."""

from __future__ import annotations

import math

import pytest
import torch

from core.errors import DataError
from core.seeds import torch_generator
from data.video.records import Question
from tests.unit.workloads.video.handmade import clip_of
from tests.unit.workloads.video.vlm.models import small_model, task_on, vectors
from workloads.video.dataset import Clip
from workloads.video.vlm import answering
from workloads.video.vlm.answering import Answering

OPEN = Question("what", "a star")
CLIPS = [
    clip_of(
        9,
        seed=1,
        double=True,
        questions=(
            Question("what slides", "a circle", ("a star", "a circle", "a red square"), (1.5, 3.0)),
            OPEN,
            Question("", "a star", ("a star", "a circle")),
        ),
    ),
    clip_of(3, seed=2, double=True, questions=(OPEN,)),
]
ASKED = [((1, 3), 0, 1), ((0, 9), 2, 0)]
"""Of each question with candidates: its seconds, its index, its answer's."""


def answering_on(clips: list[Clip]) -> Answering:
    task = task_on(Answering, clips)
    assert isinstance(task, Answering)
    return task


def test_a_candidate_is_scored_by_question_and_answer_together() -> None:
    model, task = small_model(double=True), answering_on(CLIPS)
    asked = [(CLIPS[0], CLIPS[0].video.questions[index]) for _, index, _ in ASKED]
    with torch.no_grad():
        found = task.logits(model, asked)
        loss, measured = task.loss(model, CLIPS, torch_generator(0))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    terms = []
    for ((first, last), index, answer), logits in zip(ASKED, found, strict=True):
        question = CLIPS[0].video.questions[index]
        stretch = CLIPS[0].features[first:last]
        stretch = stretch if len(stretch) <= 8 else stretch[:8]  # 9 seconds, evenly spaced
        one = torch.ones(1, len(stretch), dtype=torch.bool)
        video = model.video_states(stretch.unsqueeze(0), one)[0].mean(0)
        expected = []
        for candidate in question.candidates:
            words = task.batcher.vocabulary.ids(f"{question.text} {candidate}")
            ids = torch.tensor([[*words, task.batcher.vocabulary.sep]])
            text = model.text_states(ids, torch.ones_like(ids, dtype=torch.bool))[0].mean(0)
            expected.append(float(text @ video))
        assert logits.tolist() == pytest.approx(expected, rel=1e-9)
        terms.append(math.log(sum(map(math.exp, expected))) - expected[answer])
    assert float(loss) == pytest.approx(sum(terms) / 2)
    assert measured == {"loss/question-answering": pytest.approx(float(loss))}
    assert task.measures() == tuple(measured)


BY_WORD = {"red": [1.0, 0.0], "blue": [0.0, 1.0], "star": [1.0, 0.0], "circle": [-1.0, 0.0]}


def question(answer: str, *others: str) -> Question:
    return Question("", answer, (*others, answer))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([question("red", "blue")], 1.0),
        ([question("blue", "red")], 0.0),
        ([question("red", "star")], 1 / 2),  # both score as high
        ([question("red", "star", "star red", "blue")], 1 / 3),
        ([question("circle", "red", "star")], 0.0),  # others tie above
        ([question("blue", "circle")], 1.0),
        ([question("red", "blue"), question("red", "star"), question("blue", "red")], 1 / 2),
    ],
)
def test_ties_count_by_the_chance_of_drawing_the_right_one(
    asked: list[Question], expected: float
) -> None:
    plain = clip_of(1, questions=tuple(asked))
    clip = Clip(plain.video, torch.tensor([[2.0, 0.5]]))
    found = answering_on([clip]).judge(vectors(BY_WORD), [clip])
    assert found.scores == {"answer_accuracy": pytest.approx(expected)}
    assert found.num_items == len(asked)


@pytest.mark.parametrize("word", ["blue", "red"])
def test_a_model_that_gives_no_numbers_answers_nothing(word: str) -> None:
    """As of a model that diverged: its run is judged and goes on record."""
    plain = clip_of(1, questions=(question("blue", "red"), question("star", "circle")))
    clip = Clip(plain.video, torch.tensor([[2.0, 0.5]]))
    model = vectors({**BY_WORD, word: [math.nan, 0.0]})
    found = answering_on([clip]).judge(model, [clip])
    assert found.scores == {"answer_accuracy": 1 / 2}
    assert math.isnan(found.loss)


def test_judging_tells_trainings_loss_and_what_was_answered() -> None:
    plain = clip_of(1, questions=(question("blue", "red"), question("red", "circle")))
    clip = Clip(plain.video, torch.tensor([[2.0, 0.5]]))
    found = answering_on([clip]).judge(vectors(BY_WORD), [clip])
    terms = [math.log(math.exp(2) + math.exp(0.5)) - 0.5, math.log(math.exp(2) + math.exp(-2)) - 2]
    assert found.loss == pytest.approx(sum(terms) / 2)
    told = [dict(sample.lines) for sample in found.samples]
    assert told == [
        {"question": "", "gold": "blue", "model": "red"},
        {"question": "", "gold": "red", "model": "red"},
    ]


def test_judging_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [
        clip_of(2 + i, seed=i, questions=(question("a star", "a circle"), question("red", "star")))
        for i in range(3)
    ]
    task, model = answering_on(clips), small_model()
    with torch.no_grad():
        whole = task.judge(model, clips)
        monkeypatch.setattr(answering, "CHUNK", 4)
        parts = task.judge(model, clips)
    assert parts.scores == whole.scores and parts.loss == pytest.approx(whole.loss, rel=1e-5)


def test_open_questions_cost_nothing_and_cannot_be_judged() -> None:
    task, model = answering_on(CLIPS), small_model()
    assert [task.num_items(clip) for clip in CLIPS] == [2, 0]
    loss, measured = task.loss(model, CLIPS[1:], torch_generator(0))
    assert float(loss.detach()) == 0 and measured == {}
    with pytest.raises(DataError, match="no video has a question with candidates"):
        task.judge(model, CLIPS[1:])
