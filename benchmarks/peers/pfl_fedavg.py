"""FedAvg under pfl, to be started by torchrun: one process per worker, summed by gloo."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.internal.ops.pytorch_ops import distributed
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import nn

from benchmarks.peers.given import Diary, Given, arguments


class Network(nn.Module):
    """The given network, with the two methods that pfl asks for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of a batch."""
        self.train()
        return nn.functional.cross_entropy(self.network(inputs), labels)

    def metrics(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        """Nothing is evaluated."""
        return {}


class WithoutEvaluation(FederatedAveraging):
    """FedAvg that does not judge each client's model before and after training in round 1."""

    def get_next_central_contexts(self, *args: Any, **kwargs: Any) -> Any:
        """As the base, without evaluation."""
        contexts, *rest = super().get_next_central_contexts(*args, **kwargs)
        if contexts is not None:
            contexts = tuple(dataclasses.replace(c, do_evaluation=False) for c in contexts)
        return contexts, *rest


class Echo(WithoutEvaluation):
    """Clients that return at once what they received."""

    def train_one_user(
        self, initial_model_state: Any, model: Any, user_dataset: Any, central_context: Any
    ) -> Any:
        """No difference at all."""
        return model.get_model_difference(initial_model_state), Metrics()


class RoundEnds(TrainingProcessCallback):
    """Writes down when rounds end, once for all processes."""

    def __init__(self, diary: Diary) -> None:
        self._diary = diary

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """A round has ended; they are counted from 0."""
        if distributed.global_rank == 0:
            self._diary.round_ended(central_iteration + 1)
        return False, Metrics()


def main() -> None:
    """Run all rounds of the work that the command line names."""
    asked = arguments(__doc__)
    torch.set_num_threads(1)
    np.random.seed(0)
    given, diary = Given.read(asked.work), Diary(asked.out)
    network = given.initial_model()
    wrapped = Network(network)
    # Every process draws the whole cohort and trains its share of it.
    users = (
        (number, client)
        for number, cohort in enumerate(given.cohorts, start=1)
        for client in cohort
    )
    data = FederatedDataset(
        lambda user: PyTorchTensorDataset(given.examples(*user), user_id=str(user[1])),
        lambda: next(users),
    )
    (Echo if asked.echo else WithoutEvaluation)().run(
        NNAlgorithmParams(
            central_num_iterations=len(given.cohorts),
            evaluation_frequency=len(given.cohorts),
            train_cohort_size=len(given.cohorts[0]),
            val_cohort_size=None,
        ),
        SimulatedBackend(training_data=data, val_data=data),
        PyTorchModel(
            wrapped,
            local_optimizer_create=torch.optim.SGD,
            central_optimizer=torch.optim.SGD(wrapped.parameters(), lr=1.0),
        ),
        NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=given.learning_rate,
            local_batch_size=given.batch_size,
        ),
        callbacks=[RoundEnds(diary)],
        send_metrics_to_platform=False,
    )
    if distributed.global_rank == 0:
        diary.finished(network.state_dict())


if __name__ == "__main__":
    main()
