"""A model's parameters as one vector, and the SGD step on it.

Drawing weights on a sphere, projecting onto a ball, measuring a displacement and taking a step are
then one operation each, however many layers there are. The step is written out because the first
`torch.optim` object in a process imports the compiler, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

NamedTensors = Mapping[str, torch.Tensor]


class ParameterVector:
    """Trainable parameters of a model, in `model.parameters()` order, as views of one vector.

    From construction on the parameters and their gradients are views of `values` and
    `gradient` (both float, shape (d,)); writing to either changes the other. Gradients accumulate
    until `zero_gradient`.
    """

    def __init__(self, model: nn.Module, chosen: Callable[[str], bool] = lambda name: True) -> None:
        """Take over the parameters that gradients reach and whose name is `chosen`."""
        self.model = model
        names_of: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if parameter.requires_grad and chosen(name):
                names_of.setdefault(id(parameter), []).append(name)
        self._parameters = parameters = [p for p in model.parameters() if id(p) in names_of]
        assert parameters, "a model without parameters cannot be trained"
        self._spans: dict[str, tuple[int, int, torch.Size]] = {}
        with torch.no_grad():
            self.values = torch.cat([p.detach().reshape(-1) for p in parameters])
            self.gradient = torch.zeros_like(self.values)
            start = 0
            for parameter in parameters:
                end = start + parameter.numel()
                parameter.data = self.values[start:end].view(parameter.shape)
                parameter.grad = self.gradient[start:end].view(parameter.shape)
                for name in names_of[id(parameter)]:
                    self._spans[name] = (start, end, parameter.shape)
                start = end

    def named(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """`vector`, shape (d,), cut into views by the parameters' names.

        A parameter that the model holds under two names is there under both.
        """
        return {
            name: vector[start:end].view(shape) for name, (start, end, shape) in self._spans.items()
        }

    def vector(self, named: NamedTensors) -> torch.Tensor:
        """The inverse of `named`: one vector, shape (d,), on the parameters' device."""
        vector = torch.empty_like(self.values)
        for name, (start, end, _) in self._spans.items():
            vector[start:end] = named[name].reshape(-1)
        return vector

    def mask(self, module_types: tuple[type[nn.Module], ...]) -> torch.Tensor:
        """A vector with 0 at the own parameters of modules of these types and 1 elsewhere."""
        inside = {
            id(parameter)
            for module in self.model.modules()
            if isinstance(module, module_types)
            for parameter in module.parameters(recurse=False)
        }
        parts = [
            torch.full((p.numel(),), 0.0 if id(p) in inside else 1.0, device=self.values.device)
            for p in self._parameters
        ]
        return torch.cat(parts)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside the block no gradient is computed for the parameters."""
        for parameter in self._parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self._parameters:
                parameter.requires_grad_(True)

    def collect_gradient(self) -> None:
        """Copy gradients that were put in place of the views into `gradient`, and restore those."""
        start = 0
        for parameter in self._parameters:
            end = start + parameter.numel()
            if parameter.grad is not None:
                self.gradient[start:end].view(parameter.shape).copy_(parameter.grad)
            start = end
        self.restore_gradient()

    def restore_gradient(self) -> None:
        """Make the parameters' gradients views of `gradient` again; what they held is lost."""
        start = 0
        for parameter in self._parameters:
            end = start + parameter.numel()
            parameter.grad = self.gradient[start:end].view(parameter.shape)
            start = end

    def drop_gradients(self) -> None:
        """Let the next backward pass leave each parameter a gradient of its own, not added up.

        `gradient` holds nothing of it until `collect_gradient` or `restore_gradient`.
        """
        for parameter in self._parameters:
            parameter.grad = None

    def step_apart_(
        self,
        velocity: torch.Tensor | None,
        *,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        """`sgd_step_` by the gradients after `drop_gradients`: the same bits, without a sum.

        Args:
            velocity: As of `sgd_step_`, shape (d,).
            learning_rate: Step size.
            momentum: Heavy-ball factor.
            weight_decay: L2 factor.
        """
        start = 0
        for parameter in self._parameters:
            end = start + parameter.numel()
            gradient, values = parameter.grad, parameter.detach()
            sgd_step_(
                values,
                torch.zeros_like(values) if gradient is None else gradient,
                None if velocity is None else velocity[start:end].view(parameter.shape),
                learning_rate=learning_rate,
                momentum=momentum,
                weight_decay=weight_decay,
            )
            start = end

    def zero_gradient(self) -> None:
        """Set the gradient to zero, in place."""
        self.gradient.zero_()

    def load(self, weights: NamedTensors) -> None:
        """Copy entries of a state dict (parameters and buffers) into the model, in place.

        What is not among them stays as it is.
        """
        unknown = self.model.load_state_dict(dict(weights), strict=False).unexpected_keys
        assert not unknown, f"the model has no {unknown}"

    def train(self) -> nn.Module:
        """Put the model into training mode, but for layers whose parameters are all held fixed."""
        for module in self.model.train().modules():
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()
        return self.model


def trainable_names(model: nn.Module) -> tuple[str, ...]:
    """Names in the state dict that gradients reach, all names of a shared parameter included."""
    named = model.named_parameters(remove_duplicate=False)
    return tuple(name for name, parameter in named if parameter.requires_grad)


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the model's state dict on the CPU, in its own order."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


class UnlistedBuffers:
    """What a model holds in buffers and its state dict does not tell, as it was at first.

    That is buffers with ``persistent=False``, those that were None, and those that came later.
    """

    def __init__(self, model: nn.Module) -> None:
        """Copy them."""
        self._first = [
            (module, dict(module._buffers), _unlisted(module)) for module in model.modules()
        ]

    def restore(self) -> None:
        """Give them back: the same tensors, with the first values."""
        for module, buffers, values in self._first:
            for name in module._buffers.keys() - buffers.keys():
                delattr(module, name)
            for name, buffer in buffers.items():
                if buffer is None or name in values:
                    setattr(module, name, buffer)
                if buffer is not None and name in values:
                    buffer.detach().copy_(values[name])


def _unlisted(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of a module's own buffers that its state dict leaves out."""
    return {
        name: buffer.detach().clone()
        for name, buffer in module._buffers.items()
        if buffer is not None and name in module._non_persistent_buffers_set
    }


@torch.no_grad()
def sgd_step_(
    values: torch.Tensor,
    gradient: torch.Tensor,
    velocity: torch.Tensor | None,
    *,
    learning_rate: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> None:
    """One step of SGD with heavy-ball momentum, in place; the same bits as `torch.optim.SGD`.

    ``g = gradient + weight_decay * values; velocity = momentum * velocity + g;
    values -= learning_rate * velocity``

    Args:
        values: What is stepped, any shape.
        gradient: Its gradient, the same shape; left as it is.
        velocity: Zeros at first, the same shape; None without momentum.
        learning_rate: Step size.
        momentum: Heavy-ball factor.
        weight_decay: L2 factor.
    """
    step = gradient.add(values, alpha=weight_decay) if weight_decay else gradient
    if momentum:
        assert velocity is not None, "momentum needs a velocity"
        step = velocity.mul_(momentum).add_(step)
    values.add_(step, alpha=-learning_rate)


@torch.no_grad()
def adam_step_(
    values: torch.Tensor,
    gradient: torch.Tensor,
    first_moment: torch.Tensor,
    second_moment: torch.Tensor,
    step: int,
    *,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """One step of Adam with L2 decay, in place; what `torch.optim.Adam` computes.

    D. P. Kingma and J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, Algorithm 1.

    Args:
        values: What is stepped, any shape.
        gradient: Its gradient, the same shape; left as it is.
        first_moment: Zeros at first, the same shape (m).
        second_moment: Likewise (v).
        step: Number of this step, from 1 (t).
        learning_rate: Step size (alpha).
        betas: Decay of the moments.
        epsilon: Added to the root of the second moment.
        weight_decay: L2 factor, added to the gradient.
    """
    told = gradient.add(values, alpha=weight_decay) if weight_decay else gradient
    first_moment.lerp_(told, 1 - betas[0])
    second_moment.mul_(betas[1]).addcmul_(told, told, value=1 - betas[1])
    scale = learning_rate / (1 - betas[0] ** step)
    root = second_moment.sqrt().div_((1 - betas[1] ** step) ** 0.5).add_(epsilon)
    values.addcdiv_(first_moment, root, value=-scale)


@torch.no_grad()
def project_onto_ball_(
    values: torch.Tensor, centre: torch.Tensor, radius: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Project `values` onto the ball of `radius` around `centre`, in place and without a sync.

    Args:
        values: Shape (d,).
        centre: Shape (d,).
        radius: Euclidean radius (rho).

    Returns:
        The distance from the centre before projection, and whether it was beyond the radius; both
        scalar tensors.
    """
    offset = values - centre
    distance = torch.linalg.vector_norm(offset)
    outside = distance > radius
    torch.where(outside, centre + offset * (radius / distance), values, out=values)
    return distance, outside
