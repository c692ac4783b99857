"""What one update of MELTR's learned loss costs, by optimizer, at equal update frequency.

Every optimizer takes K local steps of the weights and then one step of the learned loss, on the
same images, network and batches; ``multi-task`` takes the K steps alone. Passes are counted as they
are made. Processor time is the median over repetitions in which all contenders take turns, so that
what else the machine does falls on all alike; its ratio to multi-task is taken turn by turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import cast

import torch

from benchmarks.machine import describe
from core.config import TrainConfig
from core.parameters import ParameterVector
from pairing.configuration import parse_config
from strategies.local_sgd import stepper
from workloads.meta.hypergradients import META_OPTIMIZERS, MetaOptimizer, Passes
from workloads.meta.meltr import Meltr, MeltrModel, MeltrObjective, MeltrOptions
from workloads.table import open_workload

UPDATE_EVERY = 3
TRAINING_EXAMPLES = 600
STEP_SIZE = MeltrOptions().step_size
PAPER_S = {
    "multi-task": 547,
    "stocbio": 686,
    "itd": 1296,
    "aid-fp": 638,
    "aid-cg": 624,
    "aid-fp-lite": 574,
}
"""Seconds per epoch in Table 8 of the paper, on eight A100."""


@dataclass
class Contender:
    """One optimizer, and what its turns took."""

    optimizer: MetaOptimizer
    config: TrainConfig
    objective: MeltrObjective
    parameters: ParameterVector
    turns_s: list[float]
    passes: Passes

    def turn(self, batches: Sequence[torch.Tensor]) -> None:
        """K steps and, but for multi-task, one update."""
        objective, parameters = self.objective, self.parameters
        step = stepper(self.config, parameters.values)
        objective.passes, began = Passes(), time.process_time()
        for batch in batches:
            objective.before_step(batch)
            parameters.zero_gradient()
            objective.losses(batch).backward()
            step(parameters.values, parameters.gradient)
            objective.after_step(batch)
        self.turns_s.append(time.process_time() - began)
        self.passes = objective.passes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--repeats", type=int, default=15, help="turns of each optimizer")
    parser.add_argument("--source", default="digits", help="data.source of the images")
    parser.add_argument("--width", type=int, default=32, help="channels of the ConvNet")
    parser.add_argument("--batch-size", type=int, default=32, help="images a step")


def run(arguments: argparse.Namespace) -> int:
    """Print the table; returns the exit code."""
    torch.set_num_threads(1)
    contenders = [_contender(optimizer, arguments) for optimizer in reversed(META_OPTIMIZERS)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(1 + arguments.repeats):
        order = torch.randperm(contenders[0].objective.num_examples, generator=generator)
        held = min(contender.objective.num_examples for contender in contenders)
        batches = order[order < held].split(arguments.batch_size)[:UPDATE_EVERY]
        for contender in contenders:
            contender.turn(batches)
    for contender in contenders:
        del contender.turns_s[0]
    print(table(contenders))
    lite = contenders[-1]
    assert lite.optimizer == "aid-fp-lite"
    largest = largest_curvature(lite.objective)
    factor = abs(1 - STEP_SIZE * largest)
    print(
        f"\nlargest curvature of the learned loss in w, after {3 * len(lite.turns_s) + 3} steps: "
        f"{largest:.1f}; in its direction a term of Neumann's series with eta {STEP_SIZE:g} is "
        f"{factor:.2f} times the one before"
    )
    about = ", ".join(f"{name} {value}" for name, value in describe().items())
    print(f"\n{about}; one thread, {arguments.repeats} turns each")
    return 0


def _contender(optimizer: MetaOptimizer, arguments: argparse.Namespace) -> Contender:
    config = parse_config(
        {
            "strategy": "centralized",
            "workload": "meltr",
            "meltr.optimizer": optimizer,
            "meltr.tasks": "rotation,mixup,random-labels",
            "data.source": arguments.source,
            "data.train-examples": TRAINING_EXAMPLES,
            "train.optimizer": "adam",
            "train.learning-rate": 1e-3,
            "model.width": arguments.width,
            "train.batch-size": arguments.batch_size,
        }
    )
    workload = cast(Meltr, open_workload(config, torch.device("cpu")))
    model = cast(MeltrModel, workload.build_model(0))
    examples = workload.training_examples()
    objective = workload.objective(model, examples, seed=0, partition_id=None)
    parameters = ParameterVector(model)
    parameters.train()
    return Contender(
        optimizer, config.train, cast(MeltrObjective, objective), parameters, [], Passes()
    )


def largest_curvature(objective: MeltrObjective, iterations: int = 30) -> float:
    """The eigenvalue of H of largest magnitude on one batch, by power iteration."""
    bilevel, batch = objective.bilevel, objective.training_batch()
    weights = {name: value.detach().requires_grad_() for name, value in objective.weights().items()}
    phi = dict(objective.phi)
    leaves = list(weights.values())
    loss = bilevel.auxiliary(weights, phi, batch)
    gradient = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
    used = [(part, leaf) for part, leaf in zip(gradient, leaves, strict=True) if part.requires_grad]
    parts, along = zip(*used, strict=True)
    generator = torch.Generator().manual_seed(0)
    vector = [torch.randn(leaf.shape, generator=generator) for leaf in along]
    value = 0.0
    for _ in range(iterations):
        norm = torch.stack([part.square().sum() for part in vector]).sum().sqrt()
        vector = [part / norm for part in vector]
        product = torch.autograd.grad(
            parts, along, vector, retain_graph=True, materialize_grads=True
        )
        value = float(sum((v * p).sum() for v, p in zip(vector, product, strict=True)))
        vector = list(product)
    return value


def table(contenders: Sequence[Contender]) -> str:
    """Passes and time of K steps and an update, against K steps alone."""
    plain = contenders[0]
    assert plain.optimizer == "multi-task"
    steps = 3 * UPDATE_EVERY
    lines = [
        "| optimizer | an update: forward, backward, with graph, through it | its cost, forward "
        "passes | more than the steps alone, counted | CPU ms | more, measured (least to most) "
        "| the paper's seconds per epoch |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for one in contenders:
        ratios = [mine / own for mine, own in zip(one.turns_s, plain.turns_s, strict=True)]
        spent, cost = one.passes, one.passes.equivalent_forwards
        parts = (spent.forwards, spent.backwards, spent.graph_backwards, spent.double_backwards)
        more = PAPER_S[one.optimizer] / PAPER_S["multi-task"] - 1
        cells = [
            one.optimizer,
            ", ".join(map(str, parts)) if cost else "-",
            str(cost) if cost else "-",
            f"{cost / steps:+.0%}" if cost else "-",
            f"{1e3 * median(one.turns_s):.1f}",
            "-"
            if one is plain
            else f"{median(ratios) - 1:+.0%} ({min(ratios) - 1:+.0%} to {max(ratios) - 1:+.0%})",
            f"{PAPER_S[one.optimizer]}" + (f" ({more:+.1%})" if one is not plain else ""),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
