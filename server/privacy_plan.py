"""What a private run will cost, told before it starts: its noise, its steps, its epsilon."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from core.config import RunConfig
from core.errors import ConfigError, Problem
from privacy.accounting import (
    AccountantName,
    Epsilon,
    Segment,
    calibrate,
    choose_accountant,
    epsilon,
)
from privacy.plan import PrivacyPlan
from server.cohort import draw_cohort
from strategies.private import noised_steps


def plan_privacy(config: RunConfig, order: Sequence[int]) -> PrivacyPlan | None:
    """What a run will cost that nothing cuts off; None for one that is not private.

    Args:
        config: The run.
        order: All clients.

    Raises:
        ConfigError: The noise that is given exceeds the budget, or no noise keeps it.
    """
    privacy = config.privacy
    if not privacy.is_private:
        return None
    steps = noised_steps(config)
    rate = privacy.sampling_rate if privacy.is_example_level else 1.0
    rounds = most_rounds(config, order)
    wanted: AccountantName = privacy.accountant  # type: ignore[assignment]
    calibrated = not privacy.noise_multiplier
    sigma = privacy.noise_multiplier
    if calibrated:
        found = calibrate(
            privacy.epsilon,
            delta=privacy.delta,
            sampling_rate=rate,
            steps=steps * rounds,
            accountant=wanted,
        )
        sigma, accountant = found.noise_multiplier, found.epsilon.accountant
    else:
        whole = [Segment(sigma, rate, steps * rounds)]
        accountant = choose_accountant(whole, privacy.delta, wanted)

    def cost(num_rounds: int, by: AccountantName) -> Epsilon:
        return epsilon([Segment(sigma, rate, steps * num_rounds)], privacy.delta, by)

    whole_run = cost(rounds, accountant)
    if not math.isfinite(whole_run.value):
        rule = f"is so little noise that {rounds} rounds of {steps} steps have no finite epsilon"
        raise ConfigError([Problem("privacy.noise-multiplier", f"{sigma:g}", f"{rule}; raise it")])
    if privacy.epsilon and whole_run.value > privacy.epsilon:
        rule = (
            f"is exceeded by privacy.noise-multiplier={sigma:g}: {rounds} rounds of {steps} steps "
            f"at sampling rate {rate:g} cost epsilon {whole_run.value:.4g}; leave one of the two "
            "out, or lower rounds"
        )
        raise ConfigError([Problem("privacy.epsilon", f"{privacy.epsilon:g}", rule)])
    return PrivacyPlan(
        unit="example" if privacy.is_example_level else "client",
        mechanism=privacy.mechanism,
        noise_multiplier=sigma,
        calibrated=calibrated,
        clip=privacy.clip,
        sampling_rate=rate,
        steps=steps,
        rounds=rounds,
        delta=privacy.delta,
        accountant=accountant,
        per_round=cost(1, accountant),
        whole_run=whole_run,
        rdp_per_round=cost(1, "rdp").value,
        rdp_whole_run=cost(rounds, "rdp").value,
    )


def most_rounds(config: RunConfig, order: Sequence[int]) -> int:
    """Rounds that the client asked most often is asked in: a pure function of the seed."""
    if not 0 < config.cohort.size < len(order):
        return config.rounds
    asked = Counter(
        k
        for number in range(1, config.rounds + 1)
        for k in draw_cohort(config, order, number).asked
    )
    return max(asked.values())
