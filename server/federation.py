"""The rounds: ask clients, check and fold replies in a fixed order, evaluate, record."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from core.config import RunConfig
from core.device import numerics
from core.errors import ConfigError, DivergedError, Problem, QuorumError, RunError
from core.memory import keep_freed_memory, process_memory
from core.metrics import expected_accuracies
from core.parameters import ParameterVector
from core.progress import StepCounter
from core.records import ClientRecord, EvaluationRecord, ReplyOutcome, RoundRecord
from core.seeds import derive_seed, seeded_globals
from core.wire import Record
from core.workload import Workload
from server.checkpoint import Checkpoint
from server.client_level import PaidRound, TrustedServer
from server.cohort import Cohort, draw_cohort
from server.nodes import Nodes
from server.noted_charges import NotedCharges
from server.prediction import reply_spec, request_settings, told_form
from server.preparation import Preparation
from server.progress import Progress
from server.recorder import Recorder
from server.replies import LOST, UNSENT, Unreadable, printable, stream_replies
from server.spending import Spending
from strategies.base import (
    FederatedEvaluation,
    Reply,
    RoundOutcome,
    ServerState,
    ServerTask,
    Strategy,
)
from strategies.flower import from_flower, serialise, serialised_bytes, to_flower
from strategies.told import is_told_apart, pooled, told_faults

NETWORK_ROUND_TIMEOUT_S = 3600.0
"""For a round's replies on a network, where ``engine.round-timeout-s`` sets none: a client that
hangs must not hold the others for ever."""

_LONGEST_REASON, _LONGEST_TRACE = 500, 10_000
"""Characters that are kept of what a client says of its failure."""


@dataclass(frozen=True, slots=True)
class Received:
    """What came of one client's request: a reply that counts, or the reason why none does."""

    reply: Reply | None
    record: ClientRecord
    train_s: float = 0.0
    trace: str = ""

    @property
    def counts(self) -> bool:
        """Whether it is a reply that counts."""
        return self.record.outcome == "counted"

    def folded(self) -> Received:
        """What a round keeps of it: not its arrays, which many clients' would fill memory with."""
        return dataclasses.replace(self, reply=None)


