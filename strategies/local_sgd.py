"""The one loop of gradient training on real images that every averaging method shares.

A method adds what its paper adds as a correction to the gradient, and never copies the loop. Where
the run has a mechanism, the gradient of a step is the mechanism's and the correction, which is made
of what the server knows, is added after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from core.config import RunConfig, TrainConfig
from core.examples import Examples
from core.parameters import ParameterVector, sgd_step_
from core.seeds import torch_generator
from privacy.mechanism import GaussianSums
from strategies.base import Workload

Correction = Callable[[torch.Tensor], torch.Tensor]
"""From the weights as a vector, shape (d,), to what is added to their gradient."""


def num_steps(num_examples: int, config: RunConfig) -> int:
    """Local steps of one round (tau_k), all that a method may take from the size of a client.

    Minibatches, of which the last may be smaller, times local epochs; with noised gradients the
    constant ``privacy.steps``.
    """
    if config.privacy.is_example_level:
        return config.privacy.steps
    return -(-num_examples // config.train.batch_size) * config.train.local_epochs


def train_locally(
    parameters: ParameterVector,
    examples: Examples,
    workload: Workload,
    config: TrainConfig,
    *,
    seed: int,
    mechanism: GaussianSums | None = None,
    correction: Correction | None = None,
    count_step: Callable[[], None] = lambda: None,
) -> float:
    """Minibatch SGD on the mean loss, in place.

    Args:
        parameters: The model, holding the weights to start from.
        examples: The data; an epoch visits each once, in batches of `config.batch_size`.
        workload: Gives the loss.
        config: The optimizer and the number of epochs. Momentum starts at zero.
        seed: Seed of the shuffles.
        mechanism: Samples and noises in place of shuffles and epochs; its sums are divided by
            `config.batch_size`.
        correction: Added to the gradient of every step.
        count_step: Called after every step.

    Returns:
        The mean loss over all examples visited, before each of their steps; NaN with a mechanism,
        which tells none.
    """
    parameters.model.train()
    velocity = torch.zeros_like(parameters.values) if config.momentum else None
    total = torch.zeros((), dtype=torch.float64, device=parameters.values.device)

    def losses(batch: torch.Tensor) -> torch.Tensor:
        return workload.loss(parameters.model, examples.inputs[batch], examples.labels[batch])

    # Adding a gradient to zeros first costs a network with many parameters and few images.
    apart = mechanism is None and correction is None
    if mechanism is None:
        steps = _plain_gradients(parameters, examples, losses, config, seed, apart=apart)
    else:
        steps = _noised_gradients(parameters, examples, losses, config, mechanism)
    sizes = {
        "learning_rate": config.learning_rate,
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
    }
    try:
        for loss_sum in steps:
            if apart:
                parameters.step_apart_(velocity, **sizes)
            else:
                if correction is not None:
                    parameters.gradient.add_(correction(parameters.values))
                sgd_step_(parameters.values, parameters.gradient, velocity, **sizes)
            total += loss_sum
            count_step()
    finally:
        if apart:
            parameters.restore_gradient()
    if mechanism is not None:
        return math.nan
    return float(total) / (config.local_epochs * len(examples))


_Losses = Callable[[torch.Tensor], torch.Tensor]
"""From indices of examples, shape (B,), to their losses, shape (B,)."""


def _plain_gradients(
    parameters: ParameterVector,
    examples: Examples,
    losses: _Losses,
    config: TrainConfig,
    seed: int,
    *,
    apart: bool,
) -> Iterator[torch.Tensor]:
    """Leave the mean gradient of each batch in `parameters`, shuffled anew each epoch.

    With `apart` each parameter has its own, and `parameters.gradient` nothing.

    Yields:
        The sum of the batch's losses.
    """
    shuffler = torch_generator(seed)
    for _ in range(config.local_epochs):
        order = torch.randperm(len(examples), generator=shuffler).to(examples.labels.device)
        for batch in order.split(config.batch_size):
            if apart:
                parameters.drop_gradients()
            else:
                parameters.zero_gradient()
            found = losses(batch)
            found.mean().backward()
            yield found.detach().sum()


def _noised_gradients(
    parameters: ParameterVector,
    examples: Examples,
    losses: _Losses,
    config: TrainConfig,
    mechanism: GaussianSums,
) -> Iterator[torch.Tensor]:
    """Leave the mechanism's gradient of each step in `parameters`; yields zeros."""
    from privacy.dp_optimizer import ExampleGradients  # imports Opacus

    gradients = ExampleGradients(mechanism, parameters, config.batch_size)
    nothing = parameters.values.new_zeros(())
    with gradients.attached():
        for batch in mechanism.batches(len(examples)):
            gradients.fill(batch.to(examples.labels.device), losses)
            yield nothing
