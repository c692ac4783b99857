"""Caption metrics by hand, and against COCO's public code where it keeps to the definitions."""

from __future__ import annotations

import itertools
import math
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from workloads.video.metrics import captions
from workloads.video.metrics.captions import (
    Missing,
    bleu,
    cider,
    close_meteor,
    meteor,
    meteor_missing,
    rouge_l,
    words,
)

Corpus = tuple[list[str], list[list[str]]]

MISSING = meteor_missing()
needs_meteor = pytest.mark.skipif(
    MISSING is not None, reason=MISSING.reason if MISSING else "METEOR is there"
)


def texts(least: int) -> st.SearchStrategy[str]:
    """Texts over three words, so that words and n-grams repeat and match."""
    return st.lists(st.sampled_from("abc"), min_size=least, max_size=8).map(" ".join)


@st.composite
def corpora(draw: st.DrawFn, least: int = 1) -> Corpus:
    """Captions, some empty, each with one to three references of at least `least` words."""
    count = draw(st.integers(1, 5))
    references = st.lists(texts(least), min_size=1, max_size=3)
    return (
        draw(st.lists(texts(0), min_size=count, max_size=count)),
        draw(st.lists(references, min_size=count, max_size=count)),
    )


def of_coco(scorer: Any, corpus: Corpus, **settings: Any) -> Any:
    """What COCO's code gives."""
    candidates, references = corpus
    found, _ = scorer.compute_score(
        dict(enumerate(references)), {i: [one] for i, one in enumerate(candidates)}, **settings
    )
    return found


@given(corpora())
def test_bleu_is_cocos_where_every_order_matches(corpus: Corpus) -> None:
    scorer = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    for ours, theirs in zip(bleu(*corpus), of_coco(scorer, corpus, verbose=0), strict=True):
        if ours:
            assert ours == pytest.approx(theirs, rel=1e-6)
        else:
            # Its small numbers in place of none: 1e-6 for 0/0, at most (1e-6)^(1/4) in all.
            assert 0 <= theirs < 0.032


@given(corpora())
def test_rouge_l_is_cocos(corpus: Corpus) -> None:
    scorer = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    assert rouge_l(*corpus) == pytest.approx(of_coco(scorer, corpus))


@given(corpora(least=0).filter(lambda corpus: any("".join(rights) for rights in corpus[1])))
def test_cider_is_cocos(corpus: Corpus) -> None:
    scorer = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    assert cider(*corpus) == pytest.approx(of_coco(scorer, corpus), abs=1e-9)


@given(corpora(least=0), st.randoms(use_true_random=False))
def test_order_says_nothing_and_scores_stay_in_range(corpus: Corpus, random: Any) -> None:
    order = list(range(len(corpus[0])))
    random.shuffle(order)
    other = [corpus[0][i] for i in order], [corpus[1][i][::-1] for i in order]
    assert bleu(*corpus) == pytest.approx(bleu(*other))
    assert rouge_l(*corpus) == pytest.approx(rouge_l(*other))
    assert cider(*corpus) == pytest.approx(cider(*other))
    assert all(0 <= one <= 1 + 1e-12 for one in bleu(*corpus))
    assert 0 <= rouge_l(*corpus) <= 1 + 1e-12
    assert 0 <= cider(*corpus) <= 10 + 1e-9


@given(corpora(least=4))
def test_captions_that_are_references_are_perfect(corpus: Corpus) -> None:
    references = corpus[1]
    candidates = [rights[-1] for rights in references]
    assert bleu(candidates, references) == pytest.approx((1, 1, 1, 1))
    assert rouge_l(candidates, references) == pytest.approx(1)


def test_bleu_by_hand() -> None:
    # Clipping, as in Papineni et al., section 2.1: "the" is there twice in the first reference.
    the = "the the the the the the the"
    references = ["the cat is on the mat", "there is a cat on the mat"]
    assert bleu([the], [references]) == pytest.approx((2 / 7, 0, 0, 0))
    # Brevity: 2 words for 6.
    found = bleu(["the cat"], [["the cat is on the mat"]])
    assert found == pytest.approx((math.exp(-2), math.exp(-2), 0, 0))
    # Of references of 4 and 6 words, 5 words are as close to the shorter, which costs nothing.
    assert bleu(["a b c d e"], [["a b c d", "a b c d x y"]])[0] == pytest.approx(4 / 5)
    # Of a corpus matches are summed: all 5 words, and 1 of 3 pairs, not the mean of 1 and 0.
    found = bleu(["a b", "c d x"], [["a b"], ["d c x"]])
    assert found[:2] == pytest.approx((1.0, math.sqrt(1 / 3)))
    assert bleu(["", ""], [["a"], ["b"]]) == (0, 0, 0, 0)