class Federation:
    """One run over a grid."""

    def __init__(
        self,
        grid: Grid,
        nodes: Nodes,
        preparation: Preparation,
        recorder: Recorder,
        progress: Progress,
    ) -> None:
        self._grid = grid
        self._nodes = nodes
        self._preparation = preparation
        self._recorder = recorder
        self._progress = progress
        keep_freed_memory()
        self._parameters = ParameterVector(preparation.model, preparation.groups.is_shared)
        self._count_step = StepCounter(recorder.folder.progress)
        self._shapes, self._owners = preparation.client_shapes(), preparation.owners()
        self._order = preparation.hand_out_order()
        plan = preparation.privacy
        self._trusted: TrustedServer | None = None
        if plan is not None and plan.unit == "client":
            self._trusted = TrustedServer(preparation, recorder.folder, plan, nodes.members)
        self._noted: NotedCharges | None = None
        if plan is not None and plan.unit == "example" and nodes.clients_keep_state:
            self._noted = NotedCharges(preparation.config, recorder.folder, plan, nodes.members)

    def run(self) -> None:
        """All rounds that are left.

        Raises:
            RunError: Nodes are missing, no reply counted in `cohort.max-empty-rounds` rounds in a
                row or in any round, or the model diverged.
        """
        preparation, config = self._preparation, self._preparation.config
        strategy = preparation.strategy
        now = self._recorder.resumed_from
        self._progress.run_started(
            self._recorder.folder.path, config.rounds, now.round if now else 0
        )
        began = time.perf_counter() - self._recorder.elapsed_s
        if now is None:
            now = Checkpoint(0, preparation.initial_state(), {}, 0)
            judged_from, outcome = time.perf_counter(), RoundOutcome(now.state, {})
            judged = self._judge(0, outcome, {})
            seconds = {"server": 0.0, "evaluation": time.perf_counter() - judged_from}
            self._record(now, outcome, judged, [], seconds, began, began)
        for number in range(now.round + 1, config.rounds + 1):
            started = time.perf_counter()
            cohort = draw_cohort(config, self._order, number)
            half: Strategy | PaidRound = strategy
            if self._trusted is not None:
                half = self._trusted.charge(cohort, number)
                cohort = half.cohort
            self._progress.round_started(number, len(cohort.asked), self._steps(cohort))
            self._nodes.refresh()
            accumulator = half.begin(now.state)
            transcript = self._recorder.transcript
            if transcript is not None:
                transcript.begin(number, preparation.broadcast(now.state))
            received: list[Received] = []
            told: dict[int, Reply] = {}
            for item in self._exchange(now, cohort):
                if item.reply is not None:
                    own, of_model = self._parts(item.reply, number)
                    if of_model is not None:
                        told[own.partition_id] = of_model
                    accumulator = half.add(accumulator, own)
                    if transcript is not None:
                        transcript.add(number, own)
                received.append(item.folded())
            self._progress.server_started()
            served = time.perf_counter()
            if too_few := _too_few(cohort, received, config):
                outcome = RoundOutcome(now.state, {}, discarded=too_few)
            else:
                task = self._server_task(number)
                precision = numerics(config.engine.precision, task.device)
                with seeded_globals(derive_seed(task.seed, "layers")), precision:
                    outcome = half.finish(now.state, accumulator, task)
                outcome = self._with_measures(outcome, received)
            server_s = time.perf_counter() - served
            judged_from = time.perf_counter()
            judged = self._judge(number, outcome, told)
            if why := _useless(number, outcome, judged):
                if not cohort.asked:
                    raise DivergedError(why)
                received = [_discarded(item, why) for item in received]
                outcome = RoundOutcome(now.state, _finite(outcome.metrics))
                judged = self._judge(number, outcome, {})
            evaluation_s = time.perf_counter() - judged_from
            now = _after(now, outcome.state, received)
            hopeless = _hopeless(now, received, config, too_few)
            keep = hopeless is None  # a run that goes on later asks these clients again
            process_memory().release_if_grown()
            seconds = {"server": server_s, "evaluation": evaluation_s}
            self._record(now, outcome, judged, received, seconds, started, began, keep=keep)
            if hopeless is not None:
                raise hopeless
        self._exhibit(now)

    def _steps(self, cohort: Cohort) -> int:
        strategy = self._preparation.strategy
        counted = cohort.arrivals[: cohort.num_wanted]
        return sum(strategy.client_steps(self._shapes[k]) for k in counted)

    def _exchange(self, now: Checkpoint, cohort: Cohort) -> Iterator[Received]:
        """Ask the cohort and yield what comes of each of its clients, replies in a fixed order.

        Simulated arrivals are known beforehand, so on Tessera's own grid only those are run whose
        replies the round takes, and the next in line where one of them fails; replies come in the
        order in which work was handed out. On any other grid all are run, and the first to answer
        count, in that order too.
        """
        if not cohort.asked:
            return
        request = self._requests(now)
        for k, why in cohort.barred.items():
            yield self._told(_without_reply(k, 0, "failed", why))
        for k, (outcome, why) in cohort.lost.items():
            yield self._told(_without_reply(k, serialised_bytes(request(k)), outcome, why))
        simulated = getattr(self._grid, "node_is_partition", False)
        line, num_counted = [], 0
        for k in cohort.arrivals:
            if self._nodes.node_of(k) is None:
                why = self._nodes.why_missing(k)
                yield self._told(_without_reply(k, 0, "failed", why))
            else:
                line.append(k)
        if self._noted is not None:
            self._noted.charge(line, now.round + 1)
        while line and num_counted < cohort.num_wanted:
            length = cohort.num_wanted - num_counted if simulated else len(line)
            turn = set(line[:length])
            line = line[length:]
            asked = [k for k in cohort.asked if k in turn]
            early = EarlyReplies(asked)
            for item in self._replies(now.round + 1, asked, request):
                turn.remove(item.record.partition_id)
                num_counted += item.counts
                yield from early.until_now(self._told(item))
                if num_counted == cohort.num_wanted:
                    break
            yield from early.rest()
            line = [k for k in cohort.arrivals if k in turn] + line
        for k in line:
            why = f"the round closed with {num_counted} replies (cohort.size)"
            yield self._told(_without_reply(k, serialised_bytes(request(k)), "surplus", why))

    def _told(self, item: Received) -> Received:
        self._progress.client_replied(item.record)
        return item

    def _requests(self, now: Checkpoint) -> Callable[[int], Message]:
        """Makes the next round's request to a client; its arrays are serialised once, here."""
        number = now.round + 1
        arrays: ArrayRecord = serialise(Record(self._preparation.broadcast(now.state)))

        def request(partition_id: int) -> Message:
            acknowledged = now.acknowledged.get(partition_id, 0)
            retained = self._recorder.oldest_acknowledged(partition_id)
            settings = request_settings(number, acknowledged, retained, self._preparation.privacy)
            content = to_flower(Record(settings=settings), arrays)
            node_id = self._nodes.node_of(partition_id) or 0  # one without a node is only measured
            return Message(content, dst_node_id=node_id, message_type="train", group_id=str(number))

        return request

    def _replies(
        self, round: int, asked: Sequence[int], request: Callable[[int], Message]
    ) -> Iterator[Received]:
        timeout = self._preparation.config.engine.round_timeout_s or None
        if not getattr(self._grid, "node_is_partition", False):
            timeout = timeout or NETWORK_ROUND_TIMEOUT_S
        missing, sent = set(asked), time.perf_counter()
        bytes_down = dict.fromkeys(asked, 0)

        def sending(partition_id: int) -> Message:
            message = request(partition_id)
            bytes_down[partition_id] = serialised_bytes(message)
            return message

        for partition_id, message in stream_replies(self._grid, asked, sending, timeout):
            missing.remove(partition_id)
            most_s = time.perf_counter() - sent
            yield self._receive(round, partition_id, message, bytes_down[partition_id], most_s)
        for k in sorted(missing):
            why = f"no reply within {timeout:g} s (engine.round-timeout-s)" if timeout else ""
            outcome: ReplyOutcome = "late" if timeout else "failed"
            yield _without_reply(k, bytes_down[k], outcome, why or "no reply")

    def _receive(
        self,
        round: int,
        partition_id: int,
        message: Message | Unreadable,
        bytes_down: int,
        most_s: float,
    ) -> Received:
        """Validate one reply and count its bytes; training took at most `most_s`."""
        if isinstance(message, Unreadable):
            outcome: ReplyOutcome = "failed" if message.why in (LOST, UNSENT) else "refused"
            why = printable(message.why, _LONGEST_REASON)
            return _without_reply(partition_id, bytes_down, outcome, why)
        if message.has_error():
            trace = message.error.reason or f"error code {message.error.code}"
            why = printable(trace.partition("\n")[0], _LONGEST_REASON)
            record = _without_reply(partition_id, bytes_down, "failed", why).record
            return Received(None, record, trace=printable(trace, _LONGEST_TRACE))
        bytes_up = 0
        try:
            bytes_up = serialised_bytes(message)
            reply = self._valid_reply(round, partition_id, message, most_s)
        except ValueError as error:
            refused = ClientRecord(
                partition_id=partition_id,
                bytes_down=bytes_down,
                bytes_up=bytes_up,
                outcome="refused",
                failure=str(error),
            )
            return Received(None, refused)
        metrics = {k: float(v) for k, v in reply.record.metrics.items() if k != "train_s"}
        train_s = self._train_s(reply, message, most_s)
        counted = ClientRecord(
            partition_id=partition_id, bytes_down=bytes_down, bytes_up=bytes_up, metrics=metrics
        )
        return Received(reply, counted, train_s)

    def _train_s(self, reply: Reply, message: Message, most_s: float) -> float:
        """Seconds of training: as the client tells, or, where it tells none, as the engine took.

        A network that is not Tessera's own grid tells nothing either; there it is the time from
        request to reply.
        """
        seconds_of = getattr(self._grid, "seconds_of", lambda message_id: most_s)
        measured = float(seconds_of(message.metadata.reply_to_message_id))
        return float(reply.record.metrics.get("train_s", measured))

    def _valid_reply(self, round: int, partition_id: int, message: Message, most_s: float) -> Reply:
        """Decode a reply once its form is known to be right.

        Raises:
            ValueError: All that is wrong with it.
        """
        strategy, shape = self._preparation.strategy, self._shapes[partition_id]
        scores = self._preparation.workload.scores
        form = reply_spec(self._preparation, shape, round)
        weights = self._preparation.workload.weights(shape.num_examples)
        reply = Reply(partition_id, from_flower(message.content, form), weights)
        if reply.record.settings.get("round") != round:
            raise ValueError(f"reply is of round {reply.record.settings.get('round')}, not {round}")
        reasons = form.violations(reply.record)
        reasons = reasons or [*strategy.check_reply(reply, shape), *told_faults(reply, scores)]
        if not reasons and not 0 <= (train_s := reply.record.metrics.get("train_s", 0)) <= most_s:
            reasons = [f"train_s is {train_s:g}, but the request went out {most_s:.3g} s ago"]
        if reasons:
            raise ValueError("; ".join(reasons))
        return dataclasses.replace(reply, record=_as_measured(reply.record, form.optional))

    def _server_task(self, round: int) -> ServerTask:
        preparation = self._preparation
        return ServerTask(
            round=round,
            seed=derive_seed(preparation.config.seed, "server", round),
            parameters=self._parameters,
            workload=preparation.workload,
            device=preparation.workload.device,
            count_step=self._count_step,
            owners=self._owners,
        )

    def _parts(self, reply: Reply, round: int) -> tuple[Reply, Reply | None]:
        """A reply as the strategy folds it, and what the client tells of its own model, if any."""
        preparation = self._preparation
        if not (preparation.clients_evaluate and preparation.config.evaluates(round)):
            return reply, None
        form = told_form(preparation)
        arrays = reply.record.arrays
        own = {name: array for name, array in arrays.items() if name not in form.arrays}
        told = Record({name: arrays[name] for name in form.arrays}, reply.record.metrics)
        return (
            dataclasses.replace(reply, record=dataclasses.replace(reply.record, arrays=own)),
            Reply(reply.partition_id, told),
        )

    def _with_measures(self, outcome: RoundOutcome, received: Sequence[Received]) -> RoundOutcome:
        """The outcome with what the workload measured, a mean by examples over who measured it."""
        workload = self._preparation.workload
        values: dict[str, list[tuple[float, float]]] = {}
        for record in (item.record for item in received if item.counts):
            for name in workload.measures(record.partition_id):
                if name in record.metrics:
                    weight = record.metrics.get("num_examples", 1.0)
                    values.setdefault(name, []).append((weight, record.metrics[name]))
        means = {
            name: sum(w * value for w, value in found) / sum(w for w, _ in found)
            for name, found in sorted(values.items())
        }
        return dataclasses.replace(outcome, metrics={**outcome.metrics, **means})

    def _record(
        self,
        now: Checkpoint,
        outcome: RoundOutcome,
        judged: FederatedEvaluation | None,
        received: list[Received],
        seconds: Mapping[str, float],
        started: float,
        began: float,
        *,
        keep: bool = True,
    ) -> None:
        ended = time.perf_counter()
        clients = sorted((item.record for item in received), key=lambda c: c.partition_id)
        train_s = [item.train_s for item in received]
        counted = [c.partition_id for c in clients if c.outcome == "counted"]
        spending = self._recorder.spending(now.round, counted)
        server = {**outcome.metrics, **_private_metrics(clients, spending)}
        if spending is not None:
            clients = [_with_epsilon(client, spending) for client in clients]
        record = RoundRecord(
            round=now.round,
            validation=judged.validation if judged else None,
            test=judged.test if judged else None,
            client_scores=judged.client_scores if judged else None,
            worst_client_score=_worst(judged.client_scores) if judged else None,
            bytes_down=sum(client.bytes_down for client in clients),
            bytes_up=sum(client.bytes_up for client in clients),
            clients=clients,
            server=server,
            seconds={
                "client_sum": sum(train_s),
                "client_max": max(train_s, default=0.0),
                **seconds,
                "wall": ended - started,
                "elapsed": ended - began,
            },
        )
        self._recorder.round(record, outcome.mosaic, now, spending, keep=keep)
        self._progress.round_ended(record)

    def _judge(
        self, round: int, outcome: RoundOutcome, told: Mapping[int, Reply]
    ) -> FederatedEvaluation | None:
        """How well the model does after a round, or clients' own do, if it is a round to tell."""
        preparation = self._preparation
        if not preparation.config.evaluates(round):
            return None
        if round == 0 or not preparation.clients_evaluate:
            return self._evaluate(outcome.state)
        workload = preparation.workload
        sizes = workload.dataset.num_examples
        return pooled(told, workload.scores, sizes, preparation.config.partition.clients)

    def _exhibit(self, last: Checkpoint) -> None:
        """Keep what the final model makes of a few test examples, where the server holds it."""
        preparation = self._preparation
        if preparation.clients_evaluate:
            return
        self._parameters.load(last.state.weights)
        found = preparation.workload.exhibits(self._parameters.model, "test")
        self._recorder.folder.write_exhibits(found)

    def _evaluate(self, state: ServerState) -> FederatedEvaluation:
        workload = self._preparation.workload
        self._parameters.load(state.weights)
        model = self._parameters.model
        test = workload.evaluate(model, "test")
        validation = workload.evaluate(model, "validation")
        for split, found in (("test", test), ("validation", validation)):
            _refuse_other_form(workload, split, found)
        if test.per_class_accuracy is None or not is_told_apart(list(test.scores)):
            return FederatedEvaluation(validation, test, None)
        counts = self._preparation.partition.class_counts
        expected = expected_accuracies(test.per_class_accuracy, counts).tolist()
        # A client that tells nobody what it holds has no mix to be judged on.
        known = counts.sum(axis=1) > 0
        own = [a if told else None for a, told in zip(expected, known, strict=True)]
        return FederatedEvaluation(validation, test, own)


