"""Captions against references: BLEU, ROUGE-L, CIDEr-D and METEOR as COCO's evaluation defines them.

Each of these names stands for several numbers in use that differ. Here they are those of the COCO
caption evaluation (Chen et al., "Microsoft COCO Captions: Data Collection and Evaluation Server",
2015), which papers on video captioning report. Where its public code departs from the definitions,
which is in cases that have no n-gram to count, the definitions hold; each function says so.

All metrics see the tokens of `words`. BLEU, CIDEr-D and METEOR are about a corpus: the mean over
parts of it, such as clients, is not the corpus's, so captions of all parts must be pooled first.
"""

from __future__ import annotations

import atexit
import importlib.util
import math
import re
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import DataError

MAX_N = 4
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0
CIDER_SCALE = 10.0

Ngram = tuple[str, ...]
Tokens = tuple[str, ...]
Item = tuple[Tokens, tuple[Tokens, ...]]

_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})
_ENCLITIC = re.compile(r"(?<=\w)(?=(?:n't|'(?:s|m|d|re|ve|ll))(?!\w))")
_ASSIMILATED = re.compile(r"\b(?:(can)(not)|(gon|wan)(na)|(got)(ta)|(gim|lem)(me))\b")
_TOKEN = re.compile(
    r"""
    n't(?!\w) | '(?:s|m|d|re|ve|ll)(?!\w)   # what follows a contraction's first word
    | (?:[^\W\d_]\.){2,}                    # u.s.
    | \d+(?:[.,:/]\d+)+                     # 3.5, 10:30, 1/2
    | \w+(?:[-/']\w+)*                      # t-shirt, and/or, o'clock
    | \S                                    # any other sign by itself
    """,
    re.VERBOSE,
)
_PUNCTUATION = frozenset("'`\".?!,:;-()[]{}\u2026\u2013\u2014")


def words(text: str) -> Tokens:
    """Tokens as the Penn Treebank has them, lower-case, without its punctuation.

    Words part at white space; punctuation is cut off and dropped, enclitics are cut off and kept
    (``don't`` is ``do n't``, ``man's`` is ``man 's``), hyphens within words stay. On sentences
    without abbreviations this is the Stanford tokenizer that COCO runs, followed by COCO's list of
    punctuation. Two things differ: an abbreviation such as ``mr.`` loses its dot unless each letter
    has one, and brackets are dropped, which COCO means to do and fails to, since it looks for
    ``-LRB-`` after making all lower-case.

    >>> words("The man's t-shirt doesn't fit, (it's 3.5 cm too long)!")[:6]
    ('the', 'man', "'s", 't-shirt', 'does', "n't")
    """
    lower = _ENCLITIC.sub(" ", text.lower().translate(_QUOTES))
    parted = _ASSIMILATED.sub(lambda found: " ".join(filter(None, found.groups())), lower)
    return tuple(token for token in _TOKEN.findall(parted) if token not in _PUNCTUATION)


