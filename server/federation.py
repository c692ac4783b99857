"""The rounds: ask clients, check and fold replies in a fixed order, evaluate, record."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from core.errors import RunError
from core.metrics import expected_accuracy
from core.parameters import ParameterVector
from core.progress import StepCounter
from core.records import ClientRecord, RoundRecord
from core.seeds import derive_seed, seeded_globals
from core.wire import Record
from server.nodes import nodes_by_partition
from server.prediction import reply_spec, request_settings
from server.preparation import Preparation
from server.progress import Progress
from server.recorder import Recorder
from strategies.base import (
    ClientShape,
    FederatedEvaluation,
    Reply,
    RoundOutcome,
    ServerState,
    ServerTask,
)
from strategies.flower import from_flower, serialise, serialised_bytes, to_flower


@dataclass(frozen=True, slots=True)
class Received:
    """What came of one client's request: a reply that counts, or the reason why none does."""

    reply: Reply | None
    record: ClientRecord
    train_s: float = 0.0
    trace: str = ""


class Federation:
    """One run over a grid."""

    def __init__(
        self,
        grid: Grid,
        preparation: Preparation,
        recorder: Recorder,
        progress: Progress,
    ) -> None:
        self._grid = grid
        self._preparation = preparation
        self._recorder = recorder
        self._progress = progress
        self._parameters = ParameterVector(preparation.model)
        self._count_step = StepCounter(recorder.folder.progress)
        self._acknowledged: dict[int, int] = {}
        self._shapes = preparation.client_shapes()
        self._order = preparation.hand_out_order()

    def run(self) -> None:
        """All rounds.

        Raises:
            RunError: Nodes are missing, every client failed in the first or the last round, or the
                model diverged. In between, a round without replies leaves the model as it was.
        """
        preparation, config = self._preparation, self._preparation.config
        strategy = preparation.strategy
        self._progress.run_started(
            self._recorder.folder.path,
            config.rounds,
            len(self._order),
            sum(strategy.client_steps(self._shapes[k]) for k in self._order),
        )
        began = time.perf_counter()
        nodes = nodes_by_partition(self._grid, len(self._order))
        state = ServerState(preparation.initial_weights)
        received: list[Received] = []
        self._record(0, RoundOutcome(state, {}), [], 0.0, began, began)
        for number in range(1, config.rounds + 1):
            started = time.perf_counter()
            self._progress.round_started(number)
            accumulator = strategy.begin(state)
            received = []
            for item in in_order(self._exchange(number, state, nodes), self._order):
                if item.reply is not None:
                    accumulator = strategy.add(accumulator, item.reply)
                received.append(item)
            if number == 1:
                _refuse_hopeless("first", received)
            self._progress.server_started()
            served = time.perf_counter()
            task = self._server_task(number)
            with seeded_globals(derive_seed(task.seed, "layers")):
                outcome = strategy.finish(state, accumulator, task)
            _refuse_divergence(number, outcome)
            server_s = time.perf_counter() - served
            state = outcome.state
            self._record(number, outcome, received, server_s, started, began)
        _refuse_hopeless("last", received)

    def _exchange(
        self, round: int, state: ServerState, nodes: Mapping[int, int]
    ) -> Iterator[Received]:
        """Ask every client and yield what comes of it, in any order."""
        if not self._order:
            return
        strategy = self._preparation.strategy
        arrays: ArrayRecord = serialise(Record(strategy.broadcast(state)))
        requests: dict[int, Message] = {}
        for partition_id in self._order:
            settings = request_settings(round, self._acknowledged.get(partition_id, 0))
            content = to_flower(Record(settings=settings), arrays)
            requests[partition_id] = Message(
                content, dst_node_id=nodes[partition_id], message_type="train", group_id=str(round)
            )
        bytes_down = {k: serialised_bytes(message) for k, message in requests.items()}
        partition_of = {node_id: k for k, node_id in nodes.items()}
        timeout = self._preparation.config.engine.round_timeout_s or None
        missing = set(self._order)
        replies = self._grid.send_and_receive(list(requests.values()), timeout=timeout)
        for message in replies:
            partition_id = partition_of.get(message.metadata.src_node_id, -1)
            if partition_id not in missing:
                continue
            missing.remove(partition_id)
            item = self._receive(round, partition_id, message, bytes_down[partition_id])
            self._progress.client_replied(partition_id, item.record.failure)
            yield item
        for partition_id in sorted(missing):
            failure = f"no reply within {timeout:g} s" if timeout else "no reply"
            self._progress.client_replied(partition_id, failure)
            yield Received(
                None,
                ClientRecord(
                    partition_id=partition_id,
                    bytes_down=bytes_down[partition_id],
                    bytes_up=0,
                    failure=failure,
                ),
            )

    def _receive(
        self, round: int, partition_id: int, message: Message, bytes_down: int
    ) -> Received:
        """Validate one reply and count its bytes."""
        bytes_up, metrics, train_s, trace = 0, {}, 0.0, ""
        reply = None
        if message.has_error():
            trace = message.error.reason or f"error code {message.error.code}"
            failure: str | None = trace.partition("\n")[0]
        else:
            bytes_up = serialised_bytes(message)
            try:
                reply = Reply(partition_id, from_flower(message.content))
            except ValueError as error:
                failure = str(error)
            else:
                reasons = self._reasons_to_refuse(round, self._shapes[partition_id], reply)
                failure = "; ".join(reasons) or None
        if failure is not None:
            reply = None
        else:
            assert reply is not None
            metrics = {k: float(v) for k, v in reply.record.metrics.items() if k != "train_s"}
            train_s = float(reply.record.metrics["train_s"])
            self._acknowledged[partition_id] = round
        record = ClientRecord(
            partition_id=partition_id,
            bytes_down=bytes_down,
            bytes_up=bytes_up,
            failure=failure,
            metrics=metrics,
        )
        return Received(reply, record, train_s, trace)

    def _reasons_to_refuse(self, round: int, shape: ClientShape, reply: Reply) -> list[str]:
        strategy = self._preparation.strategy
        if reply.record.settings.get("round") != round:
            return [f"reply is of round {reply.record.settings.get('round')}, not {round}"]
        departures = reply_spec(strategy, shape, round).violations(reply.record)
        return departures or strategy.check_reply(reply, shape)

    def _server_task(self, round: int) -> ServerTask:
        preparation = self._preparation
        return ServerTask(
            round=round,
            seed=derive_seed(preparation.config.seed, "server", round),
            parameters=self._parameters,
            workload=preparation.workload,
            device=preparation.workload.device,
            count_step=self._count_step,
        )

    def _record(
        self,
        round: int,
        outcome: RoundOutcome,
        received: list[Received],
        server_s: float,
        started: float,
        began: float,
    ) -> None:
        judged_from = time.perf_counter()
        judged = None
        if self._preparation.config.evaluates(round):
            if round == 0 or self._preparation.strategy.has_global_model:
                judged = self._evaluate(outcome.state)
            else:
                judged = outcome.evaluation
        ended = time.perf_counter()
        clients = sorted((item.record for item in received), key=lambda c: c.partition_id)
        train_s = [item.train_s for item in received]
        record = RoundRecord(
            round=round,
            validation=judged.validation if judged else None,
            test=judged.test if judged else None,
            client_accuracy=judged.client_accuracy if judged else None,
            worst_client_accuracy=_worst(judged.client_accuracy) if judged else None,
            bytes_down=sum(client.bytes_down for client in clients),
            bytes_up=sum(client.bytes_up for client in clients),
            clients=clients,
            server=outcome.metrics,
            seconds={
                "client_sum": sum(train_s),
                "client_max": max(train_s, default=0.0),
                "server": server_s,
                "evaluation": ended - judged_from,
                "wall": ended - started,
                "elapsed": ended - began,
            },
        )
        self._recorder.round(record, outcome.mosaic, outcome.state)
        self._progress.round_ended(record)

    def _evaluate(self, state: ServerState) -> FederatedEvaluation:
        workload = self._preparation.workload
        self._parameters.load(state.weights)
        model = self._parameters.model
        test = workload.evaluate(model, "test")
        return FederatedEvaluation(
            validation=workload.evaluate(model, "validation"),
            test=test,
            client_accuracy=[
                expected_accuracy(test.per_class_accuracy, shape.class_counts)
                for shape in self._shapes
            ],
        )


