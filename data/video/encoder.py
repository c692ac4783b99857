"""A frozen encoder of video: one vector of 512 numbers per second.

It stands where large systems have a convolutional network trained on a million narrated videos,
such as S3D (S. Xie et al., "Rethinking Spatiotemporal Feature Learning", ECCV 2018), whose weights
cannot be had everywhere: a small one of about a million parameters, two convolutions over height
and width and two over time as well. ``conv3d-random`` has the weights that it was drawn with.
``conv3d-shapestory`` was trained to tell colour, shape and motion of single things that were drawn
for it and that no corpus holds.

Both are made where they are first asked for, from their recipe alone, and kept in a file that is
named by it. All who share features must share that file (`told_encoder`), for other versions of
torch may train other weights; `FrozenEncoder.digest` tells whether they do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import nn
from torch.nn import functional

from core.errors import DataError, RecordError
from core.records import write_whole
from core.seeds import derive_seed, numpy_generator, seeded_globals, torch_generator
from core.tensor_file import read_tensors, write_tensors
from data.video.shapestory.render import random_clip
from data.video.shapestory.world import COLORS, MOTIONS, SHAPES

logger = logging.getLogger("tessera")

FPS = 4
"""Frames per second that encoders take."""
SIZE = 64
"""Height and width of those frames, in pixels."""
WIDTH = 512
"""Numbers per second that encoders give."""
WINDOW = 2 * FPS
"""Frames that a second is told from: the two seconds about its middle."""

FACTORS: Mapping[str, int] = {"color": len(COLORS), "shape": len(SHAPES), "motion": len(MOTIONS)}
"""What training tells apart, and how many of each there are."""

_LAYERS = (
    # channels, kernel and stride over (time, height, width)
    (16, (1, 5, 5), (1, 2, 2)),
    (48, (1, 3, 3), (1, 2, 2)),
    (128, (3, 3, 3), (2, 2, 2)),
    (160, (3, 3, 3), (2, 1, 1)),
)
_GROUPS = 8
_MEAN, _STD = 0.5, 0.25
"""Normalisation of pixels in [0, 1]: constants, so that nothing of any video is in the weights."""
_SHARPNESS = 2.0
_WINDOWS_AT_ONCE = 64


class Conv3d(nn.Module):
    """Four convolutions, each with group norm and ReLU; two means over places; one linear layer.

    One of the means weighs places by a softmax, so that what a small thing does is not lost among
    the many places where nothing is.
    """

    def __init__(self) -> None:
        """Draw the parameters from torch's global generator."""
        super().__init__()
        blocks: list[nn.Module] = []
        before = 3
        for channels, kernel, stride in _LAYERS:
            padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
            convolution = nn.Conv3d(before, channels, kernel, stride, padding, bias=False)
            blocks += [convolution, nn.GroupNorm(_GROUPS, channels), nn.ReLU()]
            before = channels
        self.blocks = nn.Sequential(*blocks)
        self.project = nn.Linear(2 * before, WIDTH)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Features of windows.

        Args:
            windows: uint8, shape (B, 8, 64, 64, 3).

        Returns:
            float32, shape (B, 512), each row of mean 0 and variance 1.
        """
        pixels = (windows.permute(0, 4, 1, 2, 3).float() / 255 - _MEAN) / _STD
        places = self.blocks(pixels).flatten(2)
        most = (places * (_SHARPNESS * places).softmax(2)).sum(2)
        features = functional.gelu(self.project(torch.cat([places.mean(2), most], 1)))
        return functional.layer_norm(features, (WIDTH,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that decides an encoder's weights.

    Attributes:
        seed: Of its parameters, clips and batches.
        num_clips: Clips drawn to learn from; 0 for weights that are not trained.
        clip_frames: Frames of each, of which a window is cut at random.
        num_steps: Steps of training (AdamW; the rate rises for a twentieth of them, then falls as a
            half cosine to 0).
        batch_size: Windows of a step.
        learning_rate: At its highest.
        weight_decay: Of AdamW.
        shape_weight: Of the loss of telling shapes, which is slow to fall; those of colour and
            motion weigh 1.
        num_held_out: Clips, not learnt from, that accuracy is measured on.
        revision: Raised when what this module does with the rest changes.
    """

    seed: int
    num_clips: int = 0
    clip_frames: int = 14
    num_steps: int = 0
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    shape_weight: float = 4.0
    num_held_out: int = 0
    revision: int = 2

    def __post_init__(self) -> None:
        if self.clip_frames < WINDOW:
            raise DataError(f"clip_frames={self.clip_frames} must be at least {WINDOW}")
        if (self.num_steps > 0) != (self.num_clips > 0):
            raise DataError(
                f"num_clips={self.num_clips} and num_steps={self.num_steps} must both be 0 or none"
            )

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe and of the network's layers."""
        content = {**dataclasses.asdict(self), "layers": _LAYERS, "width": WIDTH}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


