"""What an attack on a run shows of its privacy: bounds from guesses, and membership inference.

Two attacks, and only their arithmetic:

one-run audit
    T. Steinke, M. Nasr, M. Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023,
    arXiv:2305.08846. Canaries are included by fair coins, somebody who knows the rest of the data
    guesses which were, and too many right guesses refute an epsilon.
LiRA
    N. Carlini, S. Chien, M. Nasr, S. Song, A. Terzis, F. Tramer, "Membership Inference Attacks From
    First Principles", S&P 2022, arXiv:2112.03570. How confident networks are of an example that
    were trained with it, and without it, tells which of the two a network was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

Scores = npt.NDArray[np.float64]
Bits = npt.NDArray[np.bool_]
Outcome = Literal[
    "refuted", "not refuted", "could not be refuted by so few canaries", "nothing claimed"
]

TOO_FEW: Final = "could not be refuted by so few canaries"
"""Outcome where even all guesses right would not have refuted the claim."""

PROVES_NOTHING = "Not refuting a claim proves nothing: a stronger attack may refute it."

OUTSIDE = (
    "RUN/audit and RUN/audit.json are made of un-noised looks at the clients' data: they are "
    "outside the guarantee, and no ledger of the run's is charged for them."
)
"""Of an audit's own files."""

LARGEST_EPSILON = 100.0
"""Bounds are not looked for beyond it; no number of canaries shows as much."""

FALSE_POSITIVE_RATES = (0.001, 0.01)
"""At which LiRA's true positives are told."""

FEW_SHADOW_RUNS = 64
"""Below, variances are those of all examples together, as the paper advises."""


@dataclass(frozen=True, slots=True)
class Guesses:
    """How many canaries are guessed, fixed before anybody looks at the scores' coins.

    Attributes:
        included: The highest scores, guessed to be included (k+).
        left_out: The lowest scores, guessed to be left out (k-).
    """

    included: int
    left_out: int

    @property
    def total(self) -> int:
        """Guesses in all (r); on the other canaries none is made."""
        return self.included + self.left_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one score of the canaries shows.

    Attributes:
        score: What was computed of each canary.
        guesses: Those that gave the largest bound.
        correct: How many of them were right.
        lower_bound: Epsilon is at least this, at `confidence`.
        confidence: Of this finding alone, after the split among scores and sizes tried.
    """

    score: str
    guesses: Guesses
    correct: int
    lower_bound: float
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an audit says of a claim.

    Attributes:
        claim: Epsilon that is claimed; None where nothing is.
        refused: Why a run with noise claims nothing; else empty.
        delta: At this delta.
        num_canaries: m.
        num_included: How many the coins included.
        confidence: Of the verdict.
        findings: One per score; the confidence is split among them.
        most: The largest bound that could have come out, with all guesses right.
    """

    claim: float | None
    refused: str
    delta: float
    num_canaries: int
    num_included: int
    confidence: float
    findings: tuple[Finding, ...]
    most: float

    @property
    def best(self) -> Finding:
        """The finding with the largest bound."""
        return max(self.findings, key=lambda finding: finding.lower_bound)

    @property
    def lower_bound(self) -> float:
        """Epsilon is at least this, at `confidence`."""
        return self.best.lower_bound

    @property
    def outcome(self) -> Outcome:
        """In a few words."""
        if self.claim is None:
            return "nothing claimed"
        if self.lower_bound > self.claim:
            return "refuted"
        return "not refuted" if self.most > self.claim else TOO_FEW

    @property
    def text(self) -> str:
        """In plain words, with all that it rests on."""
        found, percent = self.best, f"{100 * self.confidence:g}%"
        claim = f"Nothing is claimed: {self.refused}." if self.refused else "No epsilon is claimed."
        if self.claim is not None:
            claim = f"Claim: epsilon {self.claim:.4g} at delta {self.delta:g}: {self.outcome}."
        scores = "1 score" if len(self.findings) == 1 else f"{len(self.findings)} scores"
        sizes = len(sizes_to_try(self.num_canaries))
        return (
            f"{claim} With {percent} confidence epsilon is at least {self.lower_bound:.3g} at "
            f"delta {self.delta:g}: of {self.num_canaries} canaries, {self.num_included} of them "
            f"included, {found.guesses.total} were guessed by their {found.score} and "
            f"{found.correct} guesses were right. The confidence is split among {scores} and "
            f"{sizes} numbers of guesses; with every guess right the bound would have been "
            f"{self.most:.3g}. {PROVES_NOTHING} {OUTSIDE}"
        )


