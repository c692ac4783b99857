"""MELTR on images: weights follow a learned loss of several tasks' losses, which learns in turn.

D. Ko et al., "MELTR: Meta Loss Transformer for Learning to Fine-tune Video Foundation Models", CVPR
2023, arXiv:2303.13009, Algorithm 1; the image workload is that of its supplement, section H.

==================  ==================================================================
``classification``  the primary task: cross-entropy of the image's class
``rotation``        cross-entropy of which of four quarter turns the image was given, by a
                    head of its own
``mixup``           cross-entropy of both classes of two images that were mixed, each by its
                    share, drawn uniformly once a batch
``random-labels``   cross-entropy of a class drawn at random once for each image, by the
                    primary head: planted to do harm
==================  ==================================================================

A local step moves the weights (w: backbone and heads) along the gradient of MELTR(l; phi). Every
``meltr.update-every`` steps phi takes one step of Adam along a hypergradient
(`workloads.meta.hypergradients`) of the primary loss on a batch of its own, held out of the
client's training images, or drawn from its last ten training batches. Adam's moments start each
round anew.

In a federation w is averaged by training images and phi by the images its own batches come from. An
auxiliary task's head and parameters in phi are exchanged by its clients alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import ClassVar, cast

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from core.config import RunConfig, choice, flag, number, text
from core.errors import ConfigError, Problem
from core.examples import Examples, ExampleSet, labelled
from core.groups import EntryWeights, is_in, split_names
from core.parameters import adam_step_
from core.seeds import derive_seed, seeded_globals, torch_generator
from core.workload import Objective, Offer
from models.registry import embedding_of, make_model
from workloads.images import LabelledImageWorkload
from workloads.meta.hypergradients import (
    META_OPTIMIZERS,
    Bilevel,
    HypergradientSettings,
    MetaOptimizer,
    Passes,
    Weights,
    clip_by_norm,
    hypergradient,
)
from workloads.meta.loss_networks import (
    LinearLoss,
    LossNetwork,
    LossTransformer,
    fit_to_sum,
    sensitivities,
)

PRIMARY = "classification"
AUXILIARY = ("rotation", "mixup", "random-labels")
QUARTER_TURNS = 4
REPLAYED_BATCHES = 10

_LEARNS = ("meltr.optimizer", tuple(name for name in META_OPTIMIZERS if name != "multi-task"))
_IMPLICIT = ("meltr.optimizer", ("aid-fp", "aid-cg", "stocbio"))
_SERIES = ("meltr.optimizer", ("aid-fp", "stocbio"))
_TRANSFORMER = ("meltr.loss", ("transformer", "scale-only"))


def _are_tasks(value: str) -> bool:
    sets = [split_names(part) for part in value.split(";")]
    return all(set(one) <= set(AUXILIARY) and len(set(one)) == len(one) for one in sets)


@dataclass(frozen=True, kw_only=True, slots=True)
class MeltrOptions:
    """MELTR's own keys."""

    tasks: str = text(
        "rotation,mixup",
        "auxiliary tasks besides the primary classification; sets separated by semicolons are "
        "dealt to the clients in turn",
        f"names out of {', '.join(AUXILIARY)}, separated by commas; sets of them by semicolons",
        _are_tasks,
    )
    optimizer: str = choice(
        "aid-fp-lite",
        "how the learned loss learns; multi-task takes the plain sum, and learns none",
        META_OPTIMIZERS,
    )
    loss: str = choice(
        "transformer",
        "the learned loss; scale-only is the transformer without task embeddings",
        ["transformer", "scale-only", "linear"],
        read_if=_LEARNS,
    )
    width: int = number(256, "width of a token (d)", least=1, most=8_192, read_if=_TRANSFORMER)
    scale_width: int = number(
        128, "hidden units of the scale embedding (h1)", least=1, most=8_192, read_if=_TRANSFORMER
    )
    feedforward: int = number(
        512, "hidden units of the encoder layer (f)", least=1, most=65_536, read_if=_TRANSFORMER
    )
    heads: int = number(8, "attention heads", least=1, most=256, read_if=_TRANSFORMER)
    fit_steps: int = number(
        100,
        "steps in which the transformer is fitted to the plain sum before training, so that it "
        "starts there; 0 starts from random weights, as in the paper",
        least=0,
        most=100_000,
        read_if=_TRANSFORMER,
    )
    update_every: int = number(
        3, "local steps for each step of the learned loss (K)", least=1, read_if=_LEARNS
    )
    learning_rate: float = number(
        1e-4, "learning rate of the learned loss (beta)", above=0, read_if=_LEARNS
    )
    weight_decay: float = number(0.0, "its weight decay", least=0, read_if=_LEARNS)
    clip: float = number(
        50.0, "largest norm of its gradient; 0 clips none", least=0, read_if=_LEARNS
    )
    regularisation: float = number(
        0.1,
        "weight of the distance between learned loss and plain sum in the primary loss (gamma)",
        least=0,
        read_if=_LEARNS,
    )
    direct_term: bool = flag(
        False,
        "add that term's own gradient in the learned loss's parameters, which the paper leaves out",
    )
    meta_batch: str = choice(
        "holdout",
        "where the learned loss's own batches come from: images held out of the client's, or two "
        f"of its last {REPLAYED_BATCHES} training batches",
        ["holdout", "replay"],
        read_if=_LEARNS,
    )
    meta_fraction: float = number(
        0.1,
        "share of a client's images that is held out",
        above=0,
        below=1,
        read_if=("meltr.meta-batch", ("holdout",)),
    )
    steps: int = number(
        3,
        "products with the Hessian that approximate its inverse (i, Q)",
        least=1,
        read_if=_IMPLICIT,
    )
    step_size: float = number(0.1, "step of Neumann's series (eta)", above=0, read_if=_SERIES)
    damping: float = number(
        1e-2, "added to the Hessian's diagonal", least=0, read_if=("meltr.optimizer", ("aid-cg",))
    )

    @property
    def learns(self) -> bool:
        """Whether there is a learned loss that learns."""
        return self.optimizer != "multi-task"

    @property
    def task_sets(self) -> list[tuple[str, ...]]:
        """All tasks of each set, the primary one first."""
        return [(PRIMARY, *split_names(part)) for part in self.tasks.split(";")]

    @property
    def all_tasks(self) -> tuple[str, ...]:
        """All tasks of all sets, the primary one first."""
        return tuple(dict.fromkeys(task for one in self.task_sets for task in one))


