"""Words as numbers: a vocabulary that all clients agree on, and texts as tokens that have times."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import BertWordPieceTokenizer, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer

from core.errors import DataError
from data.video.records import Span, Utterance

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNK, CLS, SEP, MASK)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens and their ids.

    Attributes:
        source: The tokenizer as JSON, which clients are sent and runs are known by.
        num_tokens: Size of the vocabulary (|D|), special tokens included.
        pad: Id of padding.
        unk: Id of a word that it does not hold.
        cls: Id of the first token of a sequence; captions start with it.
        sep: Id of the token that ends a segment; captions end with it.
        mask: Id of the token in place of a masked one.
    """

    source: str
    num_tokens: int
    pad: int
    unk: int
    cls: int
    sep: int
    mask: int

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> Vocabulary:
        """Every word of `texts`, lower case, the most frequent first; equal counts by alphabet."""
        normalizer, splitter = Lowercase(), BertPreTokenizer()
        counts: Counter[str] = Counter()
        for text in texts:
            found = splitter.pre_tokenize_str(normalizer.normalize_str(text))
            counts.update(word for word, _ in found)
        by_count = sorted(counts, key=lambda word: (-counts[word], word))
        names = dict.fromkeys([*SPECIAL, *by_count])
        tokenizer = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token=UNK))
        tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer = splitter
        return cls.of_source(tokenizer.to_str())

    @classmethod
    def of_folder(cls, folder: Path) -> Vocabulary:
        """The tokenizer of a BERT that the user has: ``tokenizer.json`` or ``vocab.txt``.

        Raises:
            DataError: There is none, or it lacks a token that BERT has.
        """
        whole, words = folder / "tokenizer.json", folder / "vocab.txt"
        if not whole.is_file() and not words.is_file():
            raise DataError(
                f"{folder} holds neither tokenizer.json nor vocab.txt; give a folder that BERT's "
                "weights and tokenizer were saved to"
            )
        try:
            if whole.is_file():
                source = whole.read_text(encoding="utf-8")
            else:
                lower = _is_lower_case(folder / "tokenizer_config.json")
                source = BertWordPieceTokenizer(str(words), lowercase=lower).to_str()
        except Exception as error:  # the library raises Exception itself
            raise DataError(
                f"the vocabulary in {folder} cannot be read: {error}; use a tokenizer of BERT's"
            ) from error
        return cls.of_source(source)

    @classmethod
    def of_source(cls, source: str) -> Vocabulary:
        """What `source` holds.

        Raises:
            DataError: It is no tokenizer, or lacks a special token.
        """
        try:
            tokenizer = Tokenizer.from_str(source)
        except Exception as error:  # the library raises Exception itself
            raise DataError(f"a vocabulary cannot be read: {error}") from error
        ids = []
        for name in SPECIAL:
            found = tokenizer.token_to_id(name)
            if found is None:
                raise DataError(f"a vocabulary lacks the token {name}; use a tokenizer of BERT's")
            ids.append(found)
        return cls(source, tokenizer.get_vocab_size(), *ids)

    @property
    def sha256(self) -> str:
        """Of the tokenizer."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def ids(self, text: str) -> list[int]:
        """Ids of a text's tokens, without special ones around them."""
        found: list[int] = _tokenizer(self.source).encode(text, add_special_tokens=False).ids
        return found

    def text(self, ids: Sequence[int]) -> str:
        """The text that ids stand for, without special tokens."""
        tokenizer = _tokenizer(self.source)
        if tokenizer.decoder is not None:
            return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
        words = [tokenizer.id_to_token(one) or UNK for one in ids]
        return " ".join(word for word in words if word not in SPECIAL)

    def timed(self, narration: Sequence[Utterance]) -> list[tuple[int, Span]]:
        """Tokens of what is said, each with its share of its utterance's time."""
        timed: list[tuple[int, Span]] = []
        for utterance in narration:
            ids = self.ids(utterance.text)
            start_s, end_s = utterance.span
            each_s = (end_s - start_s) / max(1, len(ids))
            timed += [
                (one, (start_s + i * each_s, start_s + (i + 1) * each_s))
                for i, one in enumerate(ids)
            ]
        return timed


def _is_lower_case(file: Path) -> bool:
    """Whether a BERT reads all in lower case, which it does where its folder does not tell."""
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return bool(told.get("do_lower_case", True))


@lru_cache(maxsize=4)
def _tokenizer(source: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(source)
    # Saved with the lengths that it was last used for; batches are cut and padded elsewhere.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # "[SEP]" in what somebody says is a word like any other.
    tokenizer.encode_special_tokens = True
    return tokenizer
