"""The one loop of gradient training on real data that every averaging method shares.

A method adds what its paper adds as a correction to the gradient, and never copies the loop. Where
the run has a mechanism, the gradient of a step is the mechanism's and the correction, which is made
of what the server knows, is added after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

from core.config import RunConfig, TrainConfig
from core.parameters import ParameterVector, adam_step_, sgd_step_
from core.seeds import torch_generator
from core.workload import Objective
from privacy.mechanism import GaussianSums

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
    objective: Objective,
    config: TrainConfig,
    *,
    seed: int,
    personal: ParameterVector | None = None,
    mechanism: GaussianSums | None = None,
    correction: Correction | None = None,
    count_step: Callable[[], None] = lambda: None,
) -> float:
    """Minibatch steps on the mean loss, in place.

    Args:
        parameters: The model, holding the weights to start from.
        objective: Gives the loss; an epoch visits each of its examples once, in batches of
            `config.batch_size`.
        config: The optimizer and the number of epochs. Momentum and moments start at zero.
        seed: Seed of the shuffles.
        personal: Parameters of the same model that are stepped by the same optimizer, and that no
            correction concerns.
        mechanism: Samples and noises in place of shuffles and epochs; its sums are divided by
            `config.batch_size`.
        correction: Added to the gradient of every step.
        count_step: Called after every step.

    Returns:
        The mean loss over all examples visited, before each of their steps; NaN with a mechanism,
        which tells none.
    """
    assert mechanism is None or personal is None, "what nothing noises must not be trained"
    parameters.train()
    vectors = [parameters] if personal is None else [parameters, personal]
    steppers = [stepper(config, vector.values) for vector in vectors]
    total = torch.zeros((), dtype=torch.float64, device=parameters.values.device)
    # Adding a gradient to zeros first costs a network with many parameters and few images.
    apart = mechanism is None and correction is None and config.optimizer == "sgd"
    if mechanism is None:
        steps = _plain_gradients(vectors, objective, config, seed, apart=apart)
    else:
        steps = _noised_gradients(parameters, objective, config, mechanism)
    try:
        for loss_sum, batch in steps:
            if correction is not None:
                parameters.gradient.add_(correction(parameters.values))
            for vector, step in zip(vectors, steppers, strict=True):
                if apart:
                    vector.step_apart_(step.velocity, **_sgd_sizes(config))
                else:
                    step(vector.values, vector.gradient)
            objective.after_step(batch)
            total += loss_sum
            count_step()
    finally:
        if apart:
            for vector in vectors:
                vector.restore_gradient()
    if mechanism is not None:
        return math.nan
    return float(total) / (config.local_epochs * objective.num_examples)


class Stepper(Protocol):
    """One optimizer's steps on one vector, with what it remembers of the steps before."""

    @property
    def velocity(self) -> torch.Tensor | None:
        """Momentum of SGD, if any."""

    def __call__(self, values: torch.Tensor, gradient: torch.Tensor) -> None:
        """Step `values`, shape (d,), in place."""


class _SGD:
    def __init__(self, config: TrainConfig, values: torch.Tensor) -> None:
        self.velocity = torch.zeros_like(values) if config.momentum else None
        self._sizes = _sgd_sizes(config)

    def __call__(self, values: torch.Tensor, gradient: torch.Tensor) -> None:
        sgd_step_(values, gradient, self.velocity, **self._sizes)


class _Adam:
    velocity = None

    def __init__(self, config: TrainConfig, values: torch.Tensor) -> None:
        self._config, self._step = config, 0
        self._first, self._second = torch.zeros_like(values), torch.zeros_like(values)

    def __call__(self, values: torch.Tensor, gradient: torch.Tensor) -> None:
        config, decay = self._config, self._config.weight_decay
        self._step += 1
        if config.optimizer == "adamw":
            with torch.no_grad():
                values.mul_(1 - config.learning_rate * decay)
            decay = 0.0
        adam_step_(
            values,
            gradient,
            self._first,
            self._second,
            self._step,
            learning_rate=config.learning_rate,
            weight_decay=decay,
        )


def stepper(config: TrainConfig, values: torch.Tensor) -> Stepper:
    """The configured optimizer at its start, for a vector like `values`."""
    return _SGD(config, values) if config.optimizer == "sgd" else _Adam(config, values)


def _sgd_sizes(config: TrainConfig) -> dict[str, float]:
    return {
        "learning_rate": config.learning_rate,
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
    }


def _plain_gradients(
    vectors: Sequence[ParameterVector],
    objective: Objective,
    config: TrainConfig,
    seed: int,
    *,
    apart: bool,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Leave the gradient of each batch in `vectors`, shuffled anew each epoch.

    With `apart` each parameter has its own, and `ParameterVector.gradient` nothing.

    Yields:
        The sum of the batch's losses, and the batch.
    """
    shuffler = torch_generator(seed)
    for _ in range(config.local_epochs):
        order = torch.randperm(objective.num_examples, generator=shuffler).to(objective.device)
        for batch in order.split(config.batch_size):
            objective.before_step(batch)
            for vector in vectors:
                if apart:
                    vector.drop_gradients()
                else:
                    vector.zero_gradient()
            found = objective.losses(batch)
            found.mean().backward()
            loss = found.detach()
            del found  # and its graph, while the next one is built
            yield loss.sum() if loss.ndim else loss * len(batch), batch


def _noised_gradients(
    parameters: ParameterVector,
    objective: Objective,
    config: TrainConfig,
    mechanism: GaussianSums,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Leave the mechanism's gradient of each step in `parameters`; yields zeros and the batch."""
    from privacy.dp_optimizer import ExampleGradients  # imports Opacus

    gradients = ExampleGradients(mechanism, parameters, config.batch_size)
    nothing = parameters.values.new_zeros(())
    with gradients.attached():
        for sampled in mechanism.batches(objective.num_examples):
            batch = sampled.to(objective.device)
            objective.before_step(batch)
            gradients.fill(batch, objective.losses)
            yield nothing, batch