@dataclass(frozen=True, slots=True)
class TaskBatch:
    """One batch, and what its tasks draw; their losses depend on nothing else but weights.

    Attributes:
        inputs: Shape (B, C, H, W).
        labels: int64, shape (B,).
        turns: Quarter turns of each image, int64, shape (B,).
        partners: For mixup, which image each is mixed with, int64, shape (B,).
        share: For mixup, the share of the image itself, shape ().
        random_labels: int64, shape (B,).
        tasks: Which losses are wanted, in order.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    turns: torch.Tensor
    partners: torch.Tensor
    share: torch.Tensor
    random_labels: torch.Tensor
    tasks: tuple[str, ...]


class MeltrModel(nn.Module):
    """Backbone and heads (``w``) beside the learned loss (``phi``)."""

    def __init__(self, backbone: nn.Module, tasks: Sequence[str], phi: LossNetwork | None) -> None:
        """Put the parts together; the heads are drawn from torch's global generator.

        Args:
            backbone: Gives logits, and features as `models.registry.EmbeddingModel`.
            tasks: All tasks.
            phi: The learned loss; None for the plain sum.
        """
        super().__init__()
        features = embedding_of(backbone).classifier.in_features
        heads = {"rotation": nn.Linear(features, QUARTER_TURNS)} if "rotation" in tasks else {}
        self.w = nn.ModuleDict({"backbone": backbone, "heads": nn.ModuleDict(heads)})
        if phi is not None:
            self.phi = phi.requires_grad_(False)

    def forward(self, x: torch.Tensor | TaskBatch) -> torch.Tensor:
        """Logits of images, shape (B, C), or the losses of a batch's tasks, shape (k,)."""
        backbone = self.w["backbone"]
        if isinstance(x, torch.Tensor):
            logits: torch.Tensor = backbone(x)
            return logits
        return torch.stack([self._loss(task, x) for task in x.tasks])

    def _loss(self, task: str, batch: TaskBatch) -> torch.Tensor:
        backbone = self.w["backbone"]
        if task == PRIMARY:
            return functional.cross_entropy(backbone(batch.inputs), batch.labels)
        if task == "random-labels":
            return functional.cross_entropy(backbone(batch.inputs), batch.random_labels)
        if task == "mixup":
            share, others = batch.share, batch.inputs[batch.partners]
            logits = backbone(share * batch.inputs + (1 - share) * others)
            own = functional.cross_entropy(logits, batch.labels)
            other = functional.cross_entropy(logits, batch.labels[batch.partners])
            return share * own + (1 - share) * other
        assert task == "rotation", task
        heads = cast(nn.ModuleDict, self.w["heads"])
        features = embedding_of(backbone).embed(turned(batch.inputs, batch.turns))
        return functional.cross_entropy(heads["rotation"](features), batch.turns)


