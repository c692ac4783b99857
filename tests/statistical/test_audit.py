"""Audits at a claim that they can refute: what is broken is caught, what is right is not.

Every federation here claims epsilon 1 at delta 1e-5 and runs as any other does. What breaks it is
put in from outside: a source without noise, or a clip that lets everything through while the noise
stays that of the stated clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from opacus.optimizers.optimizer import _mark_as_processed
from scipy import stats

from experiments.canary_scores import PIXELS, score_canaries
from experiments.run import run
from pairing.configuration import parse_config
from privacy.audit import PROVES_NOTHING, Verdict, judge
from privacy.dp_optimizer import _NoisedOptimizer
from privacy.mechanism import GaussianSums
from privacy.noise import NoiseSource, SeededNoise, injected_noise
from server.preparation import prepare
from server.progress import PlainProgress
from server.transcript import Transcript
from tests.unit.privacy.noises import NoNoise

M, CONFIDENCE, CLAIM, DELTA = 200, 0.99, 1.0, 1e-5
"""So many canaries could show 3.2 at this confidence, once sizes of guesses are paid for."""

BASE: dict[str, object] = {
    "engine.kind": "in-process",
    "engine.device": "cpu",
    "model.width": 8,
    "partition.clients": 4,
    "partition.alpha": 100.0,
    "canaries.kind": "noise",
    "canaries.count": M,
    "privacy.epsilon": CLAIM,
    "privacy.delta": DELTA,
    "privacy.sampling-rate": 1.0,
}
DP_SGD = {
    "strategy": "fedavg",
    "rounds": 2,
    "privacy.mechanism": "dp-sgd",
    "privacy.steps": 1,
    "privacy.clip": 0.1,
}
FEDDM = {"strategy": "feddm", "rounds": 1, "feddm.initialisation": "noise", "mosaic.epochs": 1}
FEATURE = FEDDM | {
    "privacy.mechanism": "feature",
    "privacy.steps": 1,
    "feddm.iterations": 100,
    "partition.clients": 8,
}
GRADIENT = FEDDM | {
    "privacy.mechanism": "gradient",
    "feddm.iterations": 1,
    "feddm.real-batch": 32,
    "partition.clients": 8,
}

Audited = Callable[..., Verdict]


@pytest.fixture
def audited(tmp_path: Path) -> Audited:
    """Run a federation with canaries and judge it by its transcript."""

    def audited(
        keys: dict[str, object],
        source: NoiseSource | None = None,
        confidence: float = CONFIDENCE,
        **more: object,
    ) -> Verdict:
        more = {key.replace("__", "."): value for key, value in more.items()}
        name = f"run-{len(list(tmp_path.iterdir()))}"
        config = parse_config({**BASE, **keys, **more, "runs": str(tmp_path), "name": name})
        with injected_noise(source) if source is not None else nullcontext():
            folder = run(config, PlainProgress(), keep_data=True)
        preparation = prepare(config)
        assert preparation.canaries is not None
        plan = preparation.privacy
        return judge(
            score_canaries(preparation, Transcript(folder / "transcript")),
            preparation.canaries.included,
            claim=plan.whole_run.value if plan else None,
            delta=config.privacy.delta,
            confidence=confidence,
        )

    return audited


def let_everything_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """An infinite clip, in both places where parts are clipped."""

    def accumulate(self: _NoisedOptimizer) -> None:
        for parameter in self.params:
            parameter.summed_grad = self._get_flat_grad_sample(parameter).sum(dim=0)
            _mark_as_processed(parameter.grad_sample)

    monkeypatch.setattr(_NoisedOptimizer, "clip_and_accumulate", accumulate)
    monkeypatch.setattr(GaussianSums, "clip_factors", lambda self, norms: torch.ones_like(norms))


def assert_refuted(verdict: Verdict) -> None:
    assert verdict.claim is not None and CLAIM - 0.01 < verdict.claim <= CLAIM
    assert verdict.num_canaries == M and verdict.confidence == CONFIDENCE
    assert verdict.outcome == "refuted", verdict.text
    assert verdict.claim < verdict.lower_bound <= verdict.most
    for told in ("refuted", "99%", f"{M} canaries", PROVES_NOTHING):
        assert told in verdict.text


@pytest.mark.parametrize("keys", [DP_SGD, FEATURE, GRADIENT], ids=["dp-sgd", "feature", "gradient"])
def test_noise_off_is_caught(audited: Audited, keys: dict[str, object]) -> None:
    assert_refuted(audited(keys, NoNoise()))


@pytest.mark.parametrize(
    ("keys", "clip"),
    [(DP_SGD, 0.1), (FEATURE, 0.1), (GRADIENT, 0.001)],
    ids=["dp-sgd", "feature", "gradient"],
)
def test_clip_off_is_caught(
    audited: Audited, monkeypatch: pytest.MonkeyPatch, keys: dict[str, object], clip: float
) -> None:
    """At clips well below the norms of what is clipped; at others the noise would hide it."""
    let_everything_through(monkeypatch)
    assert_refuted(audited(keys, privacy__clip=clip))


def test_noise_off_is_caught_among_samples_and_many_steps(audited: Audited) -> None:
    sampled = {"privacy.sampling-rate": 0.1, "privacy.steps": 20}
    assert_refuted(audited(DP_SGD | sampled, NoNoise()))


def test_feddm_from_real_images_is_shown_to_hide_nothing(audited: Audited) -> None:
    """Where a class sends as many images as it has, its real images go out as they are."""
    unnoised = {
        "strategy": "feddm",
        "rounds": 1,
        "feddm.iterations": 1,
        "mosaic.epochs": 1,
        "mosaic.images-per-class": 100,
        "canaries.count": 300,
        "privacy.epsilon": 0.0,
        "privacy.sampling-rate": 0.05,
    }
    verdict = audited(unnoised)
    assert verdict.outcome == "nothing claimed" and verdict.claim is None
    assert verdict.lower_bound > 3, verdict.text
    (by_pixels,) = (found for found in verdict.findings if found.score == PIXELS)
    assert by_pixels.correct == by_pixels.guesses.total


@pytest.mark.parametrize("keys", [DP_SGD, FEATURE, GRADIENT], ids=["dp-sgd", "feature", "gradient"])
def test_correct_mechanisms_are_flagged_no_more_often_than_allowed(
    audited: Audited, keys: dict[str, object]
) -> None:
    """At a confidence low enough that a few runs could show that they are flagged too often."""
    confidence, seeds = 0.8, 5
    small: dict[str, object] = {"canaries.count": 60, "rounds": 1}
    if keys is FEATURE:
        small["feddm.iterations"] = 20
    flagged = sum(
        audited(keys | small, None, confidence, canaries__coins=coins).outcome == "refuted"
        for coins in range(seeds)
    )
    test = stats.binomtest(flagged, seeds, 1 - confidence, alternative="greater")
    assert test.pvalue > 0.01, f"{flagged} of {seeds} flagged"


class _SameNoise(SeededNoise):
    """Begins anew with every sum: the same noise in every round, from every client."""

    def __init__(self) -> None:
        super().__init__(5)

    def normal(self, reference: torch.Tensor, std: float) -> torch.Tensor:
        return SeededNoise(5).normal(reference, std)


def noise_between_rounds(tmp_path: Path, source: NoiseSource | None) -> float:
    """Standard deviations of the difference of two rounds' updates, in units of independent noise.

    The steps are so small that both rounds release the same sum, but for their noise.
    """
    rate = 1e-6
    config = parse_config(
        {
            **BASE,
            **DP_SGD,
            "train.learning-rate": rate,
            "train.batch-size": 1,
            "privacy.clip": 1.0,
            "runs": str(tmp_path),
            "name": "run",
        }
    )
    with injected_noise(source) if source is not None else nullcontext():
        folder = run(config, PlainProgress(), keep_data=True)
    plan = prepare(config).privacy
    assert plan is not None
    changes = []
    for number in (1, 2):
        exchange = Transcript(folder / "transcript").read(number)
        reply = exchange.replies[0]
        change = [(reply[k].double() - exchange.sent[k].double()).flatten() for k in reply]
        changes.append(torch.cat(change) / rate)
    difference = changes[1] - changes[0]
    expected = math.sqrt(2) * plan.noise_multiplier * plan.clip
    return float(difference.square().mean().sqrt()) / expected


def test_the_same_noise_in_every_round_is_caught_by_their_difference(tmp_path: Path) -> None:
    d = 1_000  # fewer than there are parameters: a wider band than the chi-square's of them all
    low, high = (stats.chi2.ppf(p, d) / d for p in (1e-8, 1 - 1e-8))  # 0.77 and 1.27
    assert low < noise_between_rounds(tmp_path / "right", None) ** 2 < high
    assert noise_between_rounds(tmp_path / "same", _SameNoise()) ** 2 < low / 10