RECIPES: Mapping[str, Recipe] = {
    "conv3d-random": Recipe(seed=2018),
    "conv3d-shapestory": Recipe(seed=2018, num_clips=3000, num_steps=1600, num_held_out=800),
}
"""The encoders that there are."""


@dataclass(frozen=True, slots=True)
class FrozenEncoder:
    """An encoder whose weights nobody changes any more.

    Attributes:
        name: Of `RECIPES`.
        digest: SHA-256 of its recipe and weights: equal digests, equal features.
        accuracy: By factor, the share of held-out clips whose factor the training's own classifiers
            told right; empty where it was not trained.
        network: The network.
    """

    name: str
    digest: str
    accuracy: Mapping[str, float]
    network: Conv3d

    def encode(
        self, frames: npt.NDArray[np.uint8], *, single_frame: bool = False
    ) -> npt.NDArray[np.float32]:
        """Features of each second.

        Args:
            frames: uint8, shape (T, 64, 64, 3), 4 a second from second 0 on, T at least 1.
            single_frame: Show it one frame from the middle of the second, again and again, instead
                of the two seconds about that.

        Returns:
            float32, shape (ceil(T / 4), 512). Beyond either end its own frame is repeated.

        Raises:
            DataError: The frames are of another type or shape.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (SIZE, SIZE, 3):
            raise DataError(
                f"frames are {frames.dtype} {frames.shape}; encoder {self.name} takes uint8 "
                f"(T, {SIZE}, {SIZE}, 3)"
            )
        if len(frames) < 1:
            raise DataError("there are no features of 0 frames")
        shown = window_frames(len(frames), single_frame=single_frame)
        with torch.inference_mode():
            parts = [
                self.network(torch.from_numpy(frames[some]))
                for some in np.array_split(shown, math.ceil(len(shown) / _WINDOWS_AT_ONCE))
            ]
        return np.asarray(torch.cat(parts).numpy(), np.float32)


def seconds_of(num_frames: int) -> int:
    """How many vectors an encoder gives for so many frames."""
    return math.ceil(num_frames / FPS)


def window_frames(num_frames: int, *, single_frame: bool = False) -> npt.NDArray[np.int64]:
    """Which frames the vector of each second is made of: int64, shape (seconds, 8)."""
    middles = FPS * np.arange(seconds_of(num_frames))[:, None] + FPS // 2
    around = np.arange(WINDOW) - WINDOW // 2
    shown: npt.NDArray[np.int64] = middles + (0 * around if single_frame else around)
    return shown.clip(0, num_frames - 1)


def frozen_encoder(name: str, folder: Path) -> FrozenEncoder:
    """Read an encoder, or make it where the folder does not hold it.

    Training takes some minutes on one core. Of processes that ask for it at once, one makes it.

    Args:
        name: One of `RECIPES`.
        folder: Where its weights are kept, ``NAME-RECIPE.safetensors``.

    Raises:
        DataError: There is no encoder of that name, or the folder cannot be written.
    """
    if name not in RECIPES:
        raise DataError(f"encoder {name!r} is none of {', '.join(RECIPES)}")
    return encoder_of(name, RECIPES[name], folder)


def encoder_of(name: str, recipe: Recipe, folder: Path) -> FrozenEncoder:
    """As `frozen_encoder`, by a recipe of one's own."""
    path = _file_of(name, recipe, folder)
    # It is written whole, so that who only reads it needs no lock, and may not be able to take one.
    with contextlib.suppress(RecordError):
        return _read(name, recipe, path)
    with _locked(path):
        return _read_or_make(name, recipe, path)


