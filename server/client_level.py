"""Client-level privacy at a trusted server: charge, clip, add up, noise, and only then fold.

The server is trusted with clients' updates, and with whether they reply; what it makes of them is
private. A strategy's server half therefore never sees an update. It is folded as many replies as
the round wants, each of them the noised mean: their sum is the noised sum and their number is the
constant, which is all that a half of kind ``sum`` depends on, so that every state it makes is
post-processing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from core.errors import PrivacyError
from core.records import RunFolder
from core.wire import Record
from privacy.client_level import ClientSum, refuse_unfit_arrays
from privacy.ledger import Budget, Ledger, ledger_folder, ledger_run, owner_of
from privacy.mechanism import GaussianSums
from privacy.noise import noise_source
from privacy.plan import PrivacyPlan
from server.cohort import Cohort
from server.nodes import Member
from server.noted_charges import owner_of_member
from server.prediction import reply_spec
from server.preparation import Preparation
from strategies.base import (
    ClientShape,
    Reply,
    RoundOutcome,
    ServerState,
    ServerTask,
    arrays_of,
    tensors_of,
)


class TrustedServer:
    """Pays for rounds out of clients' ledgers, and hands out what was paid for."""

    def __init__(
        self,
        preparation: Preparation,
        folder: RunFolder,
        plan: PrivacyPlan,
        members: Mapping[int, Member] = MappingProxyType({}),
    ) -> None:
        self._members = members
        self._preparation = preparation
        self._plan = plan
        self._ledgers = ledger_folder(preparation.config, folder)
        self._run = ledger_run(preparation.config, folder)
        self._source = noise_source()
        self._shape = preparation.client_shapes()[0]
        self._owners: dict[int, str] = {}

    def charge(self, cohort: Cohort, round: int) -> PaidRound:
        """Charge every client that would be asked, before anything is sent.

        There is no amplification by sampling: a client pays for each round that asks it, and for
        no other. One that is lost pays too. A round that is done again is charged again.

        Raises:
            PrivacyError: Replies have arrays that cannot be noised; nobody was charged.
            RecordError: A ledger is damaged.
        """
        form = reply_spec(self._preparation, self._shape, round).arrays
        refuse_unfit_arrays(
            tensors_of({name: np.zeros(0, spec.dtype) for name, spec in form.items()})
        )
        plan, config = self._plan, self._preparation.config
        charge = plan.charge(self._run, round, system_noise=self._source.is_system)
        budget = Budget(config.privacy.epsilon, plan.delta, plan.accountant)
        barred: dict[int, str] = {}
        for k in cohort.asked:
            try:
                Ledger(self._ledgers, k, self._owner(k)).charge(charge, budget)
            except PrivacyError as error:
                barred[k] = str(error)
        mechanism = GaussianSums(
            plan.mechanism,
            clip=plan.clip,
            noise_multiplier=plan.noise_multiplier,
            sampling_rate=plan.sampling_rate,
            steps=plan.steps,
            source=self._source,
        )
        paid = cohort.without(barred)
        return PaidRound(self._preparation, mechanism, paid, round, self._shape)

    def _owner(self, partition_id: int) -> str:
        member = self._members.get(partition_id)
        if member is not None and (member.keeps_state or self._preparation.has_own_data):
            return owner_of_member(member)
        if partition_id not in self._owners:
            indices = self._preparation.partition_without.clients[partition_id]
            own = self._preparation.workload.dataset.content(torch.from_numpy(indices))
            self._owners[partition_id] = owner_of(*own)
        return self._owners[partition_id]


@dataclass(frozen=True, slots=True)
class PaidRound:
    """The server half of one round, between the replies and the strategy's own.

    Attributes:
        preparation: The run.
        mechanism: Clips and noises.
        cohort: Whom it may ask: all of them have paid.
        round: From 1.
        shape: Of any client; the arrays of replies do not depend on whose they are.
    """

    preparation: Preparation
    mechanism: GaussianSums
    cohort: Cohort
    round: int
    shape: ClientShape

    def begin(self, state: ServerState) -> ClientSum:
        """A sum of no updates."""
        received = self.preparation.broadcast(state)
        form = reply_spec(self.preparation, self.shape, self.round).arrays
        zero = {name: np.zeros(spec.shape, spec.dtype) for name, spec in form.items()}
        unchanged = {name: received.get(name, nothing) for name, nothing in zero.items()}
        return ClientSum(self.mechanism, tensors_of(unchanged), self.cohort.num_wanted)

    def add(self, accumulator: ClientSum, reply: Reply) -> ClientSum:
        """Add one client's clipped update."""
        k, cohort = reply.partition_id, self.cohort
        assert k in cohort.asked and k not in cohort.barred, "only who has paid is added"
        accumulator.add(tensors_of(reply.record.arrays))
        return accumulator

    def finish(self, state: ServerState, accumulator: ClientSum, task: ServerTask) -> RoundOutcome:
        """Noise the sum and let the strategy fold the mean; without a reply nothing is released."""
        strategy = self.preparation.strategy
        own = strategy.begin(state)
        if accumulator.count == 0:
            return strategy.finish(state, own, task)
        mean = Record(arrays_of(accumulator.release_mean()), settings={"round": self.round})
        for k in self.cohort.asked[: self.cohort.num_wanted]:
            own = strategy.add(own, Reply(k, mean))
        outcome = strategy.finish(state, own, task)
        told = {"snr": self.mechanism.signal_to_noise}
        return dataclasses.replace(outcome, metrics={**outcome.metrics, **told})
