"""A private run as its configuration makes it: the numbers that its promise is made of."""

from __future__ import annotations

from dataclasses import dataclass

from privacy.accounting import AccountantName, Epsilon, Segment
from privacy.ledger import Charge, Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPlan:
    """A private run as its configuration makes it, the same for every client.

    Attributes:
        unit: What is protected: one example, or one client with all it holds.
        mechanism: As in ``privacy.mechanism``.
        noise_multiplier: sigma, given or calibrated.
        calibrated: Whether it was made from the budget.
        clip: C.
        sampling_rate: q; 1 where every client of a round takes part.
        steps: Noised sums per round (T).
        rounds: Rounds that the client asked most often takes part in.
        delta: The delta of every epsilon.
        accountant: Which computes calibration, enforcement and report.
        per_round: Epsilon of one round.
        whole_run: Epsilon of all rounds.
        rdp_per_round: The same by RDP, for information.
        rdp_whole_run: Likewise.
    """

    unit: Unit
    mechanism: str
    noise_multiplier: float
    calibrated: bool
    clip: float
    sampling_rate: float
    steps: int
    rounds: int
    delta: float
    accountant: AccountantName
    per_round: Epsilon
    whole_run: Epsilon
    rdp_per_round: float
    rdp_whole_run: float

    @property
    def segment(self) -> Segment:
        """One round."""
        return Segment(self.noise_multiplier, self.sampling_rate, self.steps)

    def charge(self, run: str, round: int, *, system_noise: bool) -> Charge:
        """What `round` costs one client.

        Args:
            run: What ledgers call the run.
            round: From 1.
            system_noise: Whether noise comes from the operating system's generator.
        """
        return Charge(
            run=run,
            round=round,
            unit=self.unit,
            mechanism=self.mechanism,
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            steps=self.steps,
            system_noise=system_noise,
        )
