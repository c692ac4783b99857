"""Opacus's DPOptimizer with our noise: per-example gradients in, one noised mean gradient out.

A. Yousefpour et al., "Opacus: User-Friendly Differential Privacy Library in PyTorch", 2021,
arXiv:2109.12298. Opacus clips and sums; the noise is that of `privacy.mechanism`. Imported where it
is used, for it takes seconds.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from opacus.grad_sample import GradSampleHooks, register_grad_sampler
from opacus.grad_sample.conv import compute_conv_grad_sample
from opacus.optimizers.optimizer import DPOptimizer
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from opacus.validators import ModuleValidator
from torch import nn

from core.parameters import ParameterVector
from models.winograd import WinogradConv2d
from privacy.mechanism import GaussianSums
from privacy.noise import NoiseSource

PHYSICAL_BATCH = 256
"""Examples per backward pass; bounds memory and changes no sum but by rounding."""


class PoissonSampler(UniformWithReplacementSampler):  # type: ignore[misc]
    """Opacus's Poisson sampler on numbers that nobody can guess.

    Each example is in each batch on its own, with the same probability.
    """

    def __init__(
        self, num_examples: int, sampling_rate: float, steps: int, source: NoiseSource
    ) -> None:
        super().__init__(num_samples=num_examples, sample_rate=sampling_rate, steps=steps)
        self._source = source

    def __iter__(self) -> Iterator[list[int]]:
        """Batches of indices, ascending; some may be empty."""
        for _ in range(self.steps):
            taken = self._source.uniform(self.num_samples) < self.sample_rate
            yield taken.nonzero().flatten().tolist()


class _NoisedOptimizer(DPOptimizer):  # type: ignore[misc]
    """Steps nothing: `pre_step` leaves the noised mean of clipped gradients in each ``grad``."""

    def __init__(
        self, mechanism: GaussianSums, parameters: list[nn.Parameter], denominator: float
    ) -> None:
        super().__init__(
            torch.optim.SGD(parameters, lr=1.0),
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.clip,
            expected_batch_size=denominator,
        )
        self._mechanism = mechanism

    def clip_and_accumulate(self) -> None:
        """Opacus's, without examples whose gradient is not finite."""
        samples = self.grad_samples
        if samples and len(samples[0]):
            squares = torch.stack([g.flatten(1).square().sum(dim=1) for g in samples]).sum(dim=0)
            spoiled = ~torch.isfinite(squares)
            for sample in samples:
                sample.masked_fill_(spoiled.view(-1, *[1] * (sample.dim() - 1)), 0.0)
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """One vector of noise for all parameters, from the mechanism's source."""
        sums = [parameter.summed_grad for parameter in self.params]
        noised = self._mechanism.release(torch.cat([total.reshape(-1) for total in sums]))
        parts = noised.split([total.numel() for total in sums])
        for parameter, part in zip(self.params, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def scale_grad(self) -> None:
        """Divide by the constant; physical batches of one step are one batch."""
        for parameter in self.params:
            parameter.grad /= self.expected_batch_size


@register_grad_sampler(WinogradConv2d)  # type: ignore[untyped-decorator]
def _winograd_grad_sample(
    layer: WinogradConv2d, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[nn.Parameter, torch.Tensor]:
    """Opacus's for a convolution, which it would not take a subclass for."""
    plain = copy.copy(layer)
    plain.__class__ = nn.Conv2d  # type: ignore[assignment]
    gradients: dict[nn.Parameter, torch.Tensor] = compute_conv_grad_sample(
        plain, activations, backprops
    )
    return gradients


_NOTES = ("activations", "max_batch_len")
"""What Opacus notes at a layer from its forward to its backward pass."""


class _ChannelsFirstHooks(GradSampleHooks):  # type: ignore[misc]
    """Hands Opacus what it takes for granted: images that lie channels first in memory.

    It cuts the inputs of a convolution into patches by strides that it does not look up, and would
    read other pixels of images that lie channels last, without an error.
    """

    def capture_activations_hook(
        self, module: nn.Module, forward_input: list[torch.Tensor], forward_output: torch.Tensor
    ) -> None:
        """Keep what the layer saw."""
        inputs = [tensor.contiguous() for tensor in forward_input]
        super().capture_activations_hook(module, inputs, forward_output)


class ExampleGradients:
    """DP-SGD's gradient for one model: every example's own, clipped, summed, noised.

    M. Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, arXiv:1607.00133,
    Algorithm 1; batches are Poisson samples and the denominator is a constant.
    """

    def __init__(
        self, mechanism: GaussianSums, parameters: ParameterVector, denominator: float
    ) -> None:
        """Take the noised gradient of `parameters`, divided by `denominator`."""
        self._parameters = parameters
        self._trained = [p for p in parameters.model.parameters() if p.requires_grad]
        self._optimizer = _NoisedOptimizer(mechanism, self._trained, denominator)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside the block the model's backward passes keep per-example gradients."""
        modules = list(self._parameters.model.modules())
        own = {(module, name) for module in modules for name in _NOTES if name in module.__dict__}
        hooks = _ChannelsFirstHooks(self._parameters.model, loss_reduction="sum", strict=True)
        try:
            with warnings.catch_warnings():
                # Images need no gradient, which is what torch's hooks warn of.
                warnings.filterwarnings("ignore", "Full backward hook is firing")
                yield
        finally:
            hooks.cleanup()
            # A backward pass that failed leaves what the layers saw, for the next one to take.
            for module in modules:
                for name in _NOTES:
                    if (module, name) not in own:
                        module.__dict__.pop(name, None)
            for parameter in self._trained:
                parameter.__dict__.pop("summed_grad", None)
            self._parameters.zero_gradient()

    def fill(self, batch: torch.Tensor, losses: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Put one step's noised gradient into ``parameters.gradient``.

        Args:
            batch: Indices, int64, shape (B,); B may be 0, and the step is noise alone.
            losses: From indices, shape (b,), to the loss of each example, shape (b,).
        """
        optimizer = self._optimizer
        optimizer.zero_grad()
        *before, last = batch.split(PHYSICAL_BATCH)
        for part in before:
            losses(part).sum().backward()
            optimizer.signal_skip_step(True)
            optimizer.pre_step()
            optimizer.zero_grad()
        if len(last):
            losses(last).sum().backward()
        else:
            for parameter in self._trained:
                _set_grad_sample(parameter)
        optimizer.signal_skip_step(False)
        optimizer.pre_step()
        self._parameters.collect_gradient()


class SummedGradient:
    """A DPOptimizer that is handed the sum of clipped gradients instead of each example's."""

    def __init__(self, mechanism: GaussianSums, like: torch.Tensor, denominator: float) -> None:
        """Noise sums of the form of `like`, divided by `denominator`."""
        self._parameter = nn.Parameter(torch.zeros_like(like))
        self._optimizer = _HandedSum(mechanism, [self._parameter], denominator)

    def mean(self, total: torch.Tensor) -> torch.Tensor:
        """The noised mean gradient."""
        optimizer, parameter = self._optimizer, self._parameter
        optimizer.zero_grad()
        _set_grad_sample(parameter)
        optimizer.total = total
        optimizer.pre_step()
        assert parameter.grad is not None, "pre_step leaves a gradient"
        return parameter.grad.clone()


class _HandedSum(_NoisedOptimizer):
    """Takes `total`, a sum of gradients that are clipped already."""

    total: torch.Tensor

    def clip_and_accumulate(self) -> None:
        """Nothing is left to clip."""
        (parameter,) = self.params
        parameter.summed_grad = self.total.detach().clone()


def _set_grad_sample(parameter: nn.Parameter) -> None:
    """Per-example gradients of no example, in Opacus's place for them."""
    parameter.__dict__["grad_sample"] = parameter.new_zeros((0, *parameter.shape))


def unfit_layers(model: nn.Module) -> list[str]:
    """Why per-example gradients of `model` do not exist, as Opacus tells; empty where they do."""
    return [str(error) for error in ModuleValidator.validate(model, strict=False)]
