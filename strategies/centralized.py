"""centralized: one model trained on all images in one place. A control, and no federation.

==========  =======================================================================
client      none
server      ``train.local-epochs`` epochs of minibatch SGD per round on the whole training
            split, so that a round costs as many passes over the data as FedAvg's
==========  =======================================================================
"""

from __future__ import annotations

from core.parameters import weights_of
from core.wire import RecordSpec
from strategies.base import (
    ClientShape,
    ClientTask,
    ClientUpdate,
    Reply,
    RoundOutcome,
    ServerState,
    ServerTask,
    Strategy,
)
from strategies.local_sgd import train_locally


class Centralized(Strategy):
    """The control with all data in one place; see the module's table."""

    name = "centralized"
    images_sent = "none"
    asks_clients = False
    sends_weights = False

    def reply_spec(self, client: ClientShape, round: int) -> RecordSpec:
        """No client is asked."""
        return RecordSpec(metrics=("train_s",))

    def client_update(self, task: ClientTask) -> ClientUpdate:
        """No client is asked."""
        raise AssertionError("centralized asks no clients")

    def begin(self, state: ServerState) -> None:
        """Nothing to accumulate."""
        return

    def add(self, accumulator: None, reply: Reply) -> None:
        """No client replies."""
        raise AssertionError("centralized asks no clients")

    def finish(self, state: ServerState, accumulator: None, task: ServerTask) -> RoundOutcome:
        """Train on the whole training split."""
        task.parameters.load(state.weights)
        objective = task.workload.objective(
            task.parameters.model,
            task.workload.training_examples(),
            seed=task.seed,
            partition_id=None,
        )
        loss = train_locally(
            task.parameters,
            objective,
            self.config.train,
            seed=task.seed,
            count_step=task.count_step,
        )
        weights = weights_of(task.parameters.model)
        metrics = {"train_loss": loss, **objective.metrics()}
        return RoundOutcome(ServerState(weights, state.slots), metrics)
