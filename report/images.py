"""What clients sent, as the report shows it: one sprite per run, round and client.

A sprite holds the images sent in its upper row and below each the real training image nearest to
it. The page cuts tiles out of it, so that thousands of images cost a few dozen PNGs.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from report.loading import LoadedRun, Tesserae, read_tesserae
from report.methods import Method

BUDGET_BYTES = 10_000_000
_TILE_PX = 48
_SHORT_NAME = 3


@dataclass(frozen=True, slots=True)
class _Plan:
    rounds: int
    images_per_class: int
    clients: int


# From generous to frugal; the first that fits the budget is taken, or else the last.
_PLANS = (
    _Plan(5, 10, 20),
    _Plan(3, 10, 20),
    _Plan(3, 4, 20),
    _Plan(3, 2, 20),
    _Plan(3, 1, 20),
    _Plan(1, 1, 10),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """One image sent and the real image nearest to it.

    Attributes:
        column: Position in the client's sprite.
        distance: Root mean square pixel difference, 0-255; None where there is no real image.
    """

    column: int
    distance: float | None


@dataclass(frozen=True, slots=True)
class ClassImages:
    """What one client sent of one class."""

    class_name: str
    pairs: tuple[Pair, ...]
    num_left_out: int


@dataclass(frozen=True, slots=True)
class ClientImages:
    """What one client sent in one round.

    Attributes:
        partition_id: The client.
        num_sent: Images it sent, shown or not.
        sprite: CSS class that carries its sprite.
        png_base64: The sprite.
        classes: Ascending by label.
    """

    partition_id: int
    num_sent: int
    sprite: str
    png_base64: str
    classes: tuple[ClassImages, ...]


@dataclass(frozen=True, slots=True)
class RoundImages:
    """What clients sent in one round."""

    round: int
    clients: tuple[ClientImages, ...]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Images of one run.

    Attributes:
        method: Whose they are.
        run: The run shown, the first of the method's that kept any.
        rounds: Ascending.
        tile_width: CSS pixels; a whole multiple of the image's width.
        tile_height: Likewise.
        long_names: Whether class names need a line of their own.
        left_out: Sentences that say what is not shown.
    """

    method: Method
    run: LoadedRun
    rounds: tuple[RoundImages, ...]
    tile_width: int
    tile_height: int
    long_names: bool
    left_out: tuple[str, ...]

    @property
    def has_nearest(self) -> bool:
        """Whether each image stands beside the real one nearest to it."""
        return not any(
            pair.distance is None
            for shown in self.rounds
            for client in shown.clients
            for group in client.classes
            for pair in group.pairs
        )


