"""The one loop of gradient training on real images that every averaging method shares.

A method adds what its paper adds as a correction to the gradient, and never copies the loop.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from core.config import TrainConfig
from core.examples import Examples
from core.parameters import ParameterVector, sgd_step_
from core.seeds import torch_generator
from strategies.base import Workload

Correction = Callable[[torch.Tensor], torch.Tensor]
"""From the weights as a vector, shape (d,), to what is added to their gradient."""


def num_steps(num_examples: int, config: TrainConfig) -> int:
    """Steps of one round: minibatches, the last may be smaller, times local epochs."""
    return -(-num_examples // config.batch_size) * config.local_epochs


def train_locally(
    parameters: ParameterVector,
    examples: Examples,
    workload: Workload,
    config: TrainConfig,
    *,
    seed: int,
    correction: Correction | None = None,
    count_step: Callable[[], None] = lambda: None,
) -> float:
    """Minibatch SGD on the mean loss, shuffled anew each epoch, in place.

    Args:
        parameters: The model, holding the weights to start from.
        examples: The data; an epoch visits each once, in batches of `config.batch_size`.
        workload: Gives the loss.
        config: The optimizer and the number of epochs. Momentum starts at zero.
        seed: Seed of the shuffles.
        correction: Added to the gradient of every step.
        count_step: Called after every step.

    Returns:
        The mean loss over all examples visited, before each of their steps.
    """
    model = parameters.model.train()
    shuffler = torch_generator(seed)
    velocity = torch.zeros_like(parameters.values) if config.momentum else None
    total = torch.zeros((), dtype=torch.float64, device=parameters.values.device)
    for _ in range(config.local_epochs):
        order = torch.randperm(len(examples), generator=shuffler).to(examples.labels.device)
        for batch in order.split(config.batch_size):
            parameters.zero_gradient()
            losses = workload.loss(model, examples.inputs[batch], examples.labels[batch])
            losses.mean().backward()
            if correction is not None:
                parameters.gradient.add_(correction(parameters.values))
            sgd_step_(
                parameters.values,
                parameters.gradient,
                velocity,
                learning_rate=config.learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
            )
            total += losses.detach().sum()
            count_step()
    return float(total) / (config.local_epochs * len(examples))
