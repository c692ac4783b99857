"""local: every client trains alone. A control: what the data of one client is worth.

==========  =======================================================================
client      E epochs of minibatch SGD from its own last weights; the first start from
            the common initial model
up          no weights; metrics ``num_examples``, ``train_loss``, and in evaluated rounds
            what its model is worth (`strategies.told`)
down        nothing but the round
server      accuracy and loss are means over the clients' models; the confusion matrix
            is their sum
==========  =======================================================================
"""

from __future__ import annotations

from core.parameters import weights_of
from core.wire import RecordSpec
from strategies.base import (
    ClientShape,
    ClientTask,
    ClientUpdate,
    CollectingStrategy,
    Reply,
    RoundOutcome,
    ServerState,
    ServerTask,
    model_seed,
    wrong_count,
)
from strategies.local_sgd import num_steps, train_locally


class Local(CollectingStrategy):
    """The control without communication; see the module's table."""

    name = "local"
    images_sent = "none"
    sends_weights = False
    has_global_model = False

    def reply_spec(self, client: ClientShape, round: int) -> RecordSpec:
        """Two metrics."""
        return RecordSpec(metrics=("num_examples", "train_loss", "train_s"))

    def keeps_client_state(self) -> bool:
        """Its own weights."""
        return True

    def client_steps(self, client: ClientShape) -> int:
        """Minibatches of E epochs."""
        return num_steps(client.num_training_examples, self.config)

    def client_update(self, task: ClientTask) -> ClientUpdate:
        """E epochs from the client's own weights, which never leave it."""
        initial = task.state or weights_of(task.workload.build_model(model_seed(self.config)))
        task.parameters.load(initial)
        loss = train_locally(
            task.parameters,
            task.objective,
            self.config.train,
            seed=task.seed,
            count_step=task.count_step,
        )
        metrics = {"num_examples": len(task.examples), "train_loss": loss}
        return ClientUpdate({}, metrics, weights_of(task.parameters.model))

    def check_reply(self, reply: Reply, client: ClientShape) -> list[str]:
        """Counts must be counts."""
        return wrong_count(reply, client)

    def finish(
        self, state: ServerState, accumulator: list[Reply], task: ServerTask
    ) -> RoundOutcome:
        """The mean loss; the server's own model is never trained."""
        if not accumulator:
            return RoundOutcome(state, {})
        replies = sorted(accumulator, key=lambda reply: reply.partition_id)
        losses = [float(reply.record.metrics["train_loss"]) for reply in replies]
        return RoundOutcome(state, {"train_loss": sum(losses) / len(losses)})
