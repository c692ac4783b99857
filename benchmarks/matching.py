"""One step of distribution matching: ours, the usual public code's way, and a matrix product.

The step: ten classes of 32x32 colour images, 256 real and 10 synthetic ones each, a ConvNet drawn
anew; 2,560 forward passes of real images, 100 forward and input-gradient passes of synthetic
ones. FLOP are those of convolutions and the linear layer, whatever a contender computes twice.

The yardstick is how public code of the data-set distillation literature does it: a loop over
classes, NCHW, batch 256, features and logits by two separate calls, no gradient for real images.
All contenders run in turn, on the same threads, in one process; each turn's ratio is taken within
the turn. Seconds on a CPU are CPU seconds per thread, which others' work beside moves less than
the clock on the wall. Gradients are checked against each other first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.machine import describe, matrix_flops_per_s, seconds_of
from core.config import ModelConfig
from core.device import PRECISIONS, numerics
from core.parameters import ParameterVector, sgd_step_
from core.seeds import torch_generator
from distill.augmentation import draw_augmentation
from distill.matching import class_mean_matrix, matching_gradient
from distill.weights import draws_around
from models import convnet
from models.convnet import ConvNet
from models.registry import build_model

NUM_CLASSES, REAL_BATCH, IMAGES_PER_CLASS = 10, 256, 10
IMAGE_SHAPE = (3, 32, 32)
LARGEST_DEPARTURE = 1e-3
"""Of float32 gradients, as a share of their norm; sums in another order, at ReLU's kinks too."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What may be chosen."""
    parser.add_argument("--width", type=int, default=128, help="of the ConvNet (128)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (1)")
    parser.add_argument("--turns", type=int, default=3, help="of all contenders (3)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="of ours; see engine.precision"
    )
    parser.add_argument(
        "--variants",
        action="store_true",
        help="also layouts, chunk sizes and torch.compile, for forward passes of real images",
    )
    parser.add_argument("--out", type=Path, default=Path(".runs/matching/results.json"))


@dataclass(frozen=True, slots=True)
class Problem:
    """What every contender computes from.

    Attributes:
        model: The network.
        parameters: Its parameters.
        real: Shape (2560, 3, 32, 32), classes in order.
        synthetic: Shape (100, 3, 32, 32), likewise.
        flops: Of one step.
    """

    model: ConvNet
    parameters: ParameterVector
    real: torch.Tensor
    synthetic: torch.Tensor
    flops: float


def make_problem(width: int, device: torch.device) -> Problem:
    """The step's images and network, from fixed seeds."""
    model = build_model(ModelConfig(width=width), IMAGE_SHAPE, NUM_CLASSES, seed=0).to(device)
    assert isinstance(model, ConvNet)
    num_real, num_synthetic = NUM_CLASSES * REAL_BATCH, NUM_CLASSES * IMAGES_PER_CLASS
    generator = torch_generator(1)
    real = torch.randn(num_real, *IMAGE_SHAPE, generator=generator).to(device)
    synthetic = torch.randn(num_synthetic, *IMAGE_SHAPE, generator=generator).to(device)
    per_image = forward_flops(model)
    return Problem(
        model,
        ParameterVector(model),
        real,
        synthetic,
        per_image * (num_real + 2 * num_synthetic),
    )


def forward_flops(model: nn.Module) -> float:
    """FLOP of convolutions and linear layers for one image, two for a product and its sum."""
    total = 0.0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        positions = output[0].numel() // module.weight.shape[0]
        total += 2.0 * module.weight.numel() * positions

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    model(torch.zeros(1, *IMAGE_SHAPE, device=next(model.parameters()).device))
    for handle in handles:
        handle.remove()
    return total


