"""The privacy statement of a run, in a form for programs and in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ImagesSent = Literal["none", "synthetic", "raw"]

_TEXT: dict[ImagesSent, str] = {
    "synthetic": (
        "none: the images are not private. Clients send synthetic images matched to their own "
        "without noise. Training images can be among them as they are: a class of which a client "
        "holds no more images than it sends has nothing to match, and stays what it started from. "
        "No epsilon can be stated for this run."
    ),
    "raw": (
        "none: the images are not private. Clients send real training images as they are. This is "
        "a control to measure other methods against, not a method to deploy."
    ),
    "none": (
        "none: no images are sent, but what is sent is not private either. Weights and metrics "
        "trained without noise can reveal training images. No epsilon can be stated for this run."
    ),
}


@dataclass(frozen=True, slots=True)
class PrivacyStatement:
    """What a run guarantees.

    Attributes:
        guarantee: ``none`` where no noise was added.
        images_sent: Whether images left the clients, and which.
        text: The statement in plain words.
    """

    guarantee: Literal["none"]
    images_sent: ImagesSent
    text: str


def statement_without_noise(images_sent: ImagesSent) -> PrivacyStatement:
    """The statement of a run that adds no noise."""
    return PrivacyStatement("none", images_sent, _TEXT[images_sent])
