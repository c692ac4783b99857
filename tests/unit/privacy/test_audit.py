"""Bounds from guesses and LiRA, against hand-computed cases, closed forms and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from privacy.audit import (
    OUTSIDE,
    TOO_FEW,
    Guesses,
    clopper_pearson,
    epsilon_lower_bound,
    judge,
    lira_scores,
    logit_scaled,
    membership,
    most_that_canaries_show,
    p_value,
    sizes_to_try,
    true_positives,
)


def test_p_values_by_hand() -> None:
    # Three fair coins, all guessed: one in eight.
    assert p_value(3, 3, 3, 0.0, 0.0) == pytest.approx(1 / 8)
    # e^epsilon = 3: a guess is right with probability 3/4; at least one of two.
    assert p_value(9, 2, 1, math.log(3), 0.0) == pytest.approx(15 / 16)
    # Fair coins, two of two: beta = 1/4; P[2 > W >= 1] / 1 = 1/2, P[2 > W >= 0] / 2 = 3/8.
    assert p_value(5, 2, 2, 0.0, 0.01) == pytest.approx(1 / 4 + 2 * 5 * 0.01 / 2)
    # No guess, or none that must be right, is no evidence.
    assert p_value(5, 0, 0, 0.0, 0.0) == 1.0
    assert p_value(5, 4, 0, 0.0, 0.5) == 1.0


def test_p_value_against_enumeration() -> None:
    """beta and alpha from all outcomes of r coins that fall right with probability 2/3."""
    m, r, v, delta, right = 10, 6, 5, 0.003, 2 / 3
    probability = [math.comb(r, k) * right**k * (1 - right) ** (r - k) for k in range(r + 1)]
    beta = sum(probability[v:])
    alpha = max(sum(probability[max(0, v - i) : v]) / i for i in range(1, m + 1))
    expected = beta + 2 * m * delta * alpha
    assert p_value(m, r, v, math.log(2), delta) == pytest.approx(expected)


@pytest.mark.parametrize("m", [20, 100, 1000])
@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_perfect_guesses_give_the_closed_form(m: int, confidence: float) -> None:
    right = (1 - confidence) ** (1 / m)
    expected = math.log(right / (1 - right))
    assert epsilon_lower_bound(m, m, m, 0.0, confidence) == pytest.approx(expected, abs=1e-6)
    if confidence == 0.95:
        assert expected == pytest.approx(math.log(m / 3), abs=0.1)


def test_the_bound_is_where_the_p_value_crosses() -> None:
    bound = epsilon_lower_bound(200, 100, 90, 1e-5, 0.99)
    assert p_value(200, 100, 90, bound, 1e-5) <= 0.01 < p_value(200, 100, 90, bound + 1e-3, 1e-5)
    assert epsilon_lower_bound(200, 100, 55, 1e-5, 0.99) == 0.0


def test_delta_and_more_guesses_wrong_lower_the_bound() -> None:
    bounds = [epsilon_lower_bound(200, 100, 95, delta, 0.99) for delta in (0.0, 1e-5, 1e-4)]
    assert bounds == sorted(bounds, reverse=True) and bounds[0] > bounds[-1]
    bounds = [epsilon_lower_bound(200, 100, v, 1e-5, 0.99) for v in (80, 90, 100)]
    assert bounds[0] < bounds[1] < bounds[2]


@pytest.mark.parametrize("epsilon", [0.5, 1.5])
def test_randomised_response_is_refuted_no_more_often_than_allowed(epsilon: float) -> None:
    """Its epsilon is exact: each bit is told rightly with probability e^eps / (1 + e^eps)."""
    generator, confidence, repetitions = np.random.default_rng(1), 0.9, 400
    right = 1 / (1 + math.exp(-epsilon))
    correct = generator.binomial(300, right, repetitions)
    bounds = np.array([epsilon_lower_bound(300, 300, int(v), 0.0, confidence) for v in correct])
    exceeded = int((bounds > epsilon).sum())
    allowed = stats.binomtest(exceeded, repetitions, 1 - confidence, alternative="greater")
    assert allowed.pvalue > 0.001
    assert bounds.mean() > 0.6 * epsilon  # and it is no empty bound
    assert exceeded > 0


def test_a_choice_of_scores_and_sizes_is_paid_for() -> None:
    """The best of two scores without any signal, at epsilon 0, over many draws of the coins."""
    generator, repetitions, confidence = np.random.default_rng(2), 120, 0.9
    flagged = 0
    for _ in range(repetitions):
        included = generator.random(60) < 0.5
        scores = {"a": generator.normal(size=60), "b": generator.normal(size=60)}
        verdict = judge(scores, included, claim=0.0, delta=0.0, confidence=confidence)
        flagged += verdict.outcome == "refuted"
    allowed = stats.binomtest(flagged, repetitions, 1 - confidence, alternative="greater")
    assert allowed.pvalue > 0.001


def test_sizes_depend_on_the_number_alone_and_hold_no_more_than_there_are() -> None:
    assert {Guesses(7, 7), Guesses(4, 0)} <= set(sizes_to_try(16))
    for m in (1, 2, 7, 200):
        assert all(0 <= size.total <= m for size in sizes_to_try(m))


def test_a_verdict_tells_all_that_it_rests_on() -> None:
    included = np.arange(200) % 2 == 0
    told = {"their loss": included.astype(float)}
    refuted = judge(told, included, claim=1.0, delta=1e-5, confidence=0.99)
    assert refuted.outcome == "refuted" and refuted.lower_bound == refuted.most > 3
    assert refuted.best.correct == refuted.best.guesses.total == 174
    for part in ("epsilon 1", "delta 1e-05", "refuted", "99%", "200 canaries", "100 of them"):
        assert part in refuted.text
    assert "proves nothing" in refuted.text
    nothing = judge(told, included, claim=None, delta=1e-5, confidence=0.99)
    assert nothing.outcome == "nothing claimed" and "No epsilon is claimed" in nothing.text
    blind = {"nothing": np.zeros(200)}
    kept = judge(blind, included, claim=1.0, delta=1e-5, confidence=0.99)
    assert kept.outcome == "not refuted" and "not refuted" in kept.text


@pytest.mark.parametrize("scores", [1, 2])
def test_a_claim_that_no_guesses_could_refute_is_told_from_one_that_stood(scores: int) -> None:
    included = np.arange(40) % 2 == 0
    told = {f"score {i}": included.astype(float) for i in range(scores)}
    most = most_that_canaries_show(40, 1e-5, 0.99, scores)

    def outcome(claim: float, by: dict[str, np.ndarray]) -> str:
        verdict = judge(by, included, claim=claim, delta=1e-5, confidence=0.99)
        assert verdict.most == most and verdict.outcome in verdict.text
        return verdict.outcome

    assert outcome(most - 1e-3, told) == "refuted"
    assert outcome(most, told) == outcome(most + 1, told) == TOO_FEW
    assert outcome(most - 1e-3, {name: np.zeros(40) for name in told}) == "not refuted"


def test_a_refused_epsilon_is_no_claim_and_audits_are_told_to_be_outside_of_it() -> None:
    included = np.arange(40) % 2 == 0
    verdict = judge(
        {"loss": np.zeros(40)}, included, claim=None, delta=1e-5, confidence=0.99, refused="seeded"
    )
    assert verdict.outcome == "nothing claimed"
    assert verdict.text.startswith("Nothing is claimed: seeded.") and verdict.text.endswith(OUTSIDE)


def test_signs_of_inclusion_alone_are_enough() -> None:
    """What is found is surely in; of what is not found nothing is known."""
    generator = np.random.default_rng(3)
    included = generator.random(400) < 0.5
    found = included & (generator.random(400) < 0.6)
    scores = {"found": np.where(found, 1.0, generator.random(400) / 2)}
    verdict = judge(scores, included, claim=1.0, delta=1e-5, confidence=0.99)
    assert verdict.best.guesses.left_out == 0 and verdict.lower_bound > 2


def test_lira_on_gaussians_of_a_known_roc() -> None:
    """Members shifted by one standard deviation: AUC is Phi(1 / sqrt 2), TPR Phi(1 - z)."""
    generator = np.random.default_rng(0)
    members = generator.random((64, 400)) < 0.5
    offsets = 5 * generator.normal(size=400)
    statistics = offsets + members + generator.normal(size=members.shape)
    scores = lira_scores(statistics, members)
    found = membership(scores.ravel(), members.ravel(), 64, 0.95)
    assert found.num_members + found.num_others == members.size
    for told in ("the final model alone", "at 95% confidence", "too narrow"):
        assert told in found.text
    assert found.auc == pytest.approx(stats.norm.cdf(1 / math.sqrt(2)), abs=0.02)
    for one in found.at:
        expected = stats.norm.sf(stats.norm.isf(one.false_positive_rate) - 1)
        assert one.resolved
        assert one.rate == pytest.approx(expected, rel=0.35)
        assert one.interval[0] < one.rate < one.interval[1]
    few = lira_scores(statistics[:16], members[:16])  # with variances of all examples together
    assert membership(few.ravel(), members[:16].ravel(), 16, 0.95).auc == pytest.approx(
        found.auc, abs=0.03
    )


def test_lira_finds_nothing_where_there_is_nothing() -> None:
    generator = np.random.default_rng(1)
    members = generator.random((16, 200)) < 0.5
    scores = lira_scores(generator.normal(size=members.shape), members)
    found = membership(scores.ravel(), members.ravel(), 16, 0.99)
    assert found.auc == pytest.approx(0.5, abs=0.03)
    assert found.at[1].rate < 0.025


def test_an_example_that_the_others_never_left_out_has_no_score() -> None:
    members = np.array([[True, False], [True, True], [True, False]])
    scores = lira_scores(np.zeros((3, 2)), members)
    assert np.isnan(scores[:, 0]).all()
    assert np.isnan(scores[1, 1]) and not np.isnan(scores[0, 1])


def test_too_few_others_are_said_to_resolve_nothing() -> None:
    positive, negative = np.array([3.0, 1.0]), np.array([2.0, 0.0])
    found = true_positives(positive, negative, 0.01, 0.95)
    assert not found.resolved and found.rate == 0.5  # above all others
    many = true_positives(positive, np.linspace(0, 2, 100), 0.01, 0.95)
    assert many.resolved and many.rate == 0.5


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10)])
def test_clopper_pearson_against_scipy(successes: int, trials: int) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(0.9, method="exact")
    assert clopper_pearson(successes, trials, 0.9) == pytest.approx((expected.low, expected.high))


def test_logits_stay_finite() -> None:
    found = logit_scaled(np.array([0.0, 0.5, 1.0]))
    assert np.isfinite(found).all() and found[1] == 0 and found[0] < -50 < 50 < found[2]