def yardstick_gradient(problem: Problem) -> torch.Tensor:
    """The gradient in the synthetic images by the usual public code's way."""
    model, leaf = problem.model, problem.synthetic.detach().clone().requires_grad_(True)
    loss = torch.zeros((), device=leaf.device)
    for label in range(NUM_CLASSES):
        real = problem.real[label * REAL_BATCH : (label + 1) * REAL_BATCH]
        fake = leaf[label * IMAGES_PER_CLASS : (label + 1) * IMAGES_PER_CLASS]
        with torch.no_grad():
            real_features = model.blocks(real).flatten(1)
            real_logits = model.classifier(model.blocks(real).flatten(1))
        features = model.blocks(fake).flatten(1)
        logits = model.classifier(model.blocks(fake).flatten(1))
        loss = loss + ((real_features.mean(0) - features.mean(0)) ** 2).sum()
        loss = loss + ((real_logits.mean(0) - logits.mean(0)) ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


def our_gradient(problem: Problem) -> torch.Tensor:
    """The same by `distill.matching`."""
    device = problem.real.device
    classes = torch.arange(NUM_CLASSES, device=device)
    _, gradient = matching_gradient(
        problem.model,
        problem.real,
        class_mean_matrix(classes.repeat_interleave(REAL_BATCH), classes),
        problem.synthetic,
        class_mean_matrix(classes.repeat_interleave(IMAGES_PER_CLASS), classes),
        logit_weight=1.0,
        augment=draw_augmentation("off", torch_generator(0)),
    )
    return gradient


def departure(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference as a share of the norm."""
    return float((found.float() - expected).norm() / expected.norm())


def run(arguments: argparse.Namespace) -> int:
    """Measure, print and write; 4 where contenders do not agree."""
    if min(arguments.width, arguments.threads, arguments.turns) < 1:
        print("--width, --threads and --turns must be at least 1", file=sys.stderr)
        return 2
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: torch sees no CUDA GPU here", file=sys.stderr)
        return 2
    if arguments.device == "cpu" and arguments.precision == "tf32":
        print("--precision tf32: only a GPU has it", file=sys.stderr)
        return 2
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    problem = make_problem(arguments.width, device)
    with problem.parameters.frozen():
        return _measure(problem, device, arguments)


def _measure(problem: Problem, device: torch.device, arguments: argparse.Namespace) -> int:
    expected = yardstick_gradient(problem)
    plain = departure(our_gradient(problem), expected)
    with numerics(arguments.precision, device):
        chosen = departure(our_gradient(problem), expected)
    print(f"gradients differ by {plain:.1e} of their norm in float32", end="")
    print(f", by {chosen:.1e} in {arguments.precision}" if arguments.precision != "float32" else "")
    if plain > LARGEST_DEPARTURE:
        print(f"that is more than {LARGEST_DEPARTURE:g}: something is wrong", file=sys.stderr)
        return 4

    def ours(problem: Problem) -> torch.Tensor:
        with numerics(arguments.precision, device):
            return our_gradient(problem)

    turns: list[dict[str, float]] = []
    for number in range(arguments.turns):
        turn = {
            "matrix_flops_per_s": matrix_flops_per_s(device),
            "yardstick_s": seconds_of(lambda: _step(problem, yardstick_gradient), device),
            "ours_s": seconds_of(lambda: _step(problem, ours), device),
        }
        turns.append(turn)
        print(f"turn {number + 1}: " + _told(turn, problem.flops))
    report = {
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
        **describe(),
        "threads": arguments.threads,
        "width": arguments.width,
        "precision": arguments.precision,
        "gflop_per_step": problem.flops / 1e9,
        "turns": turns,
        "variants": _variants(problem, device) if arguments.variants else {},
    }
    print(_summary(turns, problem.flops))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {arguments.out}")
    return 0


def _step(problem: Problem, gradient: Callable[[Problem], torch.Tensor]) -> None:
    """A whole step: draw a network, find the gradient, move copies of the images."""
    device = problem.real.device
    draw = draws_around(
        problem.parameters.values.clone(),
        kind="sphere",
        radius=5.0,
        sigma=1.0,
        mask=None,
        generator=torch_generator(2, device),
    )
    before = problem.parameters.values.clone()
    draw(problem.parameters.values)
    images, velocity = problem.synthetic.clone(), torch.zeros_like(problem.synthetic)
    sgd_step_(images, gradient(problem), velocity, learning_rate=1.0, momentum=0.5)
    problem.parameters.values.copy_(before)


def _told(turn: dict[str, float], flops: float) -> str:
    matrix = turn["matrix_flops_per_s"]
    parts = [f"matrix product {matrix / 1e9:,.0f} GFLOP/s"]
    for name in ("yardstick", "ours"):
        seconds = turn[f"{name}_s"]
        rate = flops / seconds
        parts.append(f"{name} {seconds:.3f} s = {rate / 1e9:,.1f} GFLOP/s = {rate / matrix:.1%}")
    return "; ".join([*parts, f"ratio {turn['yardstick_s'] / turn['ours_s']:.2f}"])


def _summary(turns: list[dict[str, float]], flops: float) -> str:
    ratios = [turn["yardstick_s"] / turn["ours_s"] for turn in turns]
    lines = [f"{flops / 1e9:,.0f} GFLOP a step; medians over {len(turns)} turns, and range:"]
    for name in ("yardstick", "ours"):
        shares = [flops / turn[f"{name}_s"] / turn["matrix_flops_per_s"] for turn in turns]
        rate = statistics.median(flops / turn[f"{name}_s"] for turn in turns)
        lines.append(
            f"  {name}: {rate / 1e9:,.1f} GFLOP/s, {statistics.median(shares):.1%} of the matrix "
            f"product ({min(shares):.1%} to {max(shares):.1%})"
        )
    lines.append(
        f"  ours is {statistics.median(ratios):.2f} times as fast "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )
    return "\n".join(lines)


def _variants(problem: Problem, device: torch.device) -> dict[str, float]:
    """Milliseconds of a forward pass per real image; the best of three, over all 2,560."""
    model = problem.model
    found: dict[str, float] = {}
    last = problem.real.contiguous(memory_format=torch.channels_last)

    def record(name: str, forward: Callable[[torch.Tensor], object], images: torch.Tensor) -> None:
        with torch.no_grad():
            forward(images[:256])
            seconds = min(seconds_of(lambda: forward(images), device) for _ in range(3))
        found[name] = 1e3 * seconds / len(images)
        print(f"  {name}: {found[name]:.3f} ms an image")

    def in_parts(size: int) -> Callable[[torch.Tensor], object]:
        return lambda images: [model.blocks(part) for part in images.split(size)]

    for size in (16, 64, 256):
        record(f"modules, NCHW, {size} at once", in_parts(size), problem.real)
        record(f"modules, channels last, {size} at once", in_parts(size), last)
    for mebibytes in (2, 4, 8, 16, 32):
        with _cached_bytes(problem, mebibytes << 20):
            record(f"ours, {mebibytes} MiB at once", model.embed, problem.real)
    compiled = _compiled(model)
    record(
        "modules, channels last, 16 at once, compiled",
        lambda images: [compiled(part) for part in images.split(16)],
        last,
    )
    return found


@contextlib.contextmanager
def _cached_bytes(problem: Problem, num_bytes: int) -> Iterator[None]:
    """The model as it would be with another `convnet.CACHED_BYTES`."""
    before = problem.model.images_at_once
    problem.model.images_at_once = max(1, before * num_bytes // convnet.CACHED_BYTES)
    try:
        yield
    finally:
        problem.model.images_at_once = before


def _compiled(model: ConvNet) -> Callable[[torch.Tensor], object]:
    """The blocks through torch.compile; compilations are kept from one run to the next."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(".runs/matching/compiled").resolve()))
    began = time.perf_counter()
    compiled: Callable[[torch.Tensor], object] = torch.compile(model.blocks, dynamic=False)
    some = torch.zeros(16, *IMAGE_SHAPE, device=next(model.parameters()).device)
    with torch.no_grad():
        compiled(some.contiguous(memory_format=torch.channels_last))
    print(f"  compiling took {time.perf_counter() - began:.1f} s")
    return compiled
