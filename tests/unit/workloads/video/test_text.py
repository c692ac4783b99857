"""Vocabularies of words and of word pieces, and tokens that have times."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer, Tokenizer
from tokenizers.models import WordLevel

from core.errors import DataError
from data.video.records import Utterance
from workloads.video.text import SPECIAL, UNK, Vocabulary

TEXTS = ["a red square slides", "a blue circle", "then a square blinks"]
WORDS = ["a", "square", "blinks", "blue", "circle", "red", "slides", "then"]
"""Those of `TEXTS`, the most frequent first, equal counts by alphabet."""
VOCABULARY = Vocabulary.of_texts(TEXTS)
PIECES = [*SPECIAL, "a", "the", "circle", "un", "##aff", "##able", "s", "##quare", ","]


def folder_of_pieces(folder: Path) -> Path:
    """A folder with the vocabulary of a BERT, as it is saved beside its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return folder


def test_ids_are_special_tokens_then_words_by_count_and_alphabet() -> None:
    assert [VOCABULARY.ids(word) for word in WORDS] == [[i] for i in range(5, 5 + len(WORDS))]
    assert VOCABULARY.num_tokens == len(SPECIAL) + len(WORDS)
    special = (VOCABULARY.pad, VOCABULARY.unk, VOCABULARY.cls, VOCABULARY.sep, VOCABULARY.mask)
    assert special == (0, 1, 2, 3, 4)


@given(words=st.lists(st.sampled_from(WORDS)))
def test_texts_of_known_words_survive_ids_and_back(words: list[str]) -> None:
    text = " ".join(words)
    assert VOCABULARY.text(VOCABULARY.ids(text)) == text
    assert VOCABULARY.ids(text.upper()) == VOCABULARY.ids(text)


@given(texts=st.lists(st.text(alphabet="ab ,.'", max_size=12), max_size=4))
def test_no_word_of_the_texts_that_made_it_is_unknown(texts: list[str]) -> None:
    made = Vocabulary.of_texts(texts)
    for text in texts:
        ids = made.ids(text)
        assert made.unk not in ids
        assert made.text(ids).replace(" ", "") == text.replace(" ", "")


def test_words_that_it_does_not_hold_are_unknown_and_left_out_of_texts() -> None:
    ids = VOCABULARY.ids("a green square")
    assert ids == [5, VOCABULARY.unk, 6]
    assert VOCABULARY.text(ids) == "a square"


def test_special_tokens_are_left_out_of_texts() -> None:
    ids = [VOCABULARY.cls, *VOCABULARY.ids("a circle"), VOCABULARY.sep, VOCABULARY.pad]
    assert VOCABULARY.text(ids) == "a circle"
    assert VOCABULARY.text([VOCABULARY.mask]) == ""


@pytest.mark.parametrize("name", SPECIAL)
def test_texts_that_name_a_special_token_do_not_hold_it(name: str, tmp_path: Path) -> None:
    """What is said in a video is data; it must not end a segment or mask a word."""
    for made in (VOCABULARY, Vocabulary.of_folder(folder_of_pieces(tmp_path))):
        special = {made.pad, made.cls, made.sep, made.mask}
        assert not special & set(made.ids(f"a {name} circle"))


def test_word_pieces_of_a_folder_go_together_again(tmp_path: Path) -> None:
    made = Vocabulary.of_folder(folder_of_pieces(tmp_path))
    assert made.num_tokens == len(PIECES)
    ids = made.ids("the Unaffable square")
    assert [PIECES[i] for i in ids] == ["the", "un", "##aff", "##able", "s", "##quare"]
    assert made.text([made.cls, *ids, made.sep]) == "the unaffable square"
    assert made.ids("unknowable") == [made.unk]
    assert made.text([made.unk]) == ""


def test_a_folders_own_tokenizer_comes_before_its_word_list(tmp_path: Path) -> None:
    folder = folder_of_pieces(tmp_path)
    BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=False).save(
        str(folder / "tokenizer.json")
    )
    made = Vocabulary.of_folder(folder)
    assert made.ids("The") == [made.unk] and made.ids("the") == [PIECES.index("the")]


def test_a_folders_padding_and_truncation_are_not_taken_over(tmp_path: Path) -> None:
    """Tokenizers are saved with the lengths of what they were last used for."""
    folder = folder_of_pieces(tmp_path)
    tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"))
    tokenizer.enable_padding(length=7)
    tokenizer.enable_truncation(max_length=2)
    tokenizer.save(str(folder / "tokenizer.json"))
    made = Vocabulary.of_folder(folder)
    assert made.ids("a") == [5] and made.ids("a a a") == [5, 5, 5]


def test_an_equal_source_is_an_equal_vocabulary() -> None:
    again = Vocabulary.of_source(VOCABULARY.source)
    assert again == VOCABULARY
    assert VOCABULARY.sha256 == hashlib.sha256(VOCABULARY.source.encode()).hexdigest()
    assert Vocabulary.of_texts(TEXTS[:2]).sha256 != VOCABULARY.sha256
    assert Vocabulary.of_texts(reversed(TEXTS)) == VOCABULARY


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither tokenizer\.json nor vocab\.txt"):
        Vocabulary.of_folder(tmp_path)


@pytest.mark.parametrize("source", ["", "{}", json.dumps({"model": 3})])
def test_what_is_no_tokenizer_is_refused(source: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        Vocabulary.of_source(source)


@pytest.mark.parametrize("lacking", SPECIAL)
def test_a_tokenizer_without_a_special_token_is_refused(lacking: str) -> None:
    names = [name for name in [*SPECIAL, "a"] if name != lacking]
    model = WordLevel({name: i for i, name in enumerate(names)}, unk_token=UNK)
    with pytest.raises(DataError, match=rf"lacks the token \{lacking[:-1]}"):
        Vocabulary.of_source(Tokenizer(model).to_str())


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"\xff\xfe[PAD]\n", b"", b"[]"])
def test_a_tokenizer_that_cannot_be_read_is_refused(
    name: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError):
        Vocabulary.of_folder(tmp_path)


@given(
    starts=st.lists(st.floats(0, 60), min_size=1, max_size=5),
    lengths=st.lists(st.floats(0, 9), min_size=5, max_size=5),
    counts=st.lists(st.integers(0, 6), min_size=5, max_size=5),
)
def test_tokens_share_the_time_of_their_utterance(
    starts: list[float], lengths: list[float], counts: list[int]
) -> None:
    said = [
        Utterance((start, start + length), " ".join(WORDS[:count]))
        for start, length, count in zip(starts, lengths, counts, strict=False)
    ]
    timed = VOCABULARY.timed(said)
    assert len(timed) == sum(counts[: len(said)])
    for utterance in said:
        own = VOCABULARY.ids(utterance.text)
        mine, timed = timed[: len(own)], timed[len(own) :]
        assert [one for one, _ in mine] == own
        spans = [span for _, span in mine]
        start_s, end_s = utterance.span
        for i, span in enumerate(spans):
            assert span[1] - span[0] == pytest.approx((end_s - start_s) / len(own), abs=1e-9)
            assert span[0] == (start_s if i == 0 else spans[i - 1][1])
        if spans:
            assert spans[-1][1] == pytest.approx(end_s)
    assert not timed
