"""What of a workload's model a client exchanges with the server, and who judges it."""

from __future__ import annotations

from torch import nn

from core.groups import ParameterGroups
from core.workload import Workload
from strategies.base import ModelForm, Strategy


def received_form(workload: Workload, model: nn.Module) -> ModelForm:
    """Form of what every client receives: all that is shared."""
    return ModelForm.of(model, workload.groups(model).is_shared)


def sent_form(workload: Workload, model: nn.Module, partition_id: int) -> ModelForm:
    """Form of what a client sends back: what it trains of that."""
    groups = workload.groups(model)
    return ModelForm.of(
        model, lambda entry: groups.is_shared(entry) and workload.is_trained(entry, partition_id)
    )


def clients_evaluate(strategy: Strategy, workload: Workload, groups: ParameterGroups) -> bool:
    """Whether the models that count are with the clients, so that only they can judge them."""
    if not strategy.asks_clients:
        return False
    return not strategy.has_global_model or any(map(workload.is_judged, groups.personal))
