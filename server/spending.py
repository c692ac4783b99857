"""What a run has cost its clients so far, read from their ledgers and from nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privacy.accounting import AccountantName
from privacy.ledger import Charge, Spent, read_ledgers, spent_each

NO_LEDGER = "refused: a charge is missing in a client's ledger"


@dataclass(frozen=True, slots=True)
class Spending:
    """What a private run has cost.

    Attributes:
        clients: By partition id, what the run has cost each client that it charged.
        this_round: What the last round alone has cost the client that it cost most; None where it
            charged none.
        total: The largest of `clients`.
        all_runs: The largest epsilon of a client over all runs that its ledger knows; None where it
            is refused, or no client was charged.
    """

    clients: Mapping[int, Spent]
    this_round: float | None
    total: Spent
    all_runs: float | None

    def to_json(self) -> dict[str, Any]:
        """For ``privacy.json``."""
        return {
            "epsilon": self.total.epsilon,
            "accountant": self.total.accountant,
            "note": self.total.note,
            "clients": {str(k): one.epsilon for k, one in sorted(self.clients.items())},
            "all_runs": self.all_runs,
        }

    def round_metrics(self) -> dict[str, float]:
        """For the record of a round: nothing that is refused."""
        told = {"epsilon": self.total.epsilon, "epsilon_round": self.this_round}
        return {name: value for name, value in told.items() if value is not None}


def read_spending(
    ledgers: Path,
    run: str,
    *,
    delta: float,
    accountant: AccountantName,
    round: int,
    counted: Iterable[tuple[int, int]],
) -> Spending:
    """Compose every ledger that a run has charged.

    Args:
        ledgers: Folder of ledgers.
        run: What they call it.
        delta: Of every epsilon.
        accountant: By which it is computed; RDP for all where PRV cannot do one.
        round: The last round.
        counted: Clients and rounds whose replies were counted; each must have been charged.

    Raises:
        RecordError: A ledger is damaged.
    """
    found = read_ledgers(ledgers, run)
    own = {k: [c for file in files for c in file if c.run == run] for k, files in found.items()}
    whole = spent_each(list(own.values()), delta, accountant)
    clients = dict(zip(own, whole, strict=True))
    files = [file for charged in found.values() for file in charged]
    everything = spent_each(files, delta, accountant)
    last = spent_each([_of_round(c, round) for c in own.values()], delta, accountant)
    charged = {(k, charge.round) for k, charges in own.items() for charge in charges}
    total = _largest(whole, accountant)
    if total.epsilon is not None and (missing := sorted({*counted} - charged)):
        client, number = missing[0]
        note = f"{NO_LEDGER} (partition {client}, round {number})"
        total = Spent(None, accountant, note)
    return Spending(
        clients, _largest(last, accountant).epsilon, total, _largest(everything, accountant).epsilon
    )


def _of_round(charges: Sequence[Charge], round: int) -> list[Charge]:
    return [charge for charge in charges if charge.round == round]


def _largest(figures: Sequence[Spent], accountant: AccountantName) -> Spent:
    """The client that it costs most; refused where one is."""
    refused = [one for one in figures if one.epsilon is None]
    if refused:
        return refused[0]
    known = [(one.epsilon or 0.0, one) for one in figures]
    return max(known, key=lambda pair: pair[0])[1] if known else Spent(0.0, accountant)