def _refuse_other_form(workload: Workload, split: str, found: EvaluationRecord) -> None:
    """Refuse an evaluation of which clients' own would not be what the server expects.

    Raises:
        ConfigError: Says what the workload tells of itself, and does not do.
    """
    rule = ""
    if tuple(found.scores) != workload.scores.names:
        rule = (
            f"its evaluation on {split} has the scores {', '.join(found.scores)}, and its scores "
            f"are {', '.join(workload.scores.names)}; give the same ones, in the same order"
        )
    elif workload.classifies and None in (found.confusion, found.per_class_accuracy):
        rule = (
            f"its evaluation on {split} has no confusion matrix, and it says that it classifies; "
            "set classifies = False, or give confusion and per_class_accuracy"
        )
    elif not workload.classifies and found.confusion is not None:
        rule = (
            f"its evaluation on {split} has a confusion matrix, and it does not say that it "
            "classifies; set classifies = True"
        )
    if rule:
        raise ConfigError([Problem("workload", workload.config.workload, rule)])


def _after(before: Checkpoint, state: ServerState, received: Sequence[Received]) -> Checkpoint:
    """Where the run stands after a round: this is what commits the clients' replies."""
    counted = [item.record.partition_id for item in received if item.counts]
    empty = bool(received) and not counted
    number = before.round + 1
    return Checkpoint(
        number,
        state,
        {**before.acknowledged, **dict.fromkeys(counted, number)},
        before.empty_rounds + 1 if empty else 0,
    )