def galleries(methods: Sequence[Method], budget_bytes: int = BUDGET_BYTES) -> list[Gallery]:
    """One gallery per method whose clients sent images.

    Args:
        methods: All methods shown.
        budget_bytes: Raw pixels that all galleries together may embed.

    Raises:
        RecordError: A file of images is damaged.
    """
    shown = []
    for index, method in enumerate(methods):
        run = next((run for run in method.runs if run.folder.tesserae_rounds()), None)
        if run is not None:
            shown.append((index, method, run))
    return [
        _gallery(f"sprite-{index}", method, run, budget_bytes // len(shown))
        for index, method, run in shown
    ]


def without_images(methods: Sequence[Method]) -> list[tuple[Method, tuple[LoadedRun, ...]]]:
    """Methods whose clients sent images that are in none of the method's run folders.

    Returns:
        Each with its runs that got as far as sending.
    """
    found = []
    for method in methods:
        sent = tuple(run for run in method.runs if run.sends_images and run.rounds_done > 0)
        if sent and not any(run.folder.tesserae_rounds() for run in method.runs):
            found.append((method, sent))
    return found


def _gallery(name: str, method: Method, run: LoadedRun, budget_bytes: int) -> Gallery:
    kept = run.folder.tesserae_rounds()
    last = read_tesserae(run, kept[-1])
    plan = next((p for p in _PLANS if _cost(last, p, len(kept)) <= budget_bytes), _PLANS[-1])
    rounds = _spread(kept, plan.rounds)
    images = {r: last if r == kept[-1] else read_tesserae(run, r) for r in rounds}
    clients = sorted({int(k) for t in images.values() for k in t.partition_ids})
    height, width = last.images.shape[2:]
    scale = max(1, round(_TILE_PX / max(height, width)))
    return Gallery(
        method=method,
        run=run,
        rounds=tuple(
            RoundImages(
                r,
                tuple(
                    _client(f"{name}-{r}-{client}", tesserae, client, plan, run.class_names)
                    for client in clients[: plan.clients]
                    if client in tesserae.partition_ids
                ),
            )
            for r, tesserae in images.items()
        ),
        tile_width=scale * width,
        tile_height=scale * height,
        long_names=max(map(len, run.class_names), default=0) > _SHORT_NAME,
        left_out=tuple(_left_out(method, plan, kept, rounds, clients, last)),
    )


def _cost(tesserae: Tesserae, plan: _Plan, num_rounds: int) -> int:
    shown = sum(
        min(plan.images_per_class, int(count))
        for client in np.unique(tesserae.partition_ids)[: plan.clients]
        for count in np.bincount(tesserae.labels[tesserae.partition_ids == client])
    )
    pixels = int(np.prod(tesserae.images.shape[1:]))
    return 2 * shown * pixels * min(plan.rounds, num_rounds)


def _spread(rounds: Sequence[int], count: int) -> list[int]:
    """At most `count` of `rounds`: the first, the last, and evenly between."""
    if count == 1:
        return [rounds[-1]]
    places = np.linspace(0, len(rounds) - 1, min(count, len(rounds)))
    return [rounds[round(place)] for place in places.tolist()]


def _left_out(
    method: Method,
    plan: _Plan,
    kept: Sequence[int],
    rounds: Sequence[int],
    clients: Sequence[int],
    tesserae: Tesserae,
) -> list[str]:
    sentences = []
    if len(method.runs) > 1:
        sentences.append(f"One of {len(method.runs)} seeds is shown.")
    if len(rounds) < len(kept):
        sentences.append(f"Rounds: {len(rounds)} of the {len(kept)} kept.")
    if len(clients) > plan.clients:
        sentences.append(f"Clients: the first {plan.clients} of {len(clients)}.")
    if tesserae.images.shape[1] not in (1, 3):
        sentences.append(f"The mean of {tesserae.images.shape[1]} channels is shown.")
    return sentences


def _client(
    sprite: str, tesserae: Tesserae, client: int, plan: _Plan, class_names: Sequence[str]
) -> ClientImages:
    own = np.flatnonzero(tesserae.partition_ids == client)
    shown: list[int] = []
    classes = []
    for label in np.unique(tesserae.labels[own]):
        members = own[tesserae.labels[own] == label]
        picked = members[: plan.images_per_class].tolist()
        told = tesserae.nearest_distances
        pairs = tuple(
            Pair(len(shown) + i, None if told is None else float(told[n]))
            for i, n in enumerate(picked)
        )
        shown += picked
        classes.append(ClassImages(class_names[label], pairs, len(members) - len(picked)))
    images, nearest = tesserae.images[shown], tesserae.nearest_images
    # An image that has no nearest one stands in both rows, and the lower is not shown.
    png = _sprite(images, images if nearest is None else nearest[shown])
    return ClientImages(client, len(own), sprite, base64.b64encode(png).decode(), tuple(classes))


def _sprite(images: npt.NDArray[np.uint8], nearest: npt.NDArray[np.uint8]) -> bytes:
    """A PNG of N columns and two rows."""
    rows = [np.concatenate(list(batch), axis=2) for batch in (images, nearest)]
    pixels = np.concatenate(rows, axis=1)
    if len(pixels) == 3:
        picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    else:
        picture = Image.fromarray(pixels.mean(axis=0).round().astype(np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
