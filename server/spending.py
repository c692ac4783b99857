"""What a run has cost its clients so far, read from their ledgers and from nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.config import RunConfig
from core.records import RunFolder
from privacy.accounting import AccountantName
from privacy.ledger import Charge, Spent, ledger_folder, ledger_run, read_ledgers, spent
from privacy.plan import PrivacyPlan

NO_LEDGER = "refused: a client's ledger is missing"


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
    config: RunConfig, folder: RunFolder, plan: PrivacyPlan, round: int, counted: Sequence[int]
) -> Spending:
    """Compose every ledger that the run has charged.

    Args:
        config: The run.
        folder: Its folder.
        plan: Names delta and accountant.
        round: The last round.
        counted: Clients whose replies were counted in any round; each must have a ledger.

    Raises:
        RecordError: A ledger is damaged.
    """
    run, accountant = ledger_run(config, folder), plan.accountant
    ledgers = read_ledgers(ledger_folder(config, folder), run)
    own = {k: [c for file in files for c in file if c.run == run] for k, files in ledgers.items()}
    clients = {k: spent(charges, plan.delta, accountant) for k, charges in own.items()}
    everything = [
        spent(file, plan.delta, accountant) for files in ledgers.values() for file in files
    ]
    last = [spent(_of_round(charges, round), plan.delta, accountant) for charges in own.values()]
    missing = sorted({*counted} - {*clients})
    total = _largest(list(clients.values()), accountant)
    if missing:
        total = Spent(None, accountant, f"{NO_LEDGER} (partition {missing[0]})")
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