def _private_metrics(
    clients: Sequence[ClientRecord], spending: Spending | None
) -> dict[str, float]:
    """What a private round has cost, and the mean signal-to-noise ratio of its clients' sums."""
    if spending is None:
        return {}
    ratios = [client.metrics["snr"] for client in clients if "snr" in client.metrics]
    told = {"snr": sum(ratios) / len(ratios)} if ratios else {}
    return {**told, **spending.round_metrics()}


def _with_epsilon(client: ClientRecord, spending: Spending) -> ClientRecord:
    """The record with what the run has cost this client, where that is told."""
    one = spending.clients.get(client.partition_id)
    if one is None or one.epsilon is None:
        return client
    return dataclasses.replace(client, metrics={**client.metrics, "epsilon": one.epsilon})


def _without_reply(
    partition_id: int, bytes_down: int, outcome: ReplyOutcome, failure: str
) -> Received:
    record = ClientRecord(
        partition_id=partition_id,
        bytes_down=bytes_down,
        bytes_up=0,
        outcome=outcome,
        failure=failure,
    )
    return Received(None, record)


def _too_few(cohort: Cohort, received: Sequence[Received], config: RunConfig) -> str | None:
    """Why a round has no quorum; None if it has one, or nobody is to be asked."""
    counted = sum(item.counts for item in received)
    if not cohort.asked or not 0 < counted < config.cohort.quorum:
        return None
    return f"{counted} of the replies counted that cohort.quorum={config.cohort.quorum} asks for"


