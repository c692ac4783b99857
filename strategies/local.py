"""local: every client trains alone. A control: what the data of one client is worth.

==========  =======================================================================
client      E epochs of minibatch SGD from its own last weights; the first start from
            the common initial model. Judges its model when a round is evaluated
up          no weights; in evaluated rounds ``validation_confusion`` and
            ``test_confusion`` (C, C) int64, metrics ``validation_loss``, ``test_loss``
            and ``own_accuracy``; always ``num_examples``, ``train_loss``
down        nothing but the round
server      accuracy and loss are means over the clients' models; the confusion matrix
            is their sum
==========  =======================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from core.metrics import evaluation_of, expected_accuracy
from core.parameters import weights_of
from core.records import EvaluationRecord
from core.scores import MACRO_F1
from core.wire import Array, ArraySpec, Metric, RecordSpec
from strategies.base import (
    ClientShape,
    ClientTask,
    ClientUpdate,
    CollectingStrategy,
    FederatedEvaluation,
    Reply,
    RoundOutcome,
    ServerState,
    ServerTask,
    model_seed,
    wrong_count,
)
from strategies.local_sgd import num_steps, train_locally

_SPLITS = ("validation", "test")


class Local(CollectingStrategy):
    """The control without communication; see the module's table."""

    name = "local"
    images_sent = "none"
    sends_weights = False
    has_global_model = False

    def reply_spec(self, client: ClientShape, round: int) -> RecordSpec:
        """Two metrics; a confusion matrix and a loss for each split in evaluated rounds."""
        metrics = ("num_examples", "train_loss", "train_s")
        if not self.config.evaluates(round):
            return RecordSpec(metrics=metrics)
        matrix = ArraySpec((len(client.class_counts),) * 2, "int64")
        return RecordSpec(
            {f"{split}_confusion": matrix for split in _SPLITS},
            (*metrics, "own_accuracy", *(f"{split}_loss" for split in _SPLITS)),
        )

    def keeps_client_state(self) -> bool:
        """Its own weights."""
        return True

    def client_steps(self, client: ClientShape) -> int:
        """Minibatches of E epochs."""
        return num_steps(client.num_examples, self.config)

    def client_update(self, task: ClientTask) -> ClientUpdate:
        """E epochs from the client's own weights, which never leave it."""
        initial = task.state or weights_of(task.workload.build_model(model_seed(self.config)))
        task.parameters.load(initial)
        loss = train_locally(
            task.parameters,
            task.examples,
            task.workload,
            self.config.train,
            seed=task.seed,
            count_step=task.count_step,
        )
        arrays: dict[str, Array] = {}
        metrics: dict[str, Metric] = {"num_examples": len(task.examples), "train_loss": loss}
        if self.config.evaluates(task.round):
            model = task.parameters.model
            validation = task.workload.evaluate(model, "validation")
            test = task.workload.evaluate(model, "test")
            assert validation.confusion is not None, "what local sends is counts of classes"
            assert test.confusion is not None and test.per_class_accuracy is not None
            counts = np.bincount(task.examples.labels.cpu(), minlength=len(test.confusion))
            arrays = {
                "validation_confusion": np.array(validation.confusion, dtype=np.int64),
                "test_confusion": np.array(test.confusion, dtype=np.int64),
            }
            metrics |= {
                "validation_loss": validation.loss,
                "test_loss": test.loss,
                "own_accuracy": expected_accuracy(test.per_class_accuracy, counts.tolist()),
            }
        return ClientUpdate(arrays, metrics, weights_of(task.parameters.model))

    def check_reply(self, reply: Reply, client: ClientShape) -> list[str]:
        """Counts must be counts."""
        own = reply.record.metrics.get("own_accuracy", 0.0)
        reasons = [f"own_accuracy is {own:g}, expected 0 to 1"] if not 0 <= own <= 1 else []
        return (
            wrong_count(reply, client)
            + reasons
            + [
                f"{name} holds {array.min()}, expected counts of at least one image"
                for name, array in reply.record.arrays.items()
                if array.min() < 0 or array.sum() < 1
            ]
        )

    def finish(
        self, state: ServerState, accumulator: list[Reply], task: ServerTask
    ) -> RoundOutcome:
        """Means over the clients; the server's own model is never trained."""
        if not accumulator:
            return RoundOutcome(state, {})
        replies = sorted(accumulator, key=lambda reply: reply.partition_id)
        losses = [float(reply.record.metrics["train_loss"]) for reply in replies]
        evaluation = None
        told = {r.partition_id: float(r.record.metrics.get("own_accuracy", 0)) for r in replies}
        if self.config.evaluates(task.round):
            evaluation = FederatedEvaluation(
                _mean_evaluation(replies, "validation"),
                _mean_evaluation(replies, "test"),
                [told.get(k) for k in range(self.config.partition.clients)],
            )
        return RoundOutcome(state, {"train_loss": sum(losses) / len(losses)}, None, evaluation)


def _mean_evaluation(replies: Sequence[Reply], split: str) -> EvaluationRecord:
    """The mean over clients' models; every client judged the same images."""
    matrices = [reply.record.arrays[f"{split}_confusion"].astype(np.int64) for reply in replies]
    losses = [float(reply.record.metrics[f"{split}_loss"]) for reply in replies]
    pooled = evaluation_of(sum(matrices, np.zeros_like(matrices[0])), sum(losses) / len(losses))
    each = [evaluation_of(matrix, 0.0).scores[MACRO_F1.name] for matrix in matrices]
    scores = {**pooled.scores, MACRO_F1.name: sum(each) / len(each)}
    return dataclasses.replace(pooled, scores=scores)
