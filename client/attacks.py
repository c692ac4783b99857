"""Malicious clients: what ``attack.kind`` makes some of the clients do. For experiments only.

===========  ======================================================================
label-flip   trains on the label C - 1 - y where its image has the label y
sign-flip    trains honestly and sends the opposite of its update, s = -1
scale        trains honestly and sends s = ``attack.factor`` times its update
===========  ======================================================================

What "times its update" is depends on what is sent. An array that bears the name of a weight that
the client received is a weight v, and w + s (v - w) goes out in its place, w the one received. Any
other floating-point array, such as a delta, a direction or images as network input, is sent as
s v. Pixels (uint8) are scaled around the middle of their range: 127.5 + s (v - 127.5), which is
255 - v for sign-flip. Integer arrays, such as labels and counts, and metrics stay, and so does the
state that the client keeps. What would leave the range of its type is clipped to it: a server
refuses infinities, so an attacker sends none. A network that normalises each image, as ConvNet's
instance norm does, hardly sees the scale of its input: of scaled float images it learns the same.

Labels are flipped before anything is made of them, so a client that tells its class counts tells
flipped ones; with ``mosaic.weighting=counts`` the server knows better and refuses the reply.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from core.config import AttackConfig, RunConfig
from core.examples import Examples, ExampleSet, labelled
from core.seeds import derive_seed, numpy_generator
from core.wire import Array
from strategies.base import ClientUpdate

_MIDDLE_PIXEL = 127.5


def malicious_clients(config: RunConfig) -> frozenset[int]:
    """Partition ids of the clients that attack, the same in every round and every process.

    They are round(``attack.fraction`` K) of the K clients, drawn from the run's seed; a larger
    fraction adds clients to those of a smaller one.
    """
    if config.attack.kind == "none":
        return frozenset()
    num_clients = config.partition.clients
    order = numpy_generator(derive_seed(config.seed, "attack")).permutation(num_clients)
    return frozenset(order[: round(config.attack.fraction * num_clients)].tolist())


def poison(examples: ExampleSet, num_classes: int, attack: AttackConfig) -> ExampleSet:
    """What a malicious client trains on: under label-flip labels C - 1 - y, else its examples."""
    if attack.kind != "label-flip":
        return examples
    honest = labelled(examples)
    return Examples(honest.inputs, num_classes - 1 - honest.labels)


def tamper(
    update: ClientUpdate, received: Mapping[str, Array], attack: AttackConfig
) -> ClientUpdate:
    """What a malicious client sends in place of `update`; see the module's text.

    Args:
        update: Its honest one, or under label-flip the one to send.
        received: The arrays that the server sent.
        attack: What it does.
    """
    if attack.kind not in ("sign-flip", "scale"):
        return update
    scale = -1.0 if attack.kind == "sign-flip" else attack.factor
    arrays = {
        name: _scaled(array, received.get(name), scale) for name, array in update.arrays.items()
    }
    return dataclasses.replace(update, arrays=arrays)


def _scaled(array: Array, received: Array | None, scale: float) -> Array:
    """One array as it is sent; computed in float64."""
    if array.dtype == np.uint8 and received is None:
        pixels = _MIDDLE_PIXEL + scale * (array - _MIDDLE_PIXEL)
        return np.asarray(np.rint(pixels.clip(0, 255)), dtype=np.uint8)
    if array.dtype.kind != "f":
        return array
    start = 0.0 if received is None else received.astype(np.float64)
    with np.errstate(over="ignore"):
        change = _finite(array.astype(np.float64) - start, np.float64)
        return _finite(start + scale * change, array.dtype)


def _finite(values: Array, dtype: npt.DTypeLike) -> Array:
    """`values` as `dtype`, those beyond its largest number as that number."""
    most = float(np.finfo(dtype).max)
    return np.asarray(values.clip(-most, most), dtype=dtype)
