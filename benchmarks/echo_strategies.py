"""FedAvg and SCAFFOLD without training, as strategies of a user's own: what state costs by itself.

``strategy=benchmarks/echo_strategies.py:EchoScaffold``. Clients decode what they receive, read and
write their state, and answer in the method's form; they take no gradient step.
"""

from __future__ import annotations

import torch

from strategies.base import ClientTask, ClientUpdate, arrays_of
from strategies.fedavg import FedAvg, received_weights, with_updates
from strategies.scaffold import Scaffold

_METRICS = {"train_loss": 0.0}


class EchoFedAvg(FedAvg):
    """Clients send back the weights that they received."""

    name = "echo-fedavg"

    def client_update(self, task: ClientTask) -> ClientUpdate:
        """No step."""
        metrics = {"num_examples": len(task.examples), **_METRICS}
        return ClientUpdate(arrays_of(received_weights(task)), metrics)


class EchoScaffold(Scaffold):
    """Clients send two updates of zero and keep a variate as large as the model."""

    name = "echo-scaffold"

    def client_update(self, task: ClientTask) -> ClientUpdate:
        """No step; the variate kept is the one read, or zeros."""
        values = task.parameters.values
        variate = torch.zeros_like(values) if task.state is None else task.state["variate"]
        nothing = arrays_of(task.parameters.named(torch.zeros_like(values)))
        arrays = with_updates(
            arrays_of(received_weights(task)), {"delta": nothing, "variate-delta": nothing}
        )
        metrics = {"num_examples": len(task.examples), **_METRICS}
        return ClientUpdate(arrays, metrics, {"variate": variate})
