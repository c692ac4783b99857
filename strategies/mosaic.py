"""What methods that send images share: how many, their form on the wire, and the server's training.

The server half is FedDM's: Equation 5.9 as a training set, minimised inside the rho-ball of
Equation 5.3. `strategies.feddm` fills the mosaic with matched images, `strategies.real_images`
with raw ones. ``mosaic.max-client-share`` bounds what the images of one client weigh in it.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, cast

import numpy as np
import torch

from core.config import choice, flag, number
from core.examples import Examples, labelled
from core.parameters import NamedTensors, project_onto_ball_, sgd_step_, weights_of
from core.seeds import torch_generator
from core.wire import Array, ArraySpec, Metric, RecordSpec
from core.workload import ImageWorkload, Offer, Workload
from strategies.base import (
    ClientShape,
    ClientTask,
    ClientUpdate,
    CollectingStrategy,
    Mosaic,
    Reply,
    RoundOutcome,
    ServerState,
    ServerTask,
)

PIXEL_LIMIT = 100.0
"""Largest magnitude of a synthetic pixel that is believed, as network input.

Real ones lie within some 3 of zero. Without a limit a single client could overflow the server's
training, whatever its share of the loss.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class MosaicConfig:
    """Keys of every method whose clients send images."""

    images_per_class: int = number(
        10, "images a client sends of each class it holds (ipc)", least=1
    )
    min_examples: int = number(
        1, "a class of which a client holds fewer real images is not sent", least=1
    )
    image_dtype: str = choice(
        "float32",
        "type of pixels on the wire; uint8 rounds and clips them",
        ["float32", "float16", "uint8"],
    )
    weighting: str = choice(
        "uniform",
        "weight of each image in the server's loss: equal, or by the real images it "
        "stands for, which tells the server the client's class counts (noised ones in a private "
        "run)",
        ["uniform", "counts"],
    )
    max_client_share: float = number(
        1.0,
        "largest share of the weight in the server's loss that one client's images may have; 1 "
        "caps nothing, and with a share of 1/K or less all K clients that replied weigh the same",
        above=0,
        most=1,
    )
    rho: float = number(
        5.0,
        "radius around the current weights within which networks are drawn and the server trains",
        above=0,
    )
    ball: bool = flag(True, "project the server's weights into the rho-ball after each step")
    learning_rate: float = number(0.01, "SGD learning rate of the server (eta_s)", above=0)
    momentum: float = number(0.9, "SGD momentum of the server", least=0, below=1)
    weight_decay: float = number(5e-4, "SGD weight decay of the server", least=0)
    batch_size: int = number(256, "synthetic images per step of the server", least=1)
    epochs: int = number(500, "server passes over all images received", least=1, most=1_000_000)
    lr_decay: str = choice(
        "none", "constant learning rate, or a tenth from half-way on", ["none", "half"]
    )


