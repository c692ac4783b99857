"""Networks that make one loss of several: MELTR's loss transformer, and what it is compared with.

D. Ko, J. Choi, H. K. Choi, K.-W. On, B. Roh, H. J. Kim, "MELTR: Meta Loss Transformer for Learning
to Fine-tune Video Foundation Models", CVPR 2023, arXiv:2303.13009, section 4.1.

All parameters that belong to one task bear its name, so that clients with different sets of tasks
can exchange them, and none is known by its place.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from core.parameters import ParameterVector, adam_step_
from core.seeds import torch_generator

_FIT_BATCH, _FIT_RATE = 64, 1e-3


class LossNetwork(nn.Module):
    """A learned loss, R^k -> R, of the losses of any of its tasks (phi)."""

    @abstractmethod
    def forward(self, losses: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:
        """The learned loss.

        Args:
            losses: Batch means, shape (..., k).
            tasks: The task of each, in the same order; some or all of the network's.

        Returns:
            Shape (...).
        """

    def _check(self, losses: torch.Tensor, tasks: Sequence[str]) -> None:
        assert losses.shape[-1:] == (len(tasks),) != (0,), (
            "one loss for each task, and one at least"
        )


class LossTransformer(LossNetwork):
    """MELTR(l; phi): scale and task embeddings, self-attention, the mean over tasks, a scalar.

    ``token_t = SE(l_t) + TE(t)`` with ``SE(l) = W2 ReLU(W1 l + b1) + b2`` shared by all tasks.
    There is no network of task embeddings alone: without the losses as its input, the gradient of
    what it makes of them would be zero exactly. Without dropout, so that hypergradients are
    deterministic. The attention is differentiated twice, which only PyTorch's plain implementation
    can be.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        width: int = 256,
        scale_width: int = 128,
        feedforward: int = 512,
        heads: int = 8,
        task_embeddings: bool = True,
    ) -> None:
        """Draw the parameters from torch's global generator.

        Args:
            tasks: Their names (T + 1), without dots.
            width: Of a token (d).
            scale_width: Hidden units of the scale embedding (h1).
            feedforward: Hidden units of the encoder layer (f).
            heads: Attention heads.
            task_embeddings: Whether tokens tell their task; without, all tasks are alike.

        Raises:
            ValueError: `width` is no multiple of `heads`, or names cannot be told apart.
        """
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} must be a multiple of the {heads} heads")
        _refuse_unfit_names(tasks)
        self.scale_embedding = nn.Sequential(
            nn.Linear(1, scale_width), nn.ReLU(), nn.Linear(scale_width, width)
        )
        self.task_embedding = nn.ParameterDict(
            {task: nn.Parameter(torch.randn(width)) for task in tasks} if task_embeddings else {}
        )
        self.encoder = nn.TransformerEncoderLayer(
            width, heads, dim_feedforward=feedforward, dropout=0.0, batch_first=True
        )
        self.head = nn.Linear(width, 1, bias=False)

    def forward(self, losses: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:
        """The learned loss; see `LossNetwork.forward`."""
        self._check(losses, tasks)
        tokens = self.scale_embedding(losses.unsqueeze(-1))
        if len(self.task_embedding):
            tokens = tokens + torch.stack([self.task_embedding[task] for task in tasks])
        with sdpa_kernel(SDPBackend.MATH):
            encoded = self.encoder(tokens.reshape(-1, *tokens.shape[-2:]))
        learned: torch.Tensor = self.head(encoded.mean(dim=1))
        return learned.reshape(losses.shape[:-1])


class LinearLoss(LossNetwork):
    """The sum of c_t l_t, with one learned coefficient per task; at its start the plain sum."""

    def __init__(self, tasks: Sequence[str]) -> None:
        """Set all coefficients to one.

        Args:
            tasks: Their names, without dots.

        Raises:
            ValueError: Names cannot be told apart.
        """
        super().__init__()
        _refuse_unfit_names(tasks)
        self.coefficient = nn.ParameterDict({task: nn.Parameter(torch.ones(())) for task in tasks})

    def forward(self, losses: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:
        """The learned loss; see `LossNetwork.forward`."""
        self._check(losses, tasks)
        coefficients = torch.stack([self.coefficient[task] for task in tasks])
        return (coefficients * losses).sum(dim=-1)


def sensitivities(
    network: LossNetwork, losses: torch.Tensor, tasks: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The learned loss and how much it answers to each task's: d MELTR / d l_t (section 5.2).

    Returns:
        Shape () and (k,), both without a graph.
    """
    point = losses.detach().requires_grad_()
    with torch.enable_grad():
        learned = network(point, tasks)
        (partials,) = torch.autograd.grad(learned, point)
    return learned.detach(), partials


def fit_to_sum(
    network: LossNetwork, tasks: Sequence[str], *, steps: int, most: float, seed: int
) -> None:
    """Fit a network to the plain sum of the losses, in place, so that training starts as with it.

    Adam on the squared difference over losses drawn uniformly from [0, `most`], all tasks at once
    and one at a time left out.

    Args:
        network: Freshly drawn.
        tasks: All of its tasks.
        steps: How many steps.
        most: Largest loss that is drawn.
        seed: Of the losses.
    """
    generator = torch_generator(seed)
    parameters = ParameterVector(network)
    first, second = (torch.zeros_like(parameters.values) for _ in range(2))
    for step in range(steps):
        drop = step % (len(tasks) + 1) - 1 if len(tasks) > 1 else -1
        chosen = [task for place, task in enumerate(tasks) if place != drop]
        losses = most * torch.rand((_FIT_BATCH, len(chosen)), generator=generator)
        parameters.zero_gradient()
        (network(losses, chosen) - losses.sum(dim=1)).square().mean().backward()
        rate = _FIT_RATE * min(1.0, 2 * (1 - step / steps))
        adam_step_(
            parameters.values, parameters.gradient, first, second, step + 1, learning_rate=rate
        )


def _refuse_unfit_names(tasks: Sequence[str]) -> None:
    """Names become those of parameters, which may have no dots nor be a container's own."""
    for task in tasks:
        if not task or "." in task or hasattr(nn.ParameterDict(), task):
            raise ValueError(f"task {task!r} cannot name a parameter; give it another name")
    if len(set(tasks)) < len(tasks):
        raise ValueError(f"tasks {', '.join(tasks)} name one twice; leave one out")