def encoder_file(name: str, folder: Path) -> Path:
    """Where `frozen_encoder` keeps the weights."""
    return _file_of(name, RECIPES[name], folder)


def told_encoder(name: str, content: bytes, digest: str, folder: Path) -> FrozenEncoder:
    """An encoder whose weights somebody else has made and told, so that features compare.

    They take the place of weights that `frozen_encoder` has made or would make in this folder.

    Args:
        name: One of `RECIPES`.
        content: Their `encoder_file`.
        digest: Of their encoder.
        folder: Where its weights are kept.

    Raises:
        DataError: The content is no such encoder, or the folder cannot be written.
    """
    recipe, path = RECIPES[name], encoder_file(name, folder)
    with contextlib.suppress(RecordError):
        if (kept := _read(name, recipe, path)).digest == digest:
            return kept
    told = path.with_name(f".{path.name}.told")
    with _locked(path):
        write_whole(told, content)
        try:
            encoder = _read(name, recipe, told)
        except RecordError as error:
            told.unlink()
            raise DataError(
                f"weights of encoder {name} were told that are none: {error}"
            ) from error
        if encoder.digest != digest:
            told.unlink()
            raise DataError(
                f"weights of encoder {name} were told whose digest is {encoder.digest[:12]} and "
                f"not {digest[:12]}, as was said"
            )
        told.replace(path)
    return encoder


def _file_of(name: str, recipe: Recipe, folder: Path) -> Path:
    return folder / f"{name}-{recipe.digest[:12]}.safetensors"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone in writing a file, whose folder is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            yield
    except OSError as error:
        raise DataError(
            f"{path.parent} cannot be written: {error}; name another folder for encoders"
        ) from error


def _read_or_make(name: str, recipe: Recipe, path: Path) -> FrozenEncoder:
    try:
        return _read(name, recipe, path)
    except RecordError as error:
        if path.exists():
            logger.warning("%s; it is made again", error)
    if recipe.num_steps:
        logger.warning(
            "encoder %s is trained once, which takes some minutes, and kept as %s", name, path
        )
    network, accuracy = make(recipe)
    told = {factor: repr(share) for factor, share in accuracy.items()}
    write_tensors(path, network.state_dict(), {"recipe": recipe.digest, **told})
    return _read(name, recipe, path)


def _read(name: str, recipe: Recipe, path: Path) -> FrozenEncoder:
    weights, about = read_tensors(path)
    network = Conv3d()
    own = {key: value.shape for key, value in network.state_dict().items()}
    if about.get("recipe") != recipe.digest or own != {k: v.shape for k, v in weights.items()}:
        raise RecordError(f"{path} is not of the recipe that its name says")
    network.load_state_dict(weights)
    network.eval().requires_grad_(False)
    digest = hashlib.sha256(recipe.digest.encode())
    for key, value in sorted(weights.items()):
        digest.update(key.encode())
        digest.update(value.numpy().tobytes())
    accuracy = {factor: float(about[factor]) for factor in FACTORS if factor in about}
    return FrozenEncoder(name, digest.hexdigest(), accuracy, network)


