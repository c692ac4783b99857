"""One private client's part in one round: charge the ledger, noise, keep what is sent.

The order is what makes it safe to be killed at any moment: the charge is on the disk before the
first noised step, and the reply before it is sent. A request that comes again gets the reply that
was kept, or, where there is none, is charged again.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from client.place import Place
from client.sent_replies import SentReplies, digest_of
from core.config import RunConfig
from core.errors import PrivacyError
from core.records import RunFolder, write_whole
from core.wire import Record
from privacy.accounting import AccountantName, accountant_name
from privacy.ledger import Budget, Charge, Ledger, ledger_run
from privacy.mechanism import GaussianSums
from privacy.noise import NoiseSource, noise_source
from strategies.private import noised_steps


@contextmanager
def quiet_failures(folder: RunFolder, partition_id: int) -> Iterator[None]:
    """Tell the server that a private client failed, and not why, which may depend on its images.

    The client's own file ``clients/partition-00003.failure.txt`` tells why. What is said of budget
    and noise depends on the configuration alone, and is sent.
    """
    try:
        yield
    except PrivacyError:
        raise
    except Exception:
        path = folder.clients / f"partition-{partition_id:05d}.failure.txt"
        write_whole(path, traceback.format_exc().encode())
        raise PrivacyError(
            f"the client failed; why may depend on its images and is told in its own {path.name}"
        ) from None


@dataclass(frozen=True, slots=True)
class PrivateUpdate:
    """The update that a request asks for.

    Attributes:
        config: The run.
        ledgers: Folder of ledgers.
        run: What the ledger calls the run.
        place: Whose update.
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
    place: Place
    round: int
    noise_multiplier: float
    accountant: AccountantName
    request: str
    replies: SentReplies
    retained_round: int

    @classmethod
    def of(
        cls, config: RunConfig, folder: RunFolder, place: Place, received: Record
    ) -> PrivateUpdate:
        """What `received` asks for.

        Raises:
            PrivacyError: The server asks for less noise than the configuration says.
        """
        sigma = float(received.settings["noise-multiplier"])
        given = config.privacy.noise_multiplier
        if not (math.isfinite(sigma) and sigma > 0) or (given and sigma != given):
            expected = f"{given:g}" if given else "a number above 0"
            raise PrivacyError(
                f"the server asks for noise-multiplier {sigma:g}, and privacy.noise-multiplier is "
                f"{expected}; nothing was noised"
            )
        return cls(
            config=config,
            ledgers=place.ledgers(config, folder),
            run=ledger_run(config, folder),
            place=place,
            round=int(received.settings["round"]),
            noise_multiplier=sigma,
            accountant=accountant_name(str(received.settings["accountant"])),
            request=digest_of(received),
            replies=SentReplies(folder.clients, place.partition_id, config.identity()),
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
        ledger = Ledger(self.ledgers, self.place.partition_id, owner)
        ledger.charge(charge, *self.place.ceilings(budget))
        return self._mechanism(steps, source)

    def keep(self, reply: Record, mechanism: GaussianSums | None) -> None:
        """Keep the reply until no checkpoint leads back to its round.

        Raises:
            PrivacyError: It was not made of what was charged.
        """
        released = mechanism.released if mechanism is not None else 0
        if released != noised_steps(self.config):
            raise PrivacyError(
                f"strategy {self.config.strategy} released {released} noised sums in a round that "
                f"is charged for {noised_steps(self.config)}; what it sends may not be private and "
                "is not sent; hand task.mechanism to the one loop that looks at the examples"
            )
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
