"""What a server notes of private runs whose clients keep their ledgers on machines of their own.

It cannot read those ledgers. So it writes down, before it asks, what each client that it asks may
have to pay, and tells a run's epsilon from that: never less than what was spent, and more where a
client failed before it noised anything. What earlier runs cost a client is in the client's own
ledger alone, which holds it to its budgets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from core.config import RunConfig
from core.records import RunFolder
from privacy.ledger import Ledger, ledger_folder, ledger_run
from privacy.noise import noise_source
from privacy.plan import PrivacyPlan
from server.nodes import Member


def owner_of_member(member: Member) -> str:
    """By what a client's ledger at the server is known: its key, else its partition alone."""
    return hashlib.sha256(f"{member.key}/{member.partition_id}".encode()).hexdigest()


class NotedCharges:
    """Writes one charge for every client asked.

    Args:
        config: The run.
        folder: Its folder; ledgers lie there, or where ``privacy.ledger`` says.
        plan: What a round costs.
        members: Whom the partitions belong to.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        plan: PrivacyPlan,
        members: Mapping[int, Member],
    ) -> None:
        self._ledgers = ledger_folder(config, folder)
        self._run = ledger_run(config, folder)
        self._plan = plan
        self._members = members

    def charge(self, asked: Iterable[int], round: int) -> None:
        """Note what `round` may cost those that are asked.

        Raises:
            RecordError: A ledger is damaged.
        """
        system_noise = noise_source().is_system
        charge = self._plan.charge(self._run, round, system_noise=system_noise)
        for k in asked:
            Ledger(self._ledgers, k, owner_of_member(self._members[k])).charge(charge)