def _hopeless(
    now: Checkpoint, received: Sequence[Received], config: RunConfig, too_few: str | None
) -> RunError | None:
    """What a run ends with that gets nowhere: the worst that came of the last round's clients.

    Where all that was lost was refused, the numbers are at fault and would be again.
    """
    most = config.cohort.max_empty_rounds
    over = now.round == config.rounds and now.empty_rounds == config.rounds
    if now.empty_rounds < most and not over:
        return None
    worst = ("failed", "refused", "late", "dropped", "surplus")
    told = min(received, key=lambda i: (worst.index(i.record.outcome), i.record.partition_id))
    rounds = "1 round" if now.empty_rounds == 1 else f"{now.empty_rounds} rounds in a row"
    text = (
        f"no reply counted in {rounds} (cohort.max-empty-rounds={most}); client "
        f"{told.record.partition_id}: {told.trace or told.record.failure}"
    )
    if too_few is not None:
        text = f"{rounds} without a quorum (cohort.max-empty-rounds={most}); of the last, {too_few}"
        lost = [i.record for i in received if i.record.outcome in {"failed", "late"}]
        if lost:
            text += f"; client {lost[0].partition_id}: {lost[0].failure}"
        return QuorumError(text)
    outcomes = {item.record.outcome for item in received}
    at_fault = "refused" in outcomes and not outcomes & {"failed", "late"}
    if at_fault:
        return DivergedError(text)
    return QuorumError(text) if config.cohort.quorum > 1 else RunError(text)