@dataclass(frozen=True, slots=True)
class MadeImages:
    """One client's images before they are encoded.

    Attributes:
        images: float32, shape (M, C, H, W), grouped by class in label order.
        labels: int64, shape (M,).
        metrics: What the client reports.
        kept: What it keeps.
        class_counts: Noised images of each class, float32, shape (C,); None where there are none.
    """

    images: torch.Tensor
    labels: torch.Tensor
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    kept: NamedTensors | None = None
    class_counts: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class ReceivedSet:
    """One client's images as the server trains on them.

    Attributes:
        inputs: float32, shape (M, C, H, W).
        labels: int64, shape (M,).
        weights: float32, shape (M,): real images that each stands for; ones if uniform.
        partition_id: Who sent them.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    partition_id: int


def images_per_class(class_counts: Sequence[int], config: MosaicConfig, *, fill: bool) -> list[int]:
    """How many images of each class a client sends.

    Args:
        class_counts: Real images of each class that it holds (n_kc).
        config: Images per class and the minimum.
        fill: Whether a class of fewer real images is filled up to `images_per_class`.

    >>> images_per_class([0, 3, 50], MosaicConfig(images_per_class=10), fill=False)
    [0, 3, 10]
    """
    wanted = config.images_per_class
    return [
        0 if count < config.min_examples else wanted if fill else min(wanted, count)
        for count in class_counts
    ]


def capped(totals: Sequence[float], max_share: float) -> list[float]:
    """Weights of clients, lowered so that none has more than `max_share` of their sum.

    Those above the cap are lowered to one level L, and what they lose is given to nobody: where m
    are lowered and the others sum to R, L = `max_share` R / (1 - m `max_share`) is exactly that
    share of the new sum. K clients cannot all have less than 1/K: with a `max_share` of 1/K or
    less all are lowered to the least of them.

    Args:
        totals: Sum of the weights of each client's images, above 0.
        max_share: Above 0, at most 1.

    >>> capped([6.0, 1.0, 2.0], 0.5)
    [3.0, 1.0, 2.0]
    """
    ordered = sorted(totals, reverse=True)
    if max_share * len(totals) > 1:
        for num_lowered, largest in enumerate(ordered):
            left = 1 - num_lowered * max_share
            level = max_share * math.fsum(ordered[num_lowered:]) / left if left > 0 else 0.0
            if largest <= level:
                return [min(total, level) for total in totals]
    return [ordered[-1]] * len(totals)


def class_counts(examples: Examples, num_classes: int) -> list[int]:
    """Images of each class, n_kc."""
    counts: list[int] = torch.bincount(examples.labels, minlength=num_classes).tolist()
    return counts


def encode(images: torch.Tensor, dtype: str, workload: ImageWorkload) -> Array:
    """Network input as it travels: float32, float16, or uint8 pixels."""
    if dtype == "uint8":
        return workload.to_pixels(images).cpu().numpy()
    return images.detach().cpu().numpy().astype(dtype)


def decode(array: Array, workload: ImageWorkload) -> torch.Tensor:
    """Back to float32 network input, on the CPU."""
    if array.dtype == np.uint8:
        return workload.from_pixels(torch.from_numpy(np.array(array)))
    return torch.from_numpy(array.astype(np.float32))


def image_workload(workload: Workload) -> ImageWorkload:
    """A workload that offers ``image-loss``, which `pairing.fit` has checked."""
    return cast(ImageWorkload, workload)


class MosaicStrategy(CollectingStrategy):
    """A method whose clients send labelled images and whose server trains on their union."""

    needs: ClassVar[Mapping[Offer, str]] = {
        "image-loss": "its server trains on labelled images that clients send, and on nothing else"
    }
    sections: ClassVar[Mapping[str, type]] = {"mosaic": MosaicConfig}
    image_metrics: ClassVar[tuple[str, ...]] = ()

    @property
    def mosaic(self) -> MosaicConfig:
        """The shared section of keys."""
        return self.config.section(MosaicConfig)

    def fills_short_classes(self) -> bool:
        """Whether a class of fewer real images than wanted is filled up with others."""
        return False

    @abstractmethod
    def images(self, task: ClientTask, wanted: list[int]) -> MadeImages:
        """The images to send.

        Args:
            task: The client's work.
            wanted: How many of each class.
        """

    def wanted(self, class_counts: Sequence[int]) -> list[int]:
        """How many images of each class a client sends that holds so many real ones.

        Where counts are hidden, equally many of every class.
        """
        if self.config.hides_counts:
            return [self.mosaic.images_per_class] * len(class_counts)
        return images_per_class(class_counts, self.mosaic, fill=self.fills_short_classes())

    def reply_spec(self, client: ClientShape, round: int) -> RecordSpec:
        """Images, labels, and with ``weighting=counts`` the class counts."""
        wanted = self.wanted(client.class_counts)
        arrays = {
            "images": ArraySpec((sum(wanted), *client.input_shape), self.mosaic.image_dtype),
            "labels": ArraySpec((sum(wanted),), "int64"),
        }
        if self.mosaic.weighting == "counts":
            dtype = "float32" if self.config.hides_counts else "int64"
            arrays["class_counts"] = ArraySpec((len(client.class_counts),), dtype)
        return RecordSpec(arrays, (*self.image_metrics, "train_s"))

    def client_update(self, task: ClientTask) -> ClientUpdate:
        """Choose how many images of each class, make them, encode them."""
        workload = image_workload(task.workload)
        counts = class_counts(labelled(task.examples), workload.num_classes)
        made = self.images(task, self.wanted(counts))
        arrays: dict[str, Array] = {
            "images": encode(made.images, self.mosaic.image_dtype, workload),
            "labels": made.labels.cpu().numpy(),
        }
        if self.mosaic.weighting == "counts":
            if self.config.hides_counts:
                assert made.class_counts is not None, "nothing but noised counts may be told"
                arrays["class_counts"] = made.class_counts.cpu().numpy()
            else:
                arrays["class_counts"] = np.array(counts, dtype=np.int64)
        return ClientUpdate(arrays, made.metrics, made.kept)

    def check_reply(self, reply: Reply, client: ClientShape) -> list[str]:
        """There must be images, of known classes."""
        labels = reply.record.arrays["labels"]
        if labels.size == 0:
            return [
                f"holds no images: no class reaches mosaic.min-examples={self.mosaic.min_examples}"
            ]
        last = len(client.class_counts) - 1
        wrong = labels[(labels < 0) | (labels > last)]
        reasons = [f"holds label {wrong[0]}, expected 0 to {last}"] if wrong.size else []
        images = reply.record.arrays["images"]
        if images.dtype.kind == "f" and (most := np.abs(images).max()) > PIXEL_LIMIT:
            reasons.append(
                f"holds a pixel of {most:.4g}, expected at most {PIXEL_LIMIT:g} either way"
            )
        counts = reply.record.arrays.get("class_counts")
        if counts is not None and self.config.hides_counts:
            if counts.min() < 0:
                reasons.append(f"holds a class count of {counts.min():g}, expected at least 0")
            elif not reasons and not counts[labels].any():
                reasons.append("class_counts tell no image of any label")
        elif counts is not None and counts.tolist() != list(client.class_counts):
            reasons.append("class_counts are not those of the images that the client holds")
        elif counts is not None and not reasons and not counts[labels].all():
            unknown = labels[counts[labels] == 0][0]
            reasons.append(f"holds label {unknown}, of which class_counts tell no image")
        return reasons

    def finish(
        self, state: ServerState, accumulator: list[Reply], task: ServerTask
    ) -> RoundOutcome:
        """Train from w_r on the union of the sets; without a set the model stays as it was."""
        if not accumulator:
            return RoundOutcome(state, {})
        workload = image_workload(task.workload)
        sets = [self.received_set(reply, workload) for reply in accumulator]
        shares: dict[str, float] = {}
        if self.mosaic.max_client_share < 1:
            sets, shares["max_client_share"] = cap_sets(sets, self.mosaic.max_client_share)
        inputs = torch.cat([s.inputs for s in sets])
        labels = torch.cat([s.labels for s in sets])
        weights = torch.cat([s.weights for s in sets])
        task.parameters.load(state.weights)
        metrics = train_on_mosaic(task, inputs, labels, weights, self.mosaic)
        sizes = torch.tensor([len(s.labels) for s in sets])
        senders = torch.tensor([s.partition_id for s in sets]).repeat_interleave(sizes)
        mosaic = Mosaic(workload.to_pixels(inputs), labels, senders)
        trained = ServerState(weights_of(task.parameters.model), state.slots)
        return RoundOutcome(trained, {**metrics, **shares}, mosaic)

    def received_set(self, reply: Reply, workload: ImageWorkload) -> ReceivedSet:
        """Decode one reply."""
        arrays = reply.record.arrays
        labels = torch.from_numpy(arrays["labels"].astype(np.int64))
        weights = torch.ones(len(labels))
        if self.mosaic.weighting == "counts":
            counts = torch.from_numpy(np.array(arrays["class_counts"]))
            sent = torch.bincount(labels, minlength=len(counts))
            weights = (counts[labels] / sent[labels]).to(torch.float32)
        return ReceivedSet(decode(arrays["images"], workload), labels, weights, reply.partition_id)


def cap_sets(sets: Sequence[ReceivedSet], max_share: float) -> tuple[list[ReceivedSet], float]:
    """The sets with their weights `capped`, those of a client by one factor; the largest share."""
    totals = [s.weights.sum(dtype=torch.float64).item() for s in sets]
    lowered = capped(totals, max_share)
    scaled = [
        dataclasses.replace(s, weights=s.weights * (new / old)) if new < old else s
        for s, old, new in zip(sets, totals, lowered, strict=True)
    ]
    return scaled, max(lowered) / math.fsum(lowered)


def train_on_mosaic(
    task: ServerTask,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    config: MosaicConfig,
) -> dict[str, float]:
    """SGD on the weighted loss of all images received, inside the rho-ball around the start.

    Args:
        task: Its parameters hold w_r and are trained in place.
        inputs: float32, shape (M, C, H, W).
        labels: int64, shape (M,).
        weights: float32, shape (M,); scaled to mean 1 here.
        config: The server's optimizer.

    Returns:
        ``num_images``; ``displacement``, the distance ||w - w_r|| at the end; ``ball_bound``, the
        share of steps after which the ball bound; ``train_loss``, the mean loss of the last epoch.
    """
    parameters, workload = task.parameters, image_workload(task.workload)
    model = parameters.train()
    inputs, labels = inputs.to(task.device), labels.to(task.device)
    weights = (weights / weights.mean()).to(task.device)
    centre = parameters.values.clone()
    velocity = torch.zeros_like(centre) if config.momentum else None
    shuffler = torch_generator(task.seed)
    bound = torch.zeros((), device=centre.device)
    num_steps = 0
    for epoch in range(config.epochs):
        decayed = config.lr_decay == "half" and epoch >= config.epochs // 2
        learning_rate = config.learning_rate * (0.1 if decayed else 1.0)
        epoch_loss = torch.zeros((), device=centre.device)
        order = torch.randperm(len(labels), generator=shuffler).to(task.device)
        for batch in order.split(config.batch_size):
            parameters.zero_gradient()
            losses = workload.loss(model, inputs[batch], labels[batch]) * weights[batch]
            losses.mean().backward()
            sgd_step_(
                parameters.values,
                parameters.gradient,
                velocity,
                learning_rate=learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
            )
            if config.ball:
                bound += project_onto_ball_(parameters.values, centre, config.rho)[1]
            epoch_loss += losses.detach().sum()
            num_steps += 1
            task.count_step()
    displacement = torch.linalg.vector_norm(parameters.values - centre)
    return {
        "num_images": len(labels),
        "displacement": float(displacement),
        "ball_bound": float(bound) / num_steps,
        "train_loss": float(epoch_loss) / len(labels),
    }
