"""What of a workload's model a client exchanges with the server, and who judges it."""

from __future__ import annotations

from torch import nn

from core.groups import ParameterGroups
from core.workload import Workload
from strategies.base import ModelForm, Strategy


def received_form(model: nn.Module, groups: ParameterGroups) -> ModelForm:
    """Form of what every client receives: all that is shared."""
    return ModelForm.of(model, groups.is_shared)


def sent_form(workload: Workload, received: ModelForm, partition_id: int) -> ModelForm:
    """Form of what a client sends back: what it trains of what it received."""
    own = {n: s for n, s in received.weights.items() if workload.is_trained(n, partition_id)}
    if len(own) == len(received.weights):
        return received
    return ModelForm(own, tuple(name for name in received.trainable if name in own))


def clients_evaluate(strategy: Strategy, workload: Workload, groups: ParameterGroups) -> bool:
    """Whether the models that count are with the clients, so that only they can judge them."""
    if not strategy.asks_clients:
        return False
    return not strategy.has_global_model or any(map(workload.is_judged, groups.personal))
