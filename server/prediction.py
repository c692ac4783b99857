"""What a run will send, told before it starts: exact, because sizes depend on forms alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from core.wire import RecordSpec, Setting
from server.preparation import Preparation
from strategies.base import ClientShape, Strategy


@dataclass(frozen=True, slots=True)
class PredictedBytes:
    """Serialised bytes that a run without failures sends.

    Attributes:
        down: For each round, from the first, bytes to each client by partition id.
        up: Likewise, from each client.
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


def request_settings(round: int, acknowledged_round: int) -> Mapping[str, Setting]:
    """Settings of every request for an update."""
    return {"round": round, "acknowledged-round": acknowledged_round}


def request_spec(strategy: Strategy, client: ClientShape, round: int) -> RecordSpec:
    """Form of the request a client receives in `round`."""
    return RecordSpec(strategy.broadcast_spec(client.model), (), request_settings(round, 0))


def reply_spec(strategy: Strategy, client: ClientShape, round: int) -> RecordSpec:
    """Form of the reply a client sends in `round`."""
    spec = strategy.reply_spec(client, round)
    return RecordSpec(spec.arrays, spec.metrics, {"round": round})


def predict_bytes(preparation: Preparation) -> PredictedBytes:
    """Predict every message of a run in which no client fails."""
    strategy = preparation.strategy
    clients = preparation.client_shapes() if strategy.asks_clients else []
    rounds = range(1, preparation.config.rounds + 1)
    forms: dict[bool, tuple[list[int], list[int]]] = {}
    for number in rounds:
        evaluated = preparation.config.evaluates(number)
        if evaluated not in forms:
            forms[evaluated] = (
                [request_spec(strategy, c, number).num_bytes() for c in clients],
                [reply_spec(strategy, c, number).num_bytes() for c in clients],
            )
    chosen = [forms[preparation.config.evaluates(number)] for number in rounds]
    return PredictedBytes([down for down, _ in chosen], [up for _, up in chosen])