def test_rouge_l_by_hand() -> None:
    def scored(precision: float, recall: float) -> float:
        return 2.44 * precision * recall / (recall + 1.44 * precision)

    assert rouge_l(["a b c d"], [["a c d e f"]]) == pytest.approx(scored(3 / 4, 3 / 5))
    # Precision and recall each of the reference that has the higher.
    found = rouge_l(["a b c"], [["a b x x x x", "c"]])
    assert found == pytest.approx(scored(2 / 3, 1))
    # A mean over items, and no order is no subsequence.
    found = rouge_l(["a b", "b a"], [["a b"], ["a b"]])
    assert found == pytest.approx((1 + scored(1 / 2, 1 / 2)) / 2)
    assert rouge_l([""], [["a"]]) == 0


def test_cider_by_hand() -> None:
    # All weigh ln 2. "a b" is perfect in words and pairs, and has no longer n-grams: 10 * 2/4.
    # "a d" and "c d" share a word of two: 10 * 1/2 / 4.
    assert cider(["a b", "a d"], [["a b"], ["c d"]]) == pytest.approx((5 + 1.25) / 2)
    # Repeating a word helps nothing: clipped to one, and the vector is 3 long; one word too many.
    found = cider(["a a a", "x"], [["a b"], ["c d"]])
    one = 10 / 4 / (3 * math.sqrt(2)) * math.exp(-1 / 72)
    assert found == pytest.approx(one / 2)
    # References are averaged.
    found = cider(["a b", "x"], [["a b", "e f"], ["c d"]])
    assert found == pytest.approx(2.5 / 2)
    # A word that every item has weighs nothing, so pairs alone are alike.
    found = cider(["a b", "x"], [["a b"], ["b b d"]])
    assert found == pytest.approx(10 * 2 / 4 / 2)


def test_cider_degenerates_as_told() -> None:
    same = "a red square slides left"
    assert cider([same], [[same]]) == 0
    assert cider([same, same], [[same], [same]]) == 0
    other = "two blue rings spin fast"
    assert cider([same, other], [[same], [other]]) == pytest.approx(10)
    # Scores of parts do not average to that of the whole.
    assert (cider([same], [[same]]) + cider([other], [[other]])) / 2 == 0


def test_where_cocos_code_departs_from_the_definitions() -> None:
    short: Corpus = (["a b c"], [["a b c"]])
    scorer = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    assert of_coco(scorer, short, verbose=0)[3] == pytest.approx(1e-6**0.25, rel=1e-3)
    assert bleu(*short) == pytest.approx((1, 1, 1, 0))
    nothing: Corpus = ([""], [[""]])
    scorer = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    assert of_coco(scorer, nothing) == 1
    assert rouge_l(*nothing) == 0