def bleu(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, float, float, float]:
    """BLEU-1 to BLEU-4 of a corpus, each in [0, 1].

    Source: Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL
    2002, section 2. BLEU-n is ``BP (p_1 ... p_n)^(1/n)``. ``p_k`` is the share of the corpus's
    k-grams in candidates that are matched, each at most as often as one reference has it. With all
    candidates' length c and that of the references closest to them r, of two equally close ones the
    shorter, ``BP = min(1, exp(1 - r/c))``.

    Where no k-gram matches, or candidates are too short to have one, BLEU-k and above are 0; there
    is no smoothing. COCO's code adds small numbers to both sides instead, which for candidates too
    short gives up to 0.03 for 0.

    Args:
        candidates: A caption for each item; may be empty.
        references: Right captions of each item, at least one.

    Raises:
        DataError: There is no item, numbers differ, or an item has no reference.
    """
    matched, made = [0] * MAX_N, [0] * MAX_N
    candidate_length = reference_length = 0
    for candidate, rights in _items(candidates, references):
        candidate_length += len(candidate)
        reference_length += min((abs(len(right) - len(candidate)), len(right)) for right in rights)[
            1
        ]
        for n in range(1, MAX_N + 1):
            found = _ngrams(candidate, n)
            most: Counter[Ngram] = Counter()
            for right in rights:
                most |= _ngrams(right, n)
            matched[n - 1] += (found & most).total()
            made[n - 1] += found.total()
    if not candidate_length:
        return (0.0, 0.0, 0.0, 0.0)
    brevity = min(1.0, math.exp(1 - reference_length / candidate_length))
    scores, logs = [], 0.0
    for n, (hits, count) in enumerate(zip(matched, made, strict=True), start=1):
        logs += math.log(hits / count) if hits else -math.inf
        scores.append(brevity * math.exp(logs / n))
    return (scores[0], scores[1], scores[2], scores[3])


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L, the mean over items, in [0, 1].

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 3, with
    COCO's beta of 1.2. With L the length of the longest common subsequence, precision is the
    highest L over the candidate's length of any reference, recall the highest L over the
    reference's length, perhaps of another one; the score is
    ``(1 + beta^2) P R / (R + beta^2 P)``.

    Without a common word it is 0, also if both sides are empty. COCO's code takes an empty text for
    a word, and gives 1 where both are.

    Args:
        candidates: A caption for each item; may be empty.
        references: Right captions of each item, at least one.

    Raises:
        DataError: There is no item, numbers differ, or an item has no reference.
    """
    scores = []
    for candidate, rights in _items(candidates, references):
        common = [(_common_length(candidate, right), len(right)) for right in rights]
        if not any(length for length, _ in common):
            scores.append(0.0)
            continue
        precision = max(length for length, _ in common) / len(candidate)
        recall = max(length / of for length, of in common if length)
        weight = ROUGE_BETA**2
        scores.append((1 + weight) * precision * recall / (recall + weight * precision))
    return float(np.mean(scores))


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D, which is what COCO calls CIDEr: the mean over items, in [0, 10].

    Source: Vedantam, Zitnick, Parikh, "CIDEr: Consensus-based Image Description Evaluation", CVPR
    2015, equations 1 to 3 and section 5. A text's vector has a value for each n-gram, how often it
    has that n-gram times the n-gram's inverse document frequency ``ln(I / max(1, d))``: of I items,
    d have it in a reference. For each n a candidate c is compared with each reference s by
    ``exp(-(l_c - l_s)^2 / (2 * 6^2)) min(c, s) . s / (|c| |s|)``, which is averaged over references
    and over n = 1 to 4, and multiplied by 10. Papers print this, or ten times as much.

    Frequencies are those of the references given here, the evaluation set's, so that a score holds
    for that set alone: parts of it, such as clients, weigh n-grams by their own frequencies. In
    small or uniform sets the metric degenerates. An n-gram that every item has weighs nothing; with
    one item, or if all items have the same n-grams, all vectors are zero and so is the score, even
    of perfect captions. A vector of zeros is taken to be like no other.

    Args:
        candidates: A caption for each item; may be empty.
        references: Right captions of each item, at least one.

    Raises:
        DataError: There is no item, numbers differ, or an item has no reference.
    """
    items = _items(candidates, references)
    having: Counter[Ngram] = Counter()
    for _, rights in items:
        having.update(
            {gram for right in rights for n in range(1, MAX_N + 1) for gram in _ngrams(right, n)}
        )

    rarity = {gram: math.log(len(items) / count) for gram, count in having.items()}
    unseen = math.log(len(items))

    def vector(text: Tokens, n: int) -> tuple[dict[Ngram, float], float]:
        weights = {
            gram: count * rarity.get(gram, unseen) for gram, count in _ngrams(text, n).items()
        }
        return weights, math.sqrt(sum(value * value for value in weights.values()))

    total = 0.0
    for candidate, rights in items:
        likeness = 0.0
        for n in range(1, MAX_N + 1):
            found, norm = vector(candidate, n)
            if not norm:
                continue
            for right in rights:
                wanted, wanted_norm = vector(right, n)
                if not wanted_norm:
                    continue
                shared = sum(
                    min(value, wanted[gram]) * wanted[gram]
                    for gram, value in found.items()
                    if gram in wanted
                )
                gap = len(candidate) - len(right)
                penalty = math.exp(-(gap**2) / (2 * CIDER_SIGMA**2))
                likeness += penalty * shared / (norm * wanted_norm)
        total += CIDER_SCALE * likeness / (MAX_N * len(rights))
    return total / len(items)


@dataclass(frozen=True, slots=True)
class Missing:
    """A metric that cannot be computed here.

    Attributes:
        reason: Why, and what would help, as a sentence.
    """

    reason: str


