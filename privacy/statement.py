"""The privacy statement of a run, in a form for programs and in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

from core.config import RunConfig
from privacy.ledger import SEEDED, Unit
from privacy.plan import PrivacyPlan

ImagesSent = Literal["none", "synthetic", "raw"]

_TEXT: dict[ImagesSent, str] = {
    "synthetic": (
        "none: the images are not private. Clients send synthetic images matched to their own "
        "without noise. Training images can be among them as they are: a class of which a client "
        "holds no more images than it sends has nothing to match, and stays what it started from. "
        "No epsilon can be stated for this run."
    ),
    "raw": (
        "none: the images are not private. Clients send real training images as they are. This is "
        "a control to measure other methods against, not a method to deploy."
    ),
    "none": (
        "none: no examples are sent, but what is sent is not private either. Weights and metrics "
        "trained without noise can reveal training examples. No epsilon can be stated for this run."
    ),
}


@dataclass(frozen=True, slots=True)
class PrivacyStatement:
    """What a run guarantees that adds no noise.

    Attributes:
        guarantee: ``none``.
        images_sent: Whether images left the clients, and which.
        text: The statement in plain words.
    """

    guarantee: Literal["none"]
    images_sent: ImagesSent
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateStatement:
    """What a private run guarantees, and what that rests on.

    Attributes:
        guarantee: In a clause; ``none`` with the reason where noise was seeded.
        images_sent: Whether images leave the clients, and which.
        text: All of it in plain words.
        unit: What is protected.
        adjacency: Which data sets must not be told apart.
        adversary: By whom.
        mechanism: As in ``privacy.mechanism``.
        released: What leaves the protected side, all of it made of noised sums.
        not_released: What a run without noise tells and this one does not.
        sampling: As implemented.
        sampling_rate: q.
        noise_multiplier: sigma.
        calibrated: Whether sigma was made from the budget.
        clip: C.
        denominator: What noised sums are divided by.
        delta: Of every epsilon.
        steps_per_round: Noised sums that a unit goes into in one round (T).
        rounds: Rounds that the client asked most often takes part in.
        composition: How rounds and clients add up.
        accountant: Which computes calibration, enforcement and report.
        accountant_version: The library that it is of.
        accountant_reason: Why it is not the one asked for; else empty.
        budget: The most that may be spent; None where there is no such limit.
        epsilon_per_round: Of one round; None where noise was seeded.
        epsilon_whole_run: Of all rounds; likewise.
        rdp_epsilon_per_round: The same by RDP, for information; likewise.
        rdp_epsilon_whole_run: Likewise.
        ledger: Over which runs a client's spendings add up.
        noise: Where the noise comes from.
        not_paid_for: Uses of the data that no epsilon here covers.
        outside: What may tell of the data besides what is released.
    """

    guarantee: str
    images_sent: ImagesSent
    text: str
    unit: Unit
    adjacency: str
    adversary: str
    mechanism: str
    released: tuple[str, ...]
    not_released: tuple[str, ...]
    sampling: str
    sampling_rate: float
    noise_multiplier: float
    calibrated: bool
    clip: float
    denominator: str
    delta: float
    steps_per_round: int
    rounds: int
    composition: str
    accountant: str
    accountant_version: str
    accountant_reason: str
    budget: float | None
    epsilon_per_round: float | None
    epsilon_whole_run: float | None
    rdp_epsilon_per_round: float | None
    rdp_epsilon_whole_run: float | None
    ledger: str
    noise: str
    not_paid_for: tuple[str, ...]
    outside: tuple[str, ...]


Statement = PrivacyStatement | PrivateStatement


def statement_of(
    config: RunConfig,
    plan: PrivacyPlan | None,
    images_sent: ImagesSent,
    *,
    refused: str = "",
    spent: float = 0.0,
) -> Statement:
    """The statement of a run.

    Args:
        config: The run.
        plan: What its noise costs; None for a run that is not private.
        images_sent: Whether images leave the clients, and which.
        refused: Why no epsilon can be stated, such as `privacy.ledger.SEEDED`; empty where one can.
        spent: What the run has cost so far; where that is more than planned, as after rounds that
            were done again, it is what is stated.
    """
    assert (plan is not None) == config.privacy.is_private
    if plan is None:
        return statement_without_noise(images_sent)
    words = _ClientWords(config, plan) if plan.unit == "client" else _ExampleWords(config, plan)
    library = f"opacus {version('opacus')}"
    guarantee = (
        f"epsilon {figure(max(plan.whole_run.value, spent))} at delta {plan.delta:g} over the "
        f"whole run, for one {plan.unit}"
        if not refused
        else f"none, {refused}"
    )
    return PrivateStatement(
        guarantee=guarantee,
        images_sent=images_sent,
        text=_text(config, plan, words, library, refused=refused, spent=spent),
        unit=plan.unit,
        adjacency=words.adjacency,
        adversary=words.adversary,
        mechanism=plan.mechanism,
        released=words.released(images_sent),
        not_released=_NOT_RELEASED,
        sampling=words.sampling,
        sampling_rate=plan.sampling_rate,
        noise_multiplier=plan.noise_multiplier,
        calibrated=plan.calibrated,
        clip=plan.clip,
        denominator=words.denominator,
        delta=plan.delta,
        steps_per_round=plan.steps,
        rounds=plan.rounds,
        composition=words.composition,
        accountant=plan.accountant,
        accountant_version=library,
        accountant_reason=plan.whole_run.reason,
        budget=config.privacy.epsilon or None,
        epsilon_per_round=None if refused else plan.per_round.value,
        epsilon_whole_run=None if refused else max(plan.whole_run.value, spent),
        rdp_epsilon_per_round=None if refused else plan.rdp_per_round,
        rdp_epsilon_whole_run=None if refused else plan.rdp_whole_run,
        ledger=_ledger(config),
        noise=SEEDED if refused == SEEDED else "the operating system's generator",
        not_paid_for=_NOT_PAID_FOR,
        outside=words.outside,
    )


def statement_without_noise(images_sent: ImagesSent) -> PrivacyStatement:
    """The statement of a run that adds no noise."""
    return PrivacyStatement("none", images_sent, _TEXT[images_sent])


def figure(epsilon: float) -> str:
    """An epsilon, or a sigma, to four digits.

    >>> figure(3.99619), figure(1103.2), figure(0.00012)
    ('3.996', '1103', '0.00012')
    """
    return f"{epsilon:.4g}" if epsilon < 1000 else f"{epsilon:.0f}"


_NOT_RELEASED = (
    "numbers of examples, in all or of a class",
    "training losses",
    "seconds of training",
)
_NOT_PAID_FOR = (
    "choosing sigma, clip, learning rate or any other key by trying them on clients' data: every "
    "trial is a release of its own",
)
_EVALUATION = (
    "Evaluation is on the server's own validation and test examples, which are not clients'"
)


class _ExampleWords:
    """How clients protect single examples, in words."""

    adjacency = (
        "add or remove one: two data sets are neighbours if one client holds one example, with its "
        "label where it has one, more in one of them"
    )
    adversary = (
        "the server and everybody who sees any message of the run; not the client that holds the "
        "example"
    )
    composition = (
        "sequential over the rounds of a client; clients hold different examples, so that the "
        "run's epsilon is the largest of its clients'; that clients are drawn for a round is not "
        "counted as amplification"
    )
    outside = (
        "how long a client takes, and whether it fails",
        "rounding: the guarantee is that of real numbers",
        "files of the simulation itself, such as partition.json, the ledgers and, beside images "
        "that were sent, the nearest real ones, which hold real data",
    )

    def __init__(self, config: RunConfig, plan: PrivacyPlan) -> None:
        self._keys, self._plan, self._config = config.flat(), plan, config

    @property
    def sampling(self) -> str:
        """Of examples into a step."""
        if self._plan.sampling_rate == 1:
            return "none: every example takes part in every step"
        split = (
            ", from the client's whole data at once, which is then split by label"
            if self._plan.mechanism in ("gradient", "feature")
            else ""
        )
        return (
            f"Poisson: every example takes part in every step with probability "
            f"{self._plan.sampling_rate:g}, independently{split}; an empty sample is a step as well"
        )

    @property
    def denominator(self) -> str:
        """What noised sums are divided by."""
        if self._plan.mechanism == "gradient":
            return f"the constant feddm.real-batch={self._keys.get('feddm.real-batch')} per class"
        if self._plan.mechanism == "feature":
            return (
                "the noised count of the class, at least "
                f"privacy.count-floor={self._config.privacy.count_floor:g}"
            )
        return f"the constant train.batch-size={self._config.train.batch_size}"

    @property
    def clipped(self) -> str:
        """What is clipped and summed."""
        return {
            "dp-sgd": "the gradient of every sampled example",
            "gradient": "the matching gradient of every sampled example",
            "feature": "the embedding of every sampled example (with a constant, to count)",
        }[self._plan.mechanism]

    def released(self, images_sent: ImagesSent) -> tuple[str, ...]:
        """What clients send."""
        found = ["the signal-to-noise ratio of the noised sums, estimated from those sums"]
        if "scaffold.option" in self._keys:
            found.insert(0, "SCAFFOLD's control variates, made of the noised steps")
        if images_sent == "none":
            found.insert(0, "after each round's noised steps, the client's weights or their change")
        elif self._plan.mechanism == "feature" and self._keys.get("mosaic.weighting") == "counts":
            found.insert(0, "noised counts of the classes")
        if images_sent != "none":
            found.insert(
                0,
                "each round as many synthetic images of every class, whichever the client holds, "
                "made of the noised sums",
            )
        return tuple(found)


class _ClientWords:
    """How a trusted server protects clients, in words."""

    adjacency = (
        "add or remove one: two runs are neighbours if one client, with all it holds, takes part "
        "in one of them and not in the other"
    )
    adversary = (
        "everybody but the server, who sees the model after every round; the server is trusted "
        "and sees each client's update as it is"
    )
    composition = (
        "sequential over the rounds that a client takes part in; the run's epsilon is that of the "
        "client asked most often; that clients are drawn for a round is not counted as "
        "amplification"
    )
    sampling = "none: a client that is asked takes part with certainty"
    clipped = "the update of every client asked"
    outside = (
        "to the server: everything that a client sends",
        "which clients are asked, how long they take, and whether they fail",
        *_ExampleWords.outside[1:],
    )

    def __init__(self, config: RunConfig, plan: PrivacyPlan) -> None:
        self._config = config

    @property
    def denominator(self) -> str:
        """What noised sums are divided by."""
        size = self._config.cohort.size or self._config.partition.clients
        return f"the constant size of the cohort, {size}"

    def released(self, images_sent: ImagesSent) -> tuple[str, ...]:
        """What the server publishes."""
        return ("the model after each round, made of the noised sum of clipped updates",)


def _text(
    config: RunConfig,
    plan: PrivacyPlan,
    words: _ExampleWords | _ClientWords,
    library: str,
    *,
    refused: str,
    spent: float,
) -> str:
    who = "Each client" if plan.unit == "example" else "The server"
    images: ImagesSent = "synthetic" if plan.mechanism in ("gradient", "feature") else "none"
    rounds = "1 round" if plan.rounds == 1 else f"{plan.rounds} rounds"
    steps = "1 noised sum" if plan.steps == 1 else f"{plan.steps} noised sums"
    sigma = "calibrated to the budget" if plan.calibrated else "as configured"
    budget = (
        f"The budget is epsilon {config.privacy.epsilon:g}: what would exceed it is not done. "
        if config.privacy.epsilon
        else "There is no budget. "
    )
    per_round, whole = figure(plan.per_round.value), figure(plan.whole_run.value)
    by = f"{plan.accountant.upper()} accountant of {library}"
    if plan.whole_run.reason:
        by += f"; {plan.whole_run.reason}"
    rdp = (
        ""
        if plan.accountant == "rdp"
        else f" For information, by RDP: {figure(plan.rdp_per_round)} and "
        f"{figure(plan.rdp_whole_run)}."
    )
    again = (
        f" Rounds that were done again have cost besides: the run has cost epsilon {figure(spent)}."
        if spent > plan.whole_run.value
        else ""
    )
    claim = (
        f"One round costs epsilon {per_round}, the whole run of {rounds} epsilon {whole}, both at "
        f"delta {plan.delta:g} ({by}).{rdp}{again} {budget}"
    )
    noise = "Noise and samples come from the operating system's generator. "
    if refused == SEEDED:
        claim = (
            f"Epsilon is {SEEDED}. The noise came from a generator that repeats, so that whoever "
            "knows its seed can take it away; nothing is promised. "
        )
        noise = ""
    elif refused:
        claim = f"Epsilon is {refused}: what clients have spent is not known. "
    return (
        f"{_capital(plan.unit)}-level differential privacy ({plan.mechanism}). "
        f"Protected is one {plan.unit}. Neighbours: {words.adjacency}. "
        f"Against: {words.adversary}. "
        f"{claim}"
        f"How: {who.lower()} clips {words.clipped} to norm {plan.clip:g}, adds them up, and adds "
        f"Gaussian noise of standard deviation sigma times the clip, with sigma "
        f"{figure(plan.noise_multiplier)} ({sigma}); {steps} a round, divided by "
        f"{words.denominator}. "
        f"Sampling: {words.sampling}. {noise}"
        f"Released: {'; '.join(words.released(images))}. "
        f"Not released: {'; '.join(_NOT_RELEASED)}. "
        f"{_canaries(config)}"
        f"Composition: {words.composition}. {_capital(_ledger(config))}. "
        f"Not paid for: {'; '.join(_NOT_PAID_FOR)}. {_EVALUATION}. "
        f"Outside: {'; '.join(words.outside)}."
    )


def _canaries(config: RunConfig) -> str:
    canaries = config.canaries
    if canaries.kind == "none":
        return ""
    return (
        f"An audit has put {canaries.count} canaries of kind {canaries.kind} among clients' data, "
        "each by the toss of a coin: this is not a run to publish accuracies of. All that the "
        "server saw is kept in the folder transcript. "
    )


def _ledger(config: RunConfig) -> str:
    if config.privacy.ledger:
        return (
            "what a client spends adds up over all runs that share the folder of privacy.ledger, "
            "and the budget holds for all of them together"
        )
    return (
        "this run is counted by itself: other runs on the same data cost besides, unless they "
        "share a privacy.ledger"
    )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