def _as_measured(record: Record, optional: Collection[str]) -> Record:
    """A record without metrics that say that there was nothing to measure."""
    metrics = {
        name: value
        for name, value in record.metrics.items()
        if not (name in optional and math.isnan(value))
    }
    return dataclasses.replace(record, metrics=metrics)


def _useless(round: int, outcome: RoundOutcome, judged: FederatedEvaluation | None) -> str | None:
    """Why what came of a round cannot be kept; None if it can."""
    if outcome.discarded is not None:
        return outcome.discarded
    tensors = [*outcome.state.weights.values(), *outcome.state.slots.values()]
    numbers = list(outcome.metrics.values())
    if judged is not None:
        for one in (judged.validation, judged.test):
            numbers += [one.loss, *one.scores.values()]
    if all(map(_is_finite, tensors)) and all(map(math.isfinite, numbers)):
        return None
    return (
        f"the model diverged in round {round}: its weights or its loss are no longer finite; lower "
        "the learning rate"
    )


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether every entry is; a NaN is both the least and the most of its tensor."""
    return tensor.numel() == 0 or all(math.isfinite(end) for end in tensor.aminmax())


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _discarded(item: Received, why: str) -> Received:
    """A valid reply of a round of which nothing was made: it does not count either."""
    if not item.counts:
        return item
    failure = f"the round was discarded: {why}"
    record = dataclasses.replace(item.record, outcome="refused", failure=failure, metrics={})
    return Received(None, record)


def _worst(client_scores: list[float | None] | None) -> float | None:
    return min((score for score in client_scores or () if score is not None), default=None)


class EarlyReplies:
    """Holds replies back until their turn, so that folding does not depend on who was first.

    Args:
        order: The clients that are asked, in the order in which work is handed out.
    """

    def __init__(self, order: Sequence[int]) -> None:
        self._turns = iter(order)
        self._turn = next(self._turns, None)
        self._held: dict[int, Received] = {}

    def until_now(self, item: Received) -> Iterator[Received]:
        """Take what came, and let go of all whose turn it is."""
        self._held[item.record.partition_id] = item
        while self._turn in self._held:
            turn, self._turn = self._turn, next(self._turns, None)
            assert turn is not None
            yield self._held.pop(turn)

    def rest(self) -> Iterator[Received]:
        """Let go of what is left, once nobody is waited for any more."""
        for turn in (self._turn, *self._turns):
            if turn in self._held:
                assert turn is not None
                yield self._held.pop(turn)