def meteor_missing() -> Missing | None:
    """Why METEOR cannot be computed here; None if what it needs is installed."""
    if _meteor_jar() is None:
        return Missing(
            "METEOR needs the package pycocoevalcap, which brings meteor-1.5.jar; install the "
            "extra meteor: pip install tessera-fl[meteor]"
        )
    if shutil.which("java") is None:
        return Missing("METEOR needs Java, and there is no java on the path; install a JRE")
    return None


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float | Missing:
    """METEOR 1.5 of a corpus, in [0, 1], by its authors' program.

    Source: Banerjee and Lavie, "METEOR: An Automatic Metric for MT Evaluation with Improved
    Correlation with Human Judgments", 2005; Denkowski and Lavie, "Meteor Universal: Language
    Specific Translation Evaluation for Any Target Language", 2014, with its parameters for English
    and its paraphrase tables. Other programs of that name have other parameters, and give other
    numbers: where this one is not to be had there is no METEOR.

    The program is a process with about 1 GB of tables that takes seconds to start. The first call
    starts it and later ones use it; `close_meteor` or the end of Python ends it.

    Args:
        candidates: A caption for each item; may be empty.
        references: Right captions of each item, at least one.

    Returns:
        The score, or why there is none.

    Raises:
        DataError: There is no item, numbers differ, or an item has no reference.
    """
    items = _items(candidates, references)
    global _kept
    with _KEEPING:
        if _kept is None and (missing := meteor_missing()):
            return missing
        # Kept again only once it has answered, since half an exchange would spoil the next one.
        process, _kept = _kept or _MeteorProcess(), None
        try:
            found = process.score(items)
        except (OSError, ValueError):
            return Missing(f"METEOR's program failed, perhaps for lack of memory: {process.end()}")
        except BaseException:
            process.end()
            raise
        _kept = process
        return found


def close_meteor() -> None:
    """End the process that `meteor` keeps, if there is one."""
    global _kept
    with _KEEPING:
        if _kept is not None:
            _kept.end()
            _kept = None


class _MeteorProcess:
    """METEOR's program, running until `end`."""

    def __init__(self) -> None:
        jar = _meteor_jar()
        assert jar is not None, "ask meteor_missing first"
        command = ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(jar)]
        self._process = subprocess.Popen(
            [*command, "-", "-", "-stdio", "-l", "en", "-norm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def score(self, items: Sequence[Item]) -> float:
        """The corpus's score.

        Each item is turned into counts, of words and matches; these are then summed and scored.

        Raises:
            OSError: The process has ended.
            ValueError: It answers with something else than numbers.
        """
        counts = []
        for candidate, rights in items:
            texts = [" ".join(text) for text in (*rights, candidate)]
            self._say(" ||| ".join(["SCORE", *texts]))
            line = self._hear()
            [float(value) for value in line.split()]  # a broken line would end the process
            counts.append(line)
        self._say(" ||| ".join(["EVAL", *counts]))
        for _ in items:
            float(self._hear())  # each item's own score comes before the corpus's
        return float(self._hear())

    def end(self) -> str:
        """End the process, wait until it is gone, and tell the last it said about itself."""
        self._process.kill()
        _, errors = self._process.communicate()
        return errors.strip().split("\n")[-1] or "it said nothing"

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise OSError("METEOR's program has ended")
        return line.strip()


_kept: _MeteorProcess | None = None
_KEEPING = threading.Lock()
atexit.register(close_meteor)


def _meteor_jar() -> Path | None:
    spec = importlib.util.find_spec("pycocoevalcap")
    folders = (spec.submodule_search_locations or []) if spec else []
    jars = (Path(folder) / "meteor" / "meteor-1.5.jar" for folder in folders)
    return next((jar for jar in jars if jar.is_file()), None)


def _items(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[Item]:
    """Tokens of each candidate and of its references."""
    if len(candidates) != len(references) or not len(candidates):
        raise DataError(
            f"{len(candidates)} captions and references of {len(references)}: there must be at "
            "least one item, with one caption each"
        )
    for item, rights in enumerate(references):
        if isinstance(rights, str) or not rights:
            raise DataError(
                f"item {item} has references {rights!r}: must be a list of at least one text"
            )
    return [
        (words(candidate), tuple(words(right) for right in rights))
        for candidate, rights in zip(candidates, references, strict=True)
    ]


def _ngrams(text: Tokens, n: int) -> Counter[Ngram]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


def _common_length(one: Tokens, other: Tokens) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for j, against in enumerate(other, start=1):
            above = lengths[j]
            lengths[j] = diagonal + 1 if word == against else max(above, lengths[j - 1])
            diagonal = above
    return lengths[-1]
