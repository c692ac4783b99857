"""What somebody who saw a run's transcript would believe of each canary. No coin is looked at.

The attacker is the one that differential privacy promises to withstand: it saw every message, and
knows the configuration with its seed, all examples but the coins, and so the networks drawn, but
neither noise nor samples. What a client sent is explained as a sum over the examples that it may
hold: each has a part that is known but for its coefficient, and a canary's score is its coefficient
in the ridge regression of what was sent on all these parts, added up over the rounds.

=====================  ==================================  ====================================
sent                   what is explained                   part of an example
=====================  ==================================  ====================================
weights                the change of the weights           minus its gradient, clipped as the run
                                                           claims, where the client's steps were on
                                                           average: up to half-way along the change
a change of them or    the same, up to a factor            minus its gradient, clipped likewise, at
its direction                                              the weights that the client was sent
images of FedDM        their mean embedding, at networks   its embedding at these networks
                       drawn as the client drew them
images of mechanism    the images less what they started   minus its matching gradient at these
``gradient``           from                                networks, clipped likewise
=====================  ==================================  ====================================

The regression is the inner product of the paper's white-box audit, less what other examples explain
of it. Images have a second score, the least pixel distance of the canary to one of its class.

Which scores a run has is fixed by its method. They are weaker than they could be where a client
takes many different samples: an example then has a coefficient for each step, and here one for all.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from core.examples import Examples, labelled
from core.parameters import NamedTensors, ParameterVector
from core.seeds import derive_seed, torch_generator
from core.wire import Record
from distill.matching import MatchingConfig
from distill.noised_matching import example_gradients
from models.registry import embedding_of
from privacy.audit import Scores
from server.preparation import Preparation
from server.transcript import Exchange, Transcript
from strategies.base import ClientTask, arrays_of, model_seed
from strategies.feddm import FedDM
from strategies.local_sgd import num_steps
from strategies.mosaic import MosaicStrategy, decode, image_workload

MOST_NETWORKS = 24
"""Networks that an embedding or a matching gradient is taken at; further ones add little."""

MOST_NUMBERS = 50_000_000
"""Numbers in one client's parts; of own examples that would exceed it only the sum is explained."""

_FLAT = 10.0
"""Prior standard deviation of what all examples have in common, in those of a coefficient."""

_LEAST_RATIO = 0.01
"""Prior variance of an example that takes part for certain: its part is known to first order."""

_SIGNS: Mapping[str, float] = {"": 1.0, "delta/": 1.0, "direction/": -1.0}
"""How arrays of these prefixes point, as updates of the weights."""

WEIGHTS, EMBEDDING, GRADIENT, PIXELS = (
    "share in the weights' change",
    "share in the images' embedding",
    "share in the images' change",
    "pixel distance to the nearest image",
)


def score_names(preparation: Preparation) -> tuple[str, ...]:
    """The scores of a run, fixed by its method alone; empty where nothing that it sends has one."""
    strategy, privacy = preparation.strategy, preparation.config.privacy
    if isinstance(strategy, FedDM):
        return (GRADIENT if privacy.mechanism == "gradient" else EMBEDDING, PIXELS)
    if isinstance(strategy, MosaicStrategy):
        return (PIXELS,)
    return (WEIGHTS,) if strategy.client_half == "gradient-steps" else ()


def score_canaries(preparation: Preparation, transcript: Transcript) -> dict[str, Scores]:
    """Every score of every canary, each shape (m,), over all rounds of a transcript.

    Raises:
        RecordError: The transcript is not whole.
    """
    canaries, config = preparation.canaries, preparation.config
    assert canaries is not None, "a run without canaries has none to score"
    scores = {name: np.zeros(len(canaries)) for name in score_names(preparation)}
    if PIXELS in scores:
        scores[PIXELS] -= np.inf
    attacker = _Attacker(preparation)
    for number in range(1, config.rounds + 1):
        exchange = transcript.read(number)
        for partition_id, reply in exchange.replies.items():
            mine = np.flatnonzero(canaries.clients == partition_id)
            if len(mine) == 0:
                continue
            for name, total in scores.items():
                found = attacker.score(name, exchange, partition_id, reply, mine)
                total[mine] = (
                    np.maximum(total[mine], found) if name == PIXELS else total[mine] + found
                )
    return scores