def make(recipe: Recipe) -> tuple[Conv3d, dict[str, float]]:
    """Make a network by its recipe, on one thread, so that it is the same on any number of cores.

    Returns:
        The network, and by factor the accuracy on held-out clips; none where it is not trained.
    """
    with _one_thread(), seeded_globals(derive_seed(recipe.seed, "parameters")):
        network = Conv3d()
        if not recipe.num_steps:
            return network, {}
        heads = nn.Linear(WIDTH, sum(FACTORS.values()))
        train(network, heads, recipe)
        clips, factors = draw_clips(recipe.num_held_out, WINDOW, derive_seed(recipe.seed, "held"))
        with torch.inference_mode():
            logits = torch.cat([heads(network(part)) for part in clips.split(_WINDOWS_AT_ONCE)])
        told = [part.argmax(1) for part in logits.split(list(FACTORS.values()), 1)]
        right = (torch.stack(told, 1) == factors).double().mean(0).tolist()
    return network, dict(zip(FACTORS, right, strict=True))


def train(network: Conv3d, heads: nn.Linear, recipe: Recipe) -> list[float]:
    """Train a network to tell colour, shape and motion of clips drawn for it.

    A window is cut from a clip at random, mirrored and transposed at random, and its motion with
    it: what slides to the left in a mirror slides to the right.

    Returns:
        The loss of each step, the weighted sum of three cross-entropies in nats.
    """
    clips, factors = draw_clips(
        recipe.num_clips, recipe.clip_frames, derive_seed(recipe.seed, "clips")
    )
    batches = torch_generator(derive_seed(recipe.seed, "batches"))
    optimizer = torch.optim.AdamW(
        [*network.parameters(), *heads.parameters()],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
    )
    rising = max(1, recipe.num_steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / rising) * (1 + math.cos(math.pi * step / recipe.num_steps)) / 2
        ),
    )
    weights = torch.tensor([recipe.shape_weight if name == "shape" else 1.0 for name in FACTORS])
    losses: list[float] = []
    for _ in range(recipe.num_steps):
        windows, targets = _batch(clips, factors, recipe.batch_size, batches)
        parts = heads(network(windows)).split(list(FACTORS.values()), 1)
        loss = weights @ torch.stack(
            [functional.cross_entropy(part, targets[:, i]) for i, part in enumerate(parts)]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def draw_clips(num_clips: int, num_frames: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips of one thing each.

    Returns:
        uint8, shape (N, T, 64, 64, 3); and int64, shape (N, 3), indices of colour, shape, motion.
    """
    generator = numpy_generator(seed)
    drawn = [random_clip(generator, num_frames, FPS, SIZE) for _ in range(num_clips)]
    clips = np.stack([frames for frames, _ in drawn])
    return torch.from_numpy(clips), torch.tensor([factors for _, factors in drawn])


def _swapped(*pairs: tuple[str, str]) -> torch.Tensor:
    """Which motion each is, where some have changed places."""
    names = list(MOTIONS)
    other = {**dict(pairs), **{b: a for a, b in pairs}}
    return torch.tensor([names.index(other.get(name, name)) for name in names])


_REFLECTIONS: tuple[tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor], ...] = (
    (lambda windows: windows.flip(3), _swapped(("slides-left", "slides-right"))),
    (lambda windows: windows.flip(2), _swapped(("rises", "falls"))),
    (
        lambda windows: windows.transpose(2, 3),
        _swapped(("slides-left", "rises"), ("slides-right", "falls")),
    ),
)
"""Of windows (B, T, H, W, 3), three that make up all eight ways to lay a square on itself."""


def _batch(
    clips: torch.Tensor, factors: torch.Tensor, size: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows (B, 8, 64, 64, 3) and their factors (B, 3), reflected at random."""
    which = torch.randint(len(clips), (size,), generator=generator)
    start = torch.randint(clips.shape[1] - WINDOW + 1, (size,), generator=generator)
    frames = start[:, None] + torch.arange(WINDOW)
    windows, targets = clips[which[:, None], frames], factors[which].clone()
    for (reflect, motions), chosen in zip(
        _REFLECTIONS, torch.rand(len(_REFLECTIONS), size, generator=generator) < 0.5, strict=True
    ):
        windows[chosen] = reflect(windows[chosen])
        targets[chosen, 2] = motions[targets[chosen, 2]]
    return windows, targets


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