def p_value(num_canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Largest probability of so many right guesses under (epsilon, delta)-DP.

    Theorem 5.2 of the paper: beta + 2 m delta alpha, with W ~ Binomial(r, e^epsilon / (1 +
    e^epsilon)), beta = P[W >= v] and alpha = max over i >= 1 of P[v > W >= v - i] / i.

    Args:
        num_canaries: m, each included by a fair coin of its own.
        guesses: r, of at most m.
        correct: v, of at most r.
        epsilon: At least 0.
        delta: In [0, 1].

    >>> p_value(3, 3, 3, 0.0, 0.0)
    0.125
    """
    assert 0 <= correct <= guesses <= num_canaries and epsilon >= 0 and 0 <= delta <= 1
    right = 1 / (1 + math.exp(-epsilon))
    beta = float(stats.binom.sf(correct - 1, guesses, right))
    alpha = 0.0
    if delta and correct:
        below = stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, right)
        alpha = float((np.cumsum(below) / np.arange(1, correct + 1)).max())
    return min(1.0, beta + 2 * num_canaries * delta * alpha)


def epsilon_lower_bound(
    num_canaries: int, guesses: int, correct: int, delta: float, confidence: float
) -> float:
    """The largest epsilon that so many right guesses refute at `confidence`; 0 if none.

    By bisection, from below.
    """
    error = 1 - confidence

    def refuted(epsilon: float) -> bool:
        return p_value(num_canaries, guesses, correct, epsilon, delta) <= error

    low, high = 0.0, LARGEST_EPSILON
    if not refuted(low):
        return 0.0
    if refuted(high):
        return high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def most_that_canaries_show(
    num_canaries: int, delta: float, confidence: float, num_scores: int = 1
) -> float:
    """The largest bound that `judge` can come to: with every guess right.

    >>> round(most_that_canaries_show(256, 1e-5, 0.99), 1)
    3.5
    """
    each = _confidence_of_each(num_canaries, confidence, num_scores)
    return max(
        epsilon_lower_bound(num_canaries, size.total, size.total, delta, each)
        for size in sizes_to_try(num_canaries)
    )


def _confidence_of_each(num_canaries: int, confidence: float, num_scores: int) -> float:
    """Of each trial of a score with a size of guesses: their errors add up to the whole's."""
    return 1 - (1 - confidence) / (num_scores * len(sizes_to_try(num_canaries)))


def sizes_to_try(num_canaries: int) -> tuple[Guesses, ...]:
    """The sets of guesses that an audit corrects for: a function of m alone.

    The same number at both ends, 7/8, a half and a quarter of the canaries in all: coins seldom
    include just half of them. And, for releases that can show a canary and cannot show that there
    is none, 7/16 and a quarter of them guessed to be included.
    """
    both = {Guesses(share * num_canaries // 16, share * num_canaries // 16) for share in (7, 4, 2)}
    one = {Guesses(share * num_canaries // 16, 0) for share in (7, 4)}
    return tuple(sorted(both | one, key=lambda g: (-g.total, -g.included)))


def judge(
    scores: Mapping[str, Scores],
    included: Bits,
    *,
    claim: float | None,
    delta: float,
    confidence: float,
    refused: str = "",
) -> Verdict:
    """Guess the canaries with the highest scores in and those with the lowest out, and bound.

    Every score is tried with every size of `sizes_to_try`, and each of these trials has an equal
    part of the error that `confidence` leaves, so that the best of them may be taken.

    Args:
        scores: By name, shape (m,): higher where a canary is likelier to be included. Computed
            without a look at `included`.
        included: Shape (m,).
        claim: Epsilon; None where nothing is claimed.
        delta: Of the claim.
        confidence: In (0, 1), of the whole verdict.
        refused: Why a run with noise claims nothing; else empty.
    """
    num_canaries = len(included)
    sizes = sizes_to_try(num_canaries)
    trial_confidence = _confidence_of_each(num_canaries, confidence, len(scores))
    findings = tuple(
        max(
            (_finding(name, values, included, size, delta, trial_confidence) for size in sizes),
            key=lambda finding: finding.lower_bound,
        )
        for name, values in scores.items()
    )
    return Verdict(
        claim=claim,
        refused=refused,
        delta=delta,
        num_canaries=num_canaries,
        num_included=int(included.sum()),
        confidence=confidence,
        findings=findings,
        most=most_that_canaries_show(num_canaries, delta, confidence, len(scores)),
    )


def _finding(
    name: str, values: Scores, included: Bits, size: Guesses, delta: float, confidence: float
) -> Finding:
    order = np.argsort(-values, kind="stable")
    top, bottom = order[: size.included], order[len(order) - size.left_out :]
    correct = int(included[top].sum() + (~included[bottom]).sum())
    bound = epsilon_lower_bound(len(included), size.total, correct, delta, confidence)
    return Finding(
        score=name, guesses=size, correct=correct, lower_bound=bound, confidence=confidence
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TruePositives:
    """Share of members recognised at a false positive rate.

    Attributes:
        false_positive_rate: At most this share of the others is taken for members.
        rate: Of the members.
        interval: Clopper-Pearson's, as if all pairs were independent and the threshold were not
            chosen on the same scores; so it is too narrow.
        confidence: Of the interval.
        resolved: Whether there are others enough: fewer than one over the rate allow no false
            positive at all.
    """

    false_positive_rate: float
    rate: float
    interval: tuple[float, float]
    confidence: float
    resolved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipInference:
    """What LiRA recognises by the final model alone.

    Attributes:
        num_runs: N.
        num_members: Pairs of a run and an example that it was trained with.
        num_others: Pairs of a run and an example that it was trained without.
        auc: Area under the ROC curve; 0.5 is chance.
        at: For each of `FALSE_POSITIVE_RATES`.
    """

    num_runs: int
    num_members: int
    num_others: int
    auc: float
    at: tuple[TruePositives, ...]

    @property
    def text(self) -> str:
        """In plain words."""
        rates = "; ".join(
            f"{one.rate:.2%} of the members at a false positive rate of "
            f"{one.false_positive_rate:.1%} ({one.interval[0]:.2%} to {one.interval[1]:.2%})"
            + ("" if one.resolved else ", which so few non-members do not resolve")
            for one in self.at
        )
        return (
            f"LiRA with {self.num_runs} runs, which attacks the final model alone, recognises "
            f"{rates}; AUC {self.auc:.3f} ({self.num_members} members, {self.num_others} others). "
            f"The intervals are at {100 * self.at[0].confidence:g}% confidence as if all pairs of "
            "a run and an example were independent, with the threshold chosen on the same scores: "
            "they are too narrow."
        )


def logit_scaled(confidences: Scores) -> Scores:
    """ln(p / (1 - p)) of the probability given to the true label, kept finite."""
    least = np.finfo(np.float32).tiny
    right = np.clip(confidences, least, None)
    wrong = np.clip(1 - confidences, least, None)
    return np.asarray(np.log(right) - np.log(wrong), dtype=np.float64)


def lira_scores(statistics: Scores, included: Bits) -> Scores:
    """Log-likelihood ratio of being a member, each run attacked by all the others.

    Args:
        statistics: `logit_scaled` confidences, shape (N, T): of T examples in N runs.
        included: Which run was trained with which, shape (N, T).

    Returns:
        Shape (N, T); NaN where no other run was trained with the example, or none without it.
    """
    num_runs = len(statistics)
    scores = np.full(statistics.shape, np.nan)
    for run in range(num_runs):
        others = np.arange(num_runs) != run
        seen, members = statistics[others], included[others]
        likelihoods = []
        for chosen in (members, ~members):
            count = chosen.sum(axis=0)
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = (seen * chosen).sum(axis=0) / count
                squares = np.where(chosen, (seen - mean) ** 2, 0.0).sum(axis=0)
                if num_runs < FEW_SHADOW_RUNS:
                    free = np.clip(count - 1, 0, None).sum()
                    variance = np.full(len(mean), squares[count > 0].sum() / max(free, 1))
                else:
                    variance = squares / np.clip(count - 1, 1, None)
                std = np.sqrt(np.maximum(variance, 1e-12))
                likelihoods.append(stats.norm.logpdf(statistics[run], mean, std))
        scores[run] = likelihoods[0] - likelihoods[1]
    return scores


def membership(
    scores: Scores, members: Bits, num_runs: int, confidence: float
) -> MembershipInference:
    """ROC of scores, shape (n,), higher for members; those that are NaN are left out."""
    known = ~np.isnan(scores)
    positive, negative = scores[known & members], scores[known & ~members]
    assert len(positive) and len(negative), "an ROC needs members and others"
    return MembershipInference(
        num_runs=num_runs,
        num_members=len(positive),
        num_others=len(negative),
        auc=float(stats.mannwhitneyu(positive, negative).statistic)
        / (len(positive) * len(negative)),
        at=tuple(
            true_positives(positive, negative, rate, confidence) for rate in FALSE_POSITIVE_RATES
        ),
    )


def true_positives(
    positive: Scores, negative: Scores, false_positive_rate: float, confidence: float
) -> TruePositives:
    """Members above the lowest threshold that no more than this share of the others exceeds."""
    allowed = math.floor(false_positive_rate * len(negative))
    ordered = np.sort(negative)[::-1]
    above = int((positive > ordered[allowed]).sum()) if allowed < len(ordered) else len(positive)
    return TruePositives(
        false_positive_rate=false_positive_rate,
        rate=above / len(positive),
        interval=clopper_pearson(above, len(positive), confidence),
        confidence=confidence,
        resolved=len(negative) * false_positive_rate >= 1,
    )


def clopper_pearson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """The exact interval of a binomial share.

    >>> clopper_pearson(0, 10, 0.95)[0]
    0.0
    """
    tail = (1 - confidence) / 2
    low = stats.beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    high = (
        stats.beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    )
    return float(low), float(high)
