"""What a run will send, told before it starts: exact, because sizes depend on forms alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from core.wire import RecordSpec, Setting
from privacy.plan import PrivacyPlan
from server.cohort import draw_cohort
from server.preparation import Preparation
from strategies.base import ClientShape, Strategy
from strategies.told import told_spec


@dataclass(frozen=True, slots=True)
class PredictedBytes:
    """Serialised bytes that a run sends in which nothing fails but what its configuration draws.

    Attributes:
        down: For each round, from the first, bytes to each client that is asked, by partition id.
        up: Likewise, from each client; 0 from one that drops out, is late, or is not needed.
    """

    down: list[list[int]]
    up: list[list[int]]

    @property
    def total_down(self) -> int:
        """Sum over rounds and clients."""
        return sum(map(sum, self.down))

    @property
    def total_up(self) -> int:
        """Sum over rounds and clients."""
        return sum(map(sum, self.up))


def request_settings(
    round: int, acknowledged_round: int, retained_round: int, plan: PrivacyPlan | None
) -> Mapping[str, Setting]:
    """Settings of every request for an update.

    Args:
        round: The round asked for.
        acknowledged_round: The last one whose reply from this client was counted; 0 before any.
        retained_round: The same as the oldest checkpoint that is kept has it: state that the
            client kept since then may still be asked for.
        plan: In a private run, how its noise was calibrated.
    """
    settings: dict[str, Setting] = {
        "round": round,
        "acknowledged-round": acknowledged_round,
        "retained-round": retained_round,
    }
    if plan is not None:
        settings |= {"noise-multiplier": plan.noise_multiplier, "accountant": plan.accountant}
    return settings


def request_spec(
    strategy: Strategy, client: ClientShape, round: int, plan: PrivacyPlan | None
) -> RecordSpec:
    """Form of the request a client receives in `round`."""
    arrays = strategy.broadcast_spec(client.model)
    return RecordSpec(arrays, (), request_settings(round, 0, 0, plan))


def reply_spec(preparation: Preparation, client: ClientShape, round: int) -> RecordSpec:
    """Form of the reply a client sends in `round`.

    It is the strategy's, with what the workload measures and, where clients judge their own models,
    what they tell of them.
    """
    strategy, workload = preparation.strategy, preparation.workload
    spec = strategy.reply_spec(client, round)
    arrays = dict(spec.arrays)
    measures = workload.measures(client.partition_id)
    metrics = (*spec.metrics, *measures)
    if preparation.clients_evaluate and preparation.config.evaluates(round):
        told = told_form(preparation)
        arrays |= told.arrays
        metrics = (*metrics, *told.metrics)
    sent = strategy.sent_metrics(metrics)
    return RecordSpec(arrays, sent, {"round": round}, frozenset(measures))


def told_form(preparation: Preparation) -> RecordSpec:
    """Form of what clients tell of their own models in evaluated rounds, where they do."""
    workload = preparation.workload
    num_classes = len(workload.dataset.class_names) if workload.classifies else 0
    return told_spec(workload.scores, num_classes)


def predict_bytes(preparation: Preparation) -> PredictedBytes:
    """Predict every message of a run in which nothing fails but what its configuration draws."""
    config, strategy, plan = preparation.config, preparation.strategy, preparation.privacy
    shapes, order = preparation.client_shapes(), preparation.hand_out_order()
    sizes: dict[tuple[int, bool], tuple[int, int]] = {}

    def sizes_of(client: int, number: int) -> tuple[int, int]:
        """Of request and reply; of a round nothing but whether it is evaluated matters."""
        key = (client, config.evaluates(number))
        if key not in sizes:
            request = request_spec(strategy, shapes[client], number, plan)
            reply = reply_spec(preparation, shapes[client], number)
            sizes[key] = (request.num_bytes(), reply.num_bytes())
        return sizes[key]

    down, up = [], []
    for number in range(1, config.rounds + 1):
        cohort = draw_cohort(config, order, number)
        counted = set(cohort.arrivals[: cohort.num_wanted])
        each = [(k, *sizes_of(k, number)) for k in sorted(cohort.asked)]
        down.append([request for _, request, _ in each])
        up.append([reply if k in counted else 0 for k, _, reply in each])
    return PredictedBytes(down, up)