def _refuse_hopeless(which: str, received: list[Received]) -> None:
    failures = [item for item in received if item.reply is None]
    if received and len(failures) == len(received):
        first = failures[0]
        raise RunError(
            f"all {len(failures)} clients failed in the {which} round; client "
            f"{first.record.partition_id}: {first.trace or first.record.failure}"
        )


def _refuse_divergence(round: int, outcome: RoundOutcome) -> None:
    weights = outcome.state.weights.values()
    if not all(torch.isfinite(w).all() for w in weights) or not all(
        math.isfinite(value) for value in outcome.metrics.values()
    ):
        raise RunError(
            f"the model diverged in round {round}: its weights or its loss are no longer finite; "
            "lower the learning rate"
        )


def _worst(client_accuracy: list[float | None]) -> float | None:
    return min((accuracy for accuracy in client_accuracy if accuracy is not None), default=None)


def in_order(items: Iterable[Received], order: list[int]) -> Iterator[Received]:
    """Hold early ones back until their turn, so that folding does not depend on who was first."""
    held: dict[int, Received] = {}
    turns = iter(order)
    turn = next(turns, None)
    for item in items:
        held[item.record.partition_id] = item
        while turn in held:
            assert turn is not None
            yield held.pop(turn)
            turn = next(turns, None)
    assert not held, "every client of the order is accounted for"