class _Attacker:
    def __init__(self, preparation: Preparation) -> None:
        assert preparation.canaries is not None
        self._preparation = preparation
        self._workload = image_workload(preparation.workload)
        # Frozen parts are never sent: they are those of the initial model, here as anywhere.
        initial = preparation.workload.build_model(model_seed(preparation.config))
        self._parameters = ParameterVector(initial)
        canaries = torch.from_numpy(preparation.canaries.indices)
        self._canaries = labelled(preparation.workload.examples(canaries))
        self._others: dict[int, Examples] = {}
        self._last: dict[int, torch.Tensor] = {}

    def score(
        self,
        name: str,
        exchange: Exchange,
        partition_id: int,
        reply: NamedTensors,
        mine: np.ndarray,
    ) -> Scores:
        """One score of the canaries `mine` of one client, from its reply."""
        chosen = torch.from_numpy(mine)
        canaries = Examples(self._canaries.inputs[chosen], self._canaries.labels[chosen])
        if name == WEIGHTS:
            found = self._by_weights(exchange, reply, canaries, self._own(partition_id))
        elif name == PIXELS:
            found = self._by_pixels(reply, canaries)
        else:
            found = self._by_class(name, exchange, partition_id, reply, canaries)
        return np.asarray(found.cpu(), dtype=np.float64)

    def _own(self, partition_id: int) -> Examples:
        """The client's examples that are no canaries."""
        if partition_id not in self._others:
            canaries = self._preparation.canaries
            own = self._preparation.partition_without.clients[partition_id]
            assert canaries is not None
            indices = own[~np.isin(own, canaries.indices)]
            known = self._preparation.workload.examples(torch.from_numpy(indices))
            self._others[partition_id] = labelled(known)
        return self._others[partition_id]

    def _sent(self, exchange: Exchange) -> NamedTensors:
        """What the server sent of the model."""
        entries = self._parameters.model.state_dict()
        return {name: value for name, value in exchange.sent.items() if name in entries}

    def _clipped(self, parts: torch.Tensor) -> torch.Tensor:
        """Parts, shape (n, d), as the run claims to clip them."""
        privacy = self._preparation.config.privacy
        if not privacy.is_example_level:
            return parts
        norms = parts.norm(dim=1, keepdim=True).clamp(min=1e-12)
        clipped: torch.Tensor = parts * (privacy.clip / norms).clamp(max=1.0)
        return clipped

    def _by_weights(
        self, exchange: Exchange, reply: NamedTensors, canaries: Examples, own: Examples
    ) -> torch.Tensor:
        parameters = self._parameters
        parameters.load(self._sent(exchange))
        change = self._change(exchange.sent, reply)
        if any(name in reply for name in parameters.named(parameters.values)):
            steps = num_steps(len(own), self._preparation.config)
            parameters.values.add_(change, alpha=_middle(steps))
        most = max(1, MOST_NUMBERS // len(change) - len(canaries) - 1)
        parts, total = [], torch.zeros_like(change)
        for rows in torch.arange(len(own)).split(most):
            few = Examples(own.inputs[rows], own.labels[rows])
            parts.append(self._clipped(-self._gradients(few)))
            total += parts[-1].sum(dim=0)
            if len(own) > most:
                parts.clear()
        others = torch.cat(parts) if parts else total.new_zeros((0, len(total)))
        return self._explain(self._clipped(-self._gradients(canaries)), others, total, change)

    def _explain(
        self,
        canaries: torch.Tensor,
        others: torch.Tensor,
        total: torch.Tensor,
        explained: torch.Tensor,
    ) -> torch.Tensor:
        """Coefficients of the canaries' parts, shape (n,).

        Another example takes part for certain and only how often is unknown; the variance of that,
        over a canary's, is the prior of its deviation from what all have in common.
        """
        privacy = self._preparation.config.privacy
        rate = privacy.sampling_rate if privacy.is_example_level else 1.0
        ratio = (1 - rate) / ((1 - rate) / 2 + rate / 4)
        common = _FLAT * (total + canaries.sum(dim=0) / 2)
        parts = torch.cat([canaries, max(ratio, _LEAST_RATIO) ** 0.5 * others, common[None]])
        return coefficients(parts, explained)[: len(canaries)]

    def _change(self, sent: NamedTensors, reply: NamedTensors) -> torch.Tensor:
        """What a client did to the weights, up to a factor, shape (d,)."""
        parameters = self._parameters
        change = {}
        for name, like in parameters.named(parameters.values).items():
            prefix = next(p for p in _SIGNS if f"{p}{name}" in reply)
            array = reply[f"{prefix}{name}"].to(like)
            change[name] = _SIGNS[prefix] * (array if prefix else array - sent[name].to(like))
        return parameters.vector(change)

    def _gradients(self, examples: Examples) -> torch.Tensor:
        """The gradient of each example's loss at the parameters, shape (n, d)."""
        parameters, found = self._parameters, []
        parameters.model.train()
        for i in range(len(examples)):
            parameters.zero_gradient()
            row = slice(i, i + 1)
            self._workload.loss(
                parameters.model, examples.inputs[row], examples.labels[row]
            ).sum().backward()
            found.append(parameters.gradient.clone())
        return (
            torch.stack(found)
            if found
            else parameters.values.new_zeros((0, len(parameters.values)))
        )

    def _by_pixels(self, reply: NamedTensors, canaries: Examples) -> torch.Tensor:
        images, labels = self._images(reply)
        found = torch.full((len(canaries),), -torch.inf, device=images.device)
        for i, label in enumerate(canaries.labels.tolist()):
            same = images[labels == label].flatten(1)
            if len(same):
                found[i] = -(same - canaries.inputs[i].flatten()).norm(dim=1).min()
        return found

    def _images(self, reply: NamedTensors) -> tuple[torch.Tensor, torch.Tensor]:
        device = self._preparation.workload.device
        images = decode(reply["images"].numpy(), self._workload).to(device)
        return images, reply["labels"].to(device)

    def _by_class(
        self,
        name: str,
        exchange: Exchange,
        partition_id: int,
        reply: NamedTensors,
        canaries: Examples,
    ) -> torch.Tensor:
        """Class by class: what an example of one class goes into is its class's images alone."""
        own = self._own(partition_id)
        images, labels = self._images(reply)
        task = self._task(exchange, partition_id)
        start = self._start(task, images)
        networks = self._networks(task)
        found = torch.zeros(len(canaries), device=images.device, dtype=torch.float64)
        for label in canaries.labels.unique().tolist():
            members = torch.nonzero(labels == label).flatten()
            mine = torch.nonzero(canaries.labels == label).flatten()
            if len(members) == 0:
                continue
            known = torch.cat([canaries.inputs[mine], own.inputs[own.labels == label]])
            if name == GRADIENT:
                steps = self._preparation.config.section(MatchingConfig).iterations
                middle = torch.lerp(start[members], images[members], _middle(steps))
                parts = self._matching_gradients(networks, known, middle)
                explained = (start[members] - images[members]).flatten()
            else:
                parts, explained = self._embeddings(networks, known, images[members])
            others = parts[len(mine) :]
            found[mine] = self._explain(parts[: len(mine)], others, others.sum(dim=0), explained)
        self._last[partition_id] = images
        return found

    def _task(self, exchange: Exchange, partition_id: int) -> ClientTask:
        """The client's work as far as it is known."""
        preparation, parameters = self._preparation, self._parameters
        own = self._own(partition_id)
        parameters.load(self._sent(exchange))
        return ClientTask(
            round=exchange.round,
            partition_id=partition_id,
            seed=derive_seed(preparation.config.seed, "client", exchange.round, partition_id),
            received=Record(arrays_of(exchange.sent)),
            examples=own,
            state=None,
            parameters=parameters,
            workload=preparation.workload,
            objective=preparation.workload.objective(
                parameters.model, own, seed=0, partition_id=partition_id
            ),
            device=preparation.workload.device,
            count_step=lambda: None,
        )

    def _start(self, task: ClientTask, images: torch.Tensor) -> torch.Tensor:
        """What a private client's images start from: noise of a known seed, or its last images."""
        warm = self._preparation.config.section(MatchingConfig).warm_start
        if warm and task.partition_id in self._last:
            return self._last[task.partition_id]
        generator = torch_generator(derive_seed(task.seed, "start"))
        return torch.randn(images.shape, generator=generator).to(images.device)

    def _networks(self, task: ClientTask) -> list[tuple[torch.Tensor, float]]:
        """Networks that the client drew, evenly spaced, and how far a step at each moves an image.

        With momentum an early step goes on moving it.
        """
        strategy, config = self._preparation.strategy, self._preparation.config
        assert isinstance(strategy, FedDM)
        number = config.section(MatchingConfig).iterations
        momentum = config.section(MatchingConfig).momentum
        if config.privacy.mechanism == "feature":
            number = config.privacy.steps
        draw = strategy.draws(task)
        found = []
        kept = set(np.linspace(0, number - 1, min(number, MOST_NETWORKS)).astype(int).tolist())
        for step in range(number):
            draw(self._parameters.values)
            if step in kept:
                reach = (1 - momentum ** (number - step)) / (1 - momentum)
                found.append((self._parameters.values.clone(), reach))
        return found

    def _matching_gradients(
        self,
        networks: list[tuple[torch.Tensor, float]],
        real: torch.Tensor,
        synthetic: torch.Tensor,
    ) -> torch.Tensor:
        """Of each real image, summed over networks, shape (n, d)."""
        config = self._preparation.config.section(MatchingConfig)
        model = embedding_of(self._parameters.model)
        total = real.new_zeros((len(real), synthetic.numel()))
        with self._parameters.frozen():
            for weights, reach in networks:
                self._parameters.values.copy_(weights)
                gradients = example_gradients(
                    model,
                    real,
                    synthetic,
                    logit_weight=config.logit_weight,
                    augment=lambda images: images,
                )
                total += reach * self._clipped(torch.cat([part.flatten(1) for part in gradients]))
        return total

    @torch.no_grad()
    def _embeddings(
        self,
        networks: list[tuple[torch.Tensor, float]],
        real: torch.Tensor,
        synthetic: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each real image, shape (n, d), and the mean of the synthetic ones, shape (d,)."""
        model = embedding_of(self._parameters.model)
        parts: list[torch.Tensor] = []
        means: list[torch.Tensor] = []
        for weights, _ in networks:
            self._parameters.values.copy_(weights)
            for images, found in ((real, parts), (synthetic, means)):
                features = model.embed(images)
                found.append(torch.cat([features, model.classifier(features)], dim=1))
        return torch.cat(parts, dim=1), torch.cat(means, dim=1).mean(dim=0)


def _middle(steps: int) -> float:
    """How far along a change its steps were taken on average, from 0 to 1/2."""
    return (steps - 1) / (2 * steps)


def coefficients(parts: torch.Tensor, explained: torch.Tensor) -> torch.Tensor:
    """Ridge regression of a vector on the rows of `parts`, its strength of the largest evidence.

    The evidence is that of coefficients and remainder drawn from N(0, tau^2) and N(0, s^2), with s
    at its best for each ratio s / tau.

    Args:
        parts: Shape (n, d).
        explained: Shape (d,).

    Returns:
        Shape (n,), float64.
    """
    rows = parts.to(torch.float64)
    scale = rows.norm(dim=1).max().clamp(min=1e-12)
    rows, target = rows / scale, explained.to(torch.float64)
    size = len(target)
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    values = values.clamp(min=0)
    projected = vectors.T @ (rows @ target)
    kept = values > 1e-9 * values.max()
    squares = torch.where(kept, projected.square() / values.clamp(min=1e-30), 0.0)
    left = (target.square().sum() - squares.sum()).clamp(min=0)
    best, chosen = -torch.inf, 1.0
    for ridge in torch.logspace(-10, 4, 57, dtype=torch.float64).tolist():
        spread = (values / ridge + 1)[kept]
        variance = ((squares[kept] / spread).sum() + left) / size
        evidence = -0.5 * (spread.log().sum() + size * torch.log(variance.clamp(min=1e-300)))
        if evidence > best:
            best, chosen = float(evidence), ridge
    found: torch.Tensor = vectors @ (projected / (values + chosen))
    return found
