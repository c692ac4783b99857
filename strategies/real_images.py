"""real-images: clients send raw images, as many as FedDM would. A control, and not private.

The comparison REAL of section 5.4.5 in Y. Xiong's thesis (2024): what FedDM gains over it is what
matching gains over picking.

==========  =======================================================================
client      draws ``mosaic.images-per-class`` real images of each class, anew each round
up          ``images`` (M, C, H, W) of ``mosaic.image-dtype``, ``labels`` (M,) int64;
            ``class_counts`` (C,) int64 with ``mosaic.weighting=counts``
down        nothing but the round
server      as FedDM
==========  =======================================================================
"""

from __future__ import annotations

import torch

from core.examples import labelled
from core.seeds import torch_generator
from strategies.base import ClientTask
from strategies.mosaic import MadeImages, MosaicStrategy


class RealImages(MosaicStrategy):
    """The control that sends raw images; see the module's table."""

    name = "real-images"
    images_sent = "raw"
    sends_weights = False

    def images(self, task: ClientTask, wanted: list[int]) -> MadeImages:
        """A fresh draw without replacement from each class."""
        generator, examples = torch_generator(task.seed), labelled(task.examples)
        picked = []
        for label, count in enumerate(wanted):
            members = torch.nonzero(examples.labels == label).flatten()
            order = torch.randperm(len(members), generator=generator)[:count]
            picked.append(members[order.to(members.device)])
        chosen = torch.cat(picked)
        return MadeImages(examples.inputs[chosen], examples.labels[chosen])
