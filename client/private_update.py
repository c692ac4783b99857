"""One private client's part in one round: charge the ledger, noise, keep what is sent.

The order is what makes it safe to be killed at any moment: the charge is on the disk before the
first noised step, and the reply before it is sent. A request that comes again gets the reply that
was kept, or, where there is none, is charged again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from client.sent_replies import SentReplies, digest_of
from core.config import RunConfig
from core.records import RunFolder
from core.wire import Record
from privacy.accounting import AccountantName
from privacy.ledger import Budget, Charge, Ledger, ledger_folder, ledger_run
from privacy.mechanism import GaussianSums
from privacy.noise import NoiseSource, noise_source
from strategies.private import noised_steps


@dataclass(frozen=True, slots=True)
class PrivateUpdate:
    """The update that a request asks for.

    Attributes:
        config: The run.
        ledgers: Folder of ledgers.
        run: What the ledger calls the run.
        partition_id: Whose update.
        round: Which round's.
        noise_multiplier: sigma, as the server calibrated it; the ledger holds it to the budget.
        accountant: By which the ledger does so.
        request: Digest of the request.
        replies: Replies kept.
        retained_round: No round up to it will be asked for again.
    """

    config: RunConfig
    ledgers: Path
    run: str
    partition_id: int
    round: int
    noise_multiplier: float
    accountant: AccountantName
    request: str
    replies: SentReplies
    retained_round: int

    @classmethod
    def of(
        cls, config: RunConfig, folder: RunFolder, partition_id: int, received: Record
    ) -> PrivateUpdate:
        """What `received` asks for."""
        return cls(
            config=config,
            ledgers=ledger_folder(config, folder),
            run=ledger_run(config, folder),
            partition_id=partition_id,
            round=int(received.settings["round"]),
            noise_multiplier=float(received.settings["noise-multiplier"]),
            accountant=str(received.settings["accountant"]),  # type: ignore[arg-type]
            request=digest_of(received),
            replies=SentReplies(folder.clients, partition_id, config.identity()),
            retained_round=int(received.settings["retained-round"]),
        )

    def sent_before(self) -> Record | None:
        """The reply to this request, if it was made already."""
        return self.replies.read(self.round, self.request)

    def charge(self, owner: str) -> GaussianSums:
        """Charge the ledger of the data `owner` for the round, and hand out what it paid for.

        Raises:
            PrivacyError: There is no budget left; nothing was noised.
        """
        privacy, source = self.config.privacy, noise_source()
        steps = noised_steps(self.config)
        charge = Charge(
            run=self.run,
            round=self.round,
            unit="example",
            mechanism=privacy.mechanism,
            noise_multiplier=self.noise_multiplier,
            sampling_rate=privacy.sampling_rate,
            steps=steps,
            system_noise=source.is_system,
        )
        budget = Budget(privacy.epsilon, privacy.delta, self.accountant)
        Ledger(self.ledgers, self.partition_id, owner).charge(charge, budget)
        return self._mechanism(steps, source)

    def keep(self, reply: Record) -> None:
        """Keep the reply until no checkpoint leads back to its round."""
        self.replies.forget(self.retained_round)
        self.replies.write(self.round, self.request, reply)

    def _mechanism(self, steps: int, source: NoiseSource) -> GaussianSums:
        privacy = self.config.privacy
        return GaussianSums(
            privacy.mechanism,
            clip=privacy.clip,
            noise_multiplier=self.noise_multiplier,
            sampling_rate=privacy.sampling_rate,
            steps=steps,
            source=source,
            count_scale=privacy.count_scale,
            count_floor=privacy.count_floor,
        )