def turned(inputs: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Square images, shape (B, C, S, S), each by its number of quarter turns, shape (B,)."""
    out = inputs
    for count in range(1, QUARTER_TURNS):
        whole = torch.rot90(inputs, count, (2, 3))
        out = torch.where((turns == count).view(-1, 1, 1, 1), whole, out)
    return out


@dataclass(frozen=True)
class Meltr(LabelledImageWorkload):
    """Image classification with auxiliary tasks under a learned loss; see the module's text."""

    name = "meltr"
    sections: ClassVar[Mapping[str, type]] = MappingProxyType({"meltr": MeltrOptions})

    @property
    def options(self) -> MeltrOptions:
        """Its own section of keys."""
        return self.config.section(MeltrOptions)

    @classmethod
    def lacks(cls, config: RunConfig) -> Mapping[Offer, str]:
        """Losses of single examples, and where clients' tasks differ, replies of one form."""
        options = config.section(MeltrOptions)
        learned = "and moves phi by gradients of whole batches" if options.learns else ""
        lacks: dict[Offer, str] = {
            "image-loss": "makes one loss of several tasks', which labelled images alone lack",
            "per-example-gradients": "makes one loss of means over a batch, of which no example "
            f"has a part of its own, {learned}".rstrip(", "),
        }
        if len(set(options.task_sets)) > 1:
            lacks["equal-forms"] = (
                f"gives clients different tasks (meltr.tasks={options.tasks}), so that they send "
                "different entries"
            )
        return lacks

    @classmethod
    def problems(cls, config: RunConfig) -> Iterable[Problem]:
        """Sizes of the transformer, and keys that do not go together."""
        options = config.section(MeltrOptions)
        if options.learns and options.loss != "linear" and options.width % options.heads:
            rule = f"must be a multiple of meltr.heads={options.heads}"
            yield Problem("meltr.width", str(options.width), rule)
        if options.direct_term and not (options.learns and options.regularisation):
            rule = "without meltr.regularisation there is no such term; leave it out"
            if not options.learns:
                rule = "is read only where a loss is learned, not with multi-task; leave it out"
            yield Problem("meltr.direct-term", "true", rule)

    def make_model(self) -> nn.Module:
        """The architecture that ``model.name`` names, with heads and the learned loss.

        Raises:
            ConfigError: It has no features, or images are not square and are to be turned.
        """
        height, width = self.input_shape[1:]
        tasks = self.options.all_tasks
        if "rotation" in tasks and height != width:
            rule = f"turns images by quarters, and these are {height}x{width}; leave rotation out"
            raise ConfigError([Problem("meltr.tasks", self.options.tasks, rule)])
        backbone = make_model(self.config.model, self.input_shape, self.num_classes)
        seed = int(torch.randint(2**31, ()))
        phi = _initial_loss(self.options, tasks, seed) if self.options.learns else None
        return MeltrModel(backbone, tasks, phi)

    def objective(
        self, model: nn.Module, examples: ExampleSet, *, seed: int, partition_id: int | None
    ) -> Objective:
        """Algorithm 1 on a client's images."""
        return MeltrObjective(self, cast(MeltrModel, model), labelled(examples), seed, partition_id)

    def tasks_of(self, partition_id: int | None) -> tuple[str, ...]:
        """The tasks of a client, the primary one first; all of them in one place."""
        sets = self.options.task_sets
        return self.options.all_tasks if partition_id is None else sets[partition_id % len(sets)]

    @property
    def learns(self) -> bool:
        """Whether phi moves."""
        return self.options.learns and "phi" not in split_names(self.config.groups.frozen)

    def num_meta_examples(self, num_examples: int) -> int:
        """Images held out of `num_examples` for the learned loss; one is too few to hold any."""
        if not self.learns or self.options.meta_batch == "replay" or num_examples < 2:
            return 0
        wanted = round(self.options.meta_fraction * num_examples)
        return min(max(1, wanted), num_examples - 1)

    def num_training_examples(self, num_examples: int) -> int:
        """What is not held out."""
        return num_examples - self.num_meta_examples(num_examples)

    def weights(self, num_examples: int) -> EntryWeights:
        """W by training images, phi by those that its batches come from."""
        training = self.num_training_examples(num_examples)
        if not self.learns or self.options.meta_batch == "replay":
            return EntryWeights(training)
        return EntryWeights(training, {"phi": self.num_meta_examples(num_examples)})

    def is_trained(self, entry: str, partition_id: int) -> bool:
        """Whatever belongs to no task, or to one of the client's."""
        tasks = self.tasks_of(partition_id)
        others = [task for task in self.options.all_tasks if task not in tasks]
        return not any(is_in(entry, f"{place}.{task}") for task in others for place in _BY_TASK)

    def is_moved(self, entry: str) -> bool:
        """The learned loss."""
        return self.learns and is_in(entry, "phi")

    def is_judged(self, entry: str) -> bool:
        """The backbone alone: neither the learned loss nor heads of auxiliary tasks."""
        return is_in(entry, "w.backbone")

    def measures(self, partition_id: int) -> tuple[str, ...]:
        """Means over the round's steps of the losses and what the learned loss makes of them."""
        return measured(self.tasks_of(partition_id))


_BY_TASK = ("w.heads", "phi.task_embedding", "phi.coefficient")
"""Where entries bear the name of a task."""


def measured(tasks: Sequence[str]) -> tuple[str, ...]:
    """Names of what an objective on these tasks measures."""
    return (
        *(f"loss/{task}" for task in tasks),
        *(f"sensitivity/{task}" for task in tasks),
        "learned_loss_gap",
        "meta_updates",
    )


@lru_cache(maxsize=4)
def _fitted(options: MeltrOptions, tasks: tuple[str, ...], seed: int) -> Mapping[str, torch.Tensor]:
    """A transformer fitted to the plain sum, which takes a second and is asked for repeatedly."""
    with seeded_globals(seed):
        network = _transformer(options, tasks)
    largest = 2 * torch.log(torch.tensor(10.0)).item()
    fit_to_sum(network, tasks, steps=options.fit_steps, most=largest, seed=seed)
    return network.state_dict()


def _transformer(options: MeltrOptions, tasks: Sequence[str]) -> LossTransformer:
    return LossTransformer(
        tasks,
        width=options.width,
        scale_width=options.scale_width,
        feedforward=options.feedforward,
        heads=options.heads,
        task_embeddings=options.loss == "transformer",
    )


def _initial_loss(options: MeltrOptions, tasks: tuple[str, ...], seed: int) -> LossNetwork:
    if options.loss == "linear":
        return LinearLoss(tasks)
    network = _transformer(options, tasks)
    network.load_state_dict(dict(_fitted(options, tasks, seed)))
    return network


class MeltrObjective(Objective):
    """Algorithm 1 for one round on one client's images.

    Attributes:
        passes: What its hypergradients have cost.
    """

    def __init__(
        self,
        workload: Meltr,
        model: MeltrModel,
        examples: Examples,
        seed: int,
        partition_id: int | None,
    ) -> None:
        self._workload, self._model, self._options = workload, model, workload.options
        self._tasks = workload.tasks_of(partition_id)
        whose = "all" if partition_id is None else partition_id
        own = derive_seed(workload.config.seed, "meltr", whose)
        device, count = examples.labels.device, len(examples)
        order = torch.randperm(count, generator=torch_generator(derive_seed(own, "held-out")))
        held = workload.num_meta_examples(count)
        self._meta_pool = order[:held].to(device)
        self._training_pool = order[held:].sort().values.to(device)
        labels = torch.randint(
            workload.num_classes, (count,), generator=torch_generator(derive_seed(own, "labels"))
        )
        self._examples, self._random_labels = examples, labels.to(device)
        self._generator = torch_generator(seed)
        self._recent: deque[torch.Tensor] = deque(maxlen=REPLAYED_BATCHES)
        self._num_steps = self._num_updates = 0
        self._sums = torch.zeros(2, len(self._tasks), dtype=torch.float64, device=device)
        self._gaps = torch.zeros((), dtype=torch.float64, device=device)
        self._last: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        self.passes = Passes()
        frozen = workload.groups(model).frozen if workload.learns else frozenset()
        self._phi: dict[str, torch.Tensor] = {}
        if workload.learns:
            self._phi = {
                name: value
                for name, value in model.phi.named_parameters()
                if f"phi.{name}" not in frozen
                and (partition_id is None or workload.is_trained(f"phi.{name}", partition_id))
            }
        self._moments = {
            name: (torch.zeros_like(value), torch.zeros_like(value))
            for name, value in self._phi.items()
        }

    @property
    def num_examples(self) -> int:
        """Images that are not held out."""
        return len(self._training_pool)

    @property
    def device(self) -> torch.device:
        """The images'."""
        return self._training_pool.device

    def losses(self, batch: torch.Tensor) -> torch.Tensor:
        """MELTR(l; phi) of a batch, shape ().

        Its gradient in w is made of the partial derivatives in the losses, which are measured on
        the way.
        """
        found: torch.Tensor = self._model(self._task_batch(self._training_pool[batch]))
        if not self._options.learns:
            learned, partials = found.sum().detach(), torch.ones_like(found)
        else:
            learned, partials = sensitivities(self._model.phi, found, self._tasks)
        self._last = found.detach(), partials, learned
        weighted = (partials * found).sum()
        return weighted + (learned - weighted.detach())

    def before_step(self, batch: torch.Tensor) -> None:
        """Under itd phi moves before the weights do, by what their step would do."""
        due = self._num_steps % self._options.update_every == 0
        if self._options.optimizer == "itd" and due:
            self._update_phi(batch)

    def after_step(self, batch: torch.Tensor) -> None:
        """Count, measure, and move phi if it is due."""
        assert self._last is not None
        losses, partials, learned = self._last
        self._sums += torch.stack([losses, partials]).double()
        self._gaps += (learned - losses.sum()).abs().double()
        self._num_steps += 1
        self._recent.append(batch)
        due = self._num_steps % self._options.update_every == 0
        if self._options.optimizer != "itd" and due:
            self._update_phi(batch)

    def metrics(self) -> Mapping[str, float]:
        """Means over the steps, and the number of phi's steps."""
        count = max(1, self._num_steps)
        values = [*(self._sums / count).flatten().tolist(), float(self._gaps) / count]
        return dict(zip(measured(self._tasks), [*values, float(self._num_updates)], strict=True))

    @property
    def bilevel(self) -> Bilevel:
        """The two levels, on batches that `training_batch` draws."""
        options = self._options
        return Bilevel(self._losses_at, self._combine, options.regularisation, options.direct_term)

    @property
    def phi(self) -> Mapping[str, torch.Tensor]:
        """What of the learned loss moves, by its own names; empty where nothing does."""
        return self._phi

    def weights(self) -> dict[str, torch.Tensor]:
        """W as it is now."""
        return {
            f"w.{name}": value
            for name, value in self._model.w.named_parameters()
            if value.requires_grad
        }

    def _update_phi(self, batch: torch.Tensor) -> None:
        """One step of Adam on phi along the hypergradient."""
        options = self._options
        replays = options.meta_batch == "replay"
        if not self._phi or not (len(self._recent) if replays else len(self._meta_pool)):
            return
        settings = HypergradientSettings(
            optimizer=cast(MetaOptimizer, options.optimizer),
            steps=options.steps,
            step_size=options.step_size,
            damping=options.damping,
            inner_learning_rate=self._workload.config.train.learning_rate,
        )
        found = hypergradient(
            settings,
            self.bilevel,
            self.weights(),
            self._phi,
            (lambda: self._task_batch(self._training_pool[batch]))
            if options.optimizer == "itd"
            else self.training_batch,
            self._meta_batch,
        )
        self.passes += found.passes
        gradient = clip_by_norm(found.gradient, options.clip) if options.clip else found.gradient
        self._num_updates += 1
        for name, value in self._phi.items():
            adam_step_(
                value.detach(),
                gradient[name],
                *self._moments[name],
                self._num_updates,
                learning_rate=options.learning_rate,
                weight_decay=options.weight_decay,
            )

    def _losses_at(self, weights: Weights, batch: TaskBatch) -> torch.Tensor:
        """Losses at other weights; running statistics stay as they are."""
        buffers = {name: value.clone() for name, value in self._model.named_buffers()}
        return cast(torch.Tensor, functional_call(self._model, {**weights, **buffers}, (batch,)))

    def _combine(self, phi: Weights, losses: torch.Tensor) -> torch.Tensor:
        network = self._model.phi
        return cast(torch.Tensor, functional_call(network, dict(phi), (losses, self._tasks)))

    def training_batch(self) -> TaskBatch:
        """A batch for the learned loss: drawn afresh, or one of the last that w was trained on."""
        if self._options.meta_batch == "replay":
            return self._replayed()
        return self._task_batch(self._drawn(self._training_pool))

    def _meta_batch(self) -> TaskBatch:
        """A batch for the primary loss: of held-out images, or one of the last."""
        if self._options.meta_batch == "replay":
            return self._replayed()
        return self._task_batch(self._drawn(self._meta_pool))

    def _replayed(self) -> TaskBatch:
        chosen = int(torch.randint(len(self._recent), (), generator=self._generator))
        return self._task_batch(self._training_pool[self._recent[chosen]])

    def _drawn(self, pool: torch.Tensor) -> torch.Tensor:
        """As many as a training batch has, without replacement."""
        size = min(self._workload.config.train.batch_size, len(pool))
        order = torch.randperm(len(pool), generator=self._generator)[:size]
        return pool[order.to(pool.device)]

    def _task_batch(self, rows: torch.Tensor) -> TaskBatch:
        """The examples of these rows, and this batch's draws."""
        count, generator, device = len(rows), self._generator, rows.device
        return TaskBatch(
            self._examples.inputs[rows],
            self._examples.labels[rows],
            torch.randint(QUARTER_TURNS, (count,), generator=generator).to(device),
            torch.randperm(count, generator=generator).to(device),
            torch.rand((), generator=generator).to(device),
            self._random_labels[rows],
            self._tasks,
        )