@pytest.mark.parametrize("metric", [bleu, rouge_l, cider, meteor])
@pytest.mark.parametrize(
    ("candidates", "references", "says"),
    [
        ([], [], "at least one item"),
        (["a"], [["a"], ["b"]], "1 captions and references of 2"),
        (["a", "b"], [["a"], []], "item 1"),
        (["a"], ["a"], "item 0 has references 'a'"),
    ],
)
def test_what_does_not_fit_is_refused(
    metric: Any, candidates: Sequence[str], references: Sequence[Sequence[str]], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        metric(candidates, references)


GENERATED = [
    f"{count} {colour} {shape} {motion}{end}"
    for (count, colour, shape, motion), end in zip(
        itertools.product(
            ["A", "the", "Two"],
            ["red", "light-blue"],
            ["square", "circles"],
            ["slides left", "is spinning", "gets bigger, then stops", "goes up and down"],
        ),
        itertools.cycle([".", "", "!", " ."]),
        strict=False,
    )
]
ORDINARY = [
    "The man's t-shirt doesn't fit, and he says: \u201cit\u2019s 3.5 cm too long!\u201d",
    "I'm sure we'll see what you've done; they'd cannot, can't and won't...",
    "he shouldn't've said 'she can't'",
    "she is gonna add 1/2 cup of salt & pepper - at 10:30 -- isn't she?",
    "add 1,000 g of flour; stir, and/or wait 5 minutes",
    "don ' t put the dogs' bowl on the \"table\"",
    "two people in the u.s. play 'chess' at five o'clock",
    "",
    "let's cook",
]


def test_tokens_by_hand() -> None:
    assert words("A red  Square\tslides left.") == ("a", "red", "square", "slides", "left")
    assert words("Don't -- it's (his) t-shirt!") == ("do", "n't", "it", "'s", "his", "t-shirt")
    assert words("don ' t") == ("don", "t")  # parted before, so no longer a contraction
    assert words("") == words(" . , !") == ()


@given(st.text() | st.text(alphabet="cant wes'.,-/5(!", max_size=30))
def test_tokens_lose_nothing_but_space_and_punctuation(text: str) -> None:
    def kept(of: str) -> str:
        straight = of.lower().replace("\u2018", "'").replace("\u2019", "'")
        dropped = "'`\".?!,:;-()[]{}\u201c\u201d\u2026\u2013\u2014"
        return "".join(one for one in straight if not one.isspace() and one not in dropped)

    found = words(text)
    assert kept("".join(found)) == kept(text)
    assert all(kept(token) and not any(one.isspace() for one in token) for token in found)


def test_tokens_are_the_treebanks() -> None:
    if shutil.which("java") is None:
        pytest.skip("the Stanford tokenizer needs Java, and there is no java on the path")
    module = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    jar = Path(module.__file__).with_name(module.STANFORD_CORENLP_3_4_1_JAR)
    lines = [*GENERATED, *ORDINARY]
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar)]
    command += ["edu.stanford.nlp.process.PTBTokenizer"]
    answer = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        encoding="utf-8",
        check=True,
    ).stdout.split("\n")
    for line, found in zip(lines, answer[: len(lines)], strict=True):
        kept = [token for token in found.split() if token not in module.PUNCTUATIONS]
        assert words(line) == tuple(kept)


@pytest.fixture
def ended() -> Iterator[None]:
    """No process is left, whatever happens."""
    close_meteor()
    yield
    close_meteor()


TOLD: Corpus = (
    ["a red square moves to the left", "the circle", "", "two rings are spinning", "don't a a"],
    [
        ["a red square slides left", "the red box moves left"],
        ["a blue circle gets bigger"],
        ["nothing happens"],
        ["two rings spin"],
        ["do n't a", "b"],
    ],
)


@needs_meteor
def test_meteor_is_cocos_from_one_process_that_is_ended(ended: None) -> None:
    found = meteor(*TOLD)
    process = captions._kept
    assert process is not None
    again = meteor(*TOLD)
    assert captions._kept is process  # kept from call to call
    mean = [meteor([one], [rights]) for one, rights in zip(*TOLD, strict=True)]
    bare: Corpus = (["", "a"], [[""], ["a", ""]])
    scored = meteor(*bare)
    close_meteor()
    assert captions._kept is None and process._process.returncode is not None
    assert isinstance(found, float) and found == again
    assert found not in mean and mean[2] == 0
    assert (found, scored) == pytest.approx(meteor_of_coco(TOLD, bare))


def meteor_of_coco(*of: Corpus) -> tuple[float, ...]:
    scorer = pytest.importorskip("pycocoevalcap.meteor.meteor").Meteor()
    try:
        parted = [
            (
                [" ".join(words(one)) for one in candidates],
                [[" ".join(words(right)) for right in rights] for rights in references],
            )
            for candidates, references in of
        ]
        return tuple(of_coco(scorer, corpus) for corpus in parted)
    finally:
        for stream in (scorer.meteor_p.stdout, scorer.meteor_p.stderr):
            stream.close()


def test_meteor_is_missing_without_java(
    ended: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jar = tmp_path / "meteor-1.5.jar"
    monkeypatch.setattr(captions, "_meteor_jar", lambda: jar)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = meteor(["a"], [["a"]])
    assert isinstance(found, Missing) and "no java on the path" in found.reason
    assert meteor_missing() == found


def test_meteor_is_missing_without_its_program(
    ended: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = meteor(["a"], [["a"]])
    assert isinstance(found, Missing) and "tessera-fl[meteor]" in found.reason


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo first >&2; echo no memory >&2; exit 1", "no memory"),
        ("read line; echo 1 2 3; read line; exit 1", "it said nothing"),
        ("read line; echo what", "it said nothing"),
    ],
)
def test_a_program_that_fails_is_told_and_not_kept(
    ended: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, says: str
) -> None:
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    monkeypatch.setattr(captions, "_meteor_jar", lambda: tmp_path / "meteor-1.5.jar")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = meteor(["a"], [["a"]])
    assert isinstance(found, Missing) and found.reason.endswith(says)
    assert captions._kept is None
