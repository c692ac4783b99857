"""FedDM: clients send images that match their data's distribution; the server trains on them.

Y. Xiong, R. Wang, M. Cheng, F. Yu, C.-J. Hsieh, "FedDM: Iterative Distribution Matching for
Communication-Efficient Federated Learning", CVPR 2023, arXiv:2207.09653, Algorithm 3. Equations
are numbered as in chapter 5 of Y. Xiong's thesis (2024).

==========  =======================================================================
client      T steps: draw w ~ P_w(w_r) on the rho-sphere, then one SGD step on the
            images S_k against Equation 5.8, all classes at that one network
up          ``images`` (M, C, H, W) of ``mosaic.image-dtype``, ``labels`` (M,) int64;
            ``class_counts`` (C,) int64 with ``mosaic.weighting=counts``;
            metrics ``matching_loss_first``, ``matching_loss_last``
down        the global weights w_r
server      SGD on the cross-entropy over the union of the sets (Equation 5.9),
            projected into the rho-ball around w_r after each step (Equation 5.3)
==========  =======================================================================

A class of which the client holds fewer images than ``mosaic.images-per-class`` sends as many
images as it has: with more, near-copies of the real ones would be sent. Where it has no more than
that and starts from real images, the means agree from the start and the real images are sent as
they are; ``mosaic.min-examples`` leaves such classes out. Without noise added the images are not
private.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import nn

from core.config import RunConfig
from core.errors import Problem
from core.examples import labelled
from core.parameters import ParameterVector
from core.seeds import derive_seed, torch_generator
from core.wire import Metric
from distill.matching import ClassImages, MatchingConfig, match
from distill.noised_matching import match_noised
from distill.weights import WeightDraw, WeightSampling, draws_around
from models.registry import embedding_of, refuse_batch_norm
from privacy.mechanism import GaussianSums
from strategies.base import ClientShape, ClientTask, tensors_of
from strategies.mosaic import PIXEL_LIMIT, MadeImages, MosaicConfig, MosaicStrategy, image_workload

NORM_LAYERS = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


class FedDM(MosaicStrategy):
    """Iterative distribution matching; see the module's table."""

    name = "feddm"
    images_sent = "synthetic"
    step_name = "matching"
    client_half = "matching"
    sections: ClassVar[Mapping[str, type]] = {"mosaic": MosaicConfig, "feddm": MatchingConfig}
    image_metrics = ("matching_loss_first", "matching_loss_last")

    @property
    def matching(self) -> MatchingConfig:
        """FedDM's own section of keys."""
        return self.config.section(MatchingConfig)

    @classmethod
    def problems(cls, config: RunConfig) -> Iterable[Problem]:
        """A pool of which not every network is used."""
        yield from super().problems(config)
        matching = config.section(MatchingConfig)
        if matching.network_pool > matching.iterations:
            rule = (
                f"must be at most feddm.iterations={matching.iterations}, or the rest of the pool "
                "is never used; 0 draws a network for every step"
            )
            yield Problem("feddm.network-pool", str(matching.network_pool), rule)

    def fills_short_classes(self) -> bool:
        """Whether a short class is filled up from noise."""
        return self.matching.short_classes == "noise"

    def keeps_client_state(self) -> bool:
        """Its last set, to start from."""
        return self.matching.warm_start

    def client_steps(self, client: ClientShape) -> int:
        """T."""
        return self.matching.iterations

    def check_model(self, model: nn.Module) -> None:
        """The model must offer an embedding, and none of its statistics may couple examples."""
        embedding_of(model)
        refuse_batch_norm(model, "FedDM matches means over images one class at a time")

    def images(self, task: ClientTask, wanted: list[int]) -> MadeImages:
        """Algorithm 3, ClientUpdate."""
        labels = torch.tensor(wanted).to(task.device)
        labels = torch.arange(len(wanted), device=task.device).repeat_interleave(labels)
        if len(labels) == 0:
            empty = labelled(task.examples).inputs[:0]
            return MadeImages(empty, labels, dict.fromkeys(self.image_metrics, 0.0))
        task.parameters.load(tensors_of(task.received.arrays))
        examples = labelled(task.examples)
        if task.mechanism is not None:
            return self.noised_images(task, task.mechanism, labels)
        classes = [
            ClassImages(label, examples.inputs[examples.labels == label])
            for label, count in enumerate(wanted)
            if count
        ]
        matched = match(
            task.parameters,
            embedding_of(task.parameters.model),
            classes,
            self.start(task, classes, wanted),
            labels,
            self.matching,
            draw=self.draws(task),
            generator=torch_generator(derive_seed(task.seed, "batches")),
            count_step=task.count_step,
        )
        metrics: dict[str, Metric] = {
            "matching_loss_first": matched.first_loss,
            "matching_loss_last": matched.last_loss,
        }
        kept = {"images": matched.images} if self.matching.warm_start else None
        return MadeImages(matched.images, labels, metrics, kept)

    def noised_images(
        self, task: ClientTask, mechanism: GaussianSums, labels: torch.Tensor
    ) -> MadeImages:
        """The same from noised sums, which stand for the real images of every class."""
        workload = image_workload(task.workload)
        shape = (len(labels), *workload.input_shape)
        if self.matching.warm_start and task.state is not None:
            start = task.state["images"].to(task.device)
        else:
            generator = torch_generator(derive_seed(task.seed, "start"))
            start = torch.randn(shape, generator=generator).to(task.device)
        matched = match_noised(
            task.parameters,
            embedding_of(task.parameters.model),
            labelled(task.examples),
            start,
            labels,
            self.matching,
            num_classes=workload.num_classes,
            mechanism=mechanism,
            draw=self.draws(task),
            generator=torch_generator(derive_seed(task.seed, "batches")),
            count_step=task.count_step,
        )
        images = matched.images.clamp(-PIXEL_LIMIT, PIXEL_LIMIT)
        kept = {"images": images} if self.matching.warm_start else None
        return MadeImages(images, labels, {}, kept, matched.class_counts)

    def start(
        self, task: ClientTask, classes: list[ClassImages], wanted: list[int]
    ) -> torch.Tensor:
        """Initial images, shape (M, C, H, W): the last set, or real images, or noise."""
        if self.matching.warm_start and task.state is not None:
            return task.state["images"].to(task.device)
        generator = torch_generator(derive_seed(task.seed, "start"))
        parts = []
        for group in classes:
            count = wanted[group.label]
            if self.matching.initialisation == "real":
                picked = torch.randperm(len(group.real), generator=generator)[:count]
                parts.append(group.real[picked.to(group.real.device)])
                count -= len(picked)
            noise = torch.randn((count, *group.real.shape[1:]), generator=generator)
            parts.append(noise.to(group.real.device))
        return torch.cat(parts)

    def draws(self, task: ClientTask) -> WeightDraw:
        """P_w(w_r), around the weights just loaded."""
        config, parameters = self.matching, task.parameters
        if config.first_round == "fresh" and task.round == 1:
            return _fresh_draws(task)
        kind: WeightSampling = config.weight_sampling  # type: ignore[assignment]
        seed = derive_seed(task.seed, "weights")
        return draws_around(
            parameters.values.clone(),
            kind=kind,
            radius=self.mosaic.rho,
            sigma=config.weight_sigma,
            mask=None if config.perturb_norm_affine else parameters.mask(NORM_LAYERS),
            generator=torch_generator(seed, task.device),
        )


def _fresh_draws(task: ClientTask) -> WeightDraw:
    """Freshly initialised networks, one after another."""
    count = 0

    def draw(out: torch.Tensor) -> None:
        nonlocal count
        model = task.workload.build_model(derive_seed(task.seed, "fresh", count))
        out.copy_(ParameterVector(model).values)
        count += 1

    return draw
