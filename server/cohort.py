"""Who is asked in a round, and what is drawn to happen to each: a pure function of the seed.

Simulated failures cost no computing. A client that drops out or comes too late is sent the model,
so that its bytes count, and is not run: nothing that it would do could be seen, because a reply
that is not counted leaves a client's state as it was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from core.config import RunConfig
from core.records import ReplyOutcome
from core.seeds import derive_seed, numpy_generator


@dataclass(frozen=True, slots=True)
class Cohort:
    """One round's clients, by partition id.

    Attributes:
        asked: All who are sent the request but for those barred, in the order in which work is
            handed out and replies are folded.
        arrivals: Those whose replies come in time, in the order in which they would arrive.
        lost: The others: what becomes of them, and why.
        num_wanted: Replies after which the round closes.
        barred: Those who may not be asked after all, and why.
    """

    asked: tuple[int, ...]
    arrivals: tuple[int, ...]
    lost: Mapping[int, tuple[ReplyOutcome, str]]
    num_wanted: int
    barred: Mapping[int, str] = field(default_factory=dict)

    def without(self, barred: Mapping[int, str]) -> Cohort:
        """The round in which these are not asked; nobody takes their places."""
        return dataclasses.replace(
            self,
            arrivals=tuple(k for k in self.arrivals if k not in barred),
            lost={k: fate for k, fate in self.lost.items() if k not in barred},
            barred=barred,
        )


def draw_cohort(config: RunConfig, order: Sequence[int], round: int) -> Cohort:
    """Draw a round.

    Clients are drawn uniformly without replacement. What happens to a client is drawn from its own
    seed, whoever else is asked.

    Args:
        config: The sections `cohort` and `faults`.
        order: All clients, in the order in which work is handed out.
        round: From 1.
    """
    wanted = config.cohort.size or len(order)
    num_asked = min(len(order), math.ceil(wanted * (1 + config.cohort.over_sampling)))
    drawn = set(order)
    if num_asked < len(order):
        generator = numpy_generator(derive_seed(config.seed, "cohort", round))
        drawn = set(generator.choice(sorted(order), size=num_asked, replace=False).tolist())
    asked = tuple(k for k in order if k in drawn)
    lost: dict[int, tuple[ReplyOutcome, str]] = {}
    arrival: dict[int, tuple[float, float]] = {}
    faults = config.faults
    for k in asked:
        generator = numpy_generator(derive_seed(config.seed, "faults", round, k))
        drops, straggles, tie = generator.random(3)
        delay_s = float(generator.exponential(faults.straggler_delay_s))
        if straggles >= faults.straggler_rate:
            delay_s = 0.0
        if drops < faults.dropout_rate:
            rule = f"dropped out (faults.dropout-rate={faults.dropout_rate:g})"
            lost[k] = ("dropped", rule)
        elif 0 < faults.deadline_s < delay_s:
            rule = f"simulated delay of {delay_s:.1f} s, after the deadline of "
            lost[k] = ("late", f"{rule}{faults.deadline_s:g} s (faults.deadline-s)")
        else:
            arrival[k] = (delay_s, tie)
    arrivals = tuple(sorted(arrival, key=lambda k: arrival[k]))
    return Cohort(asked, arrivals, lost, min(wanted, len(asked)))
