"""What every peer reads of the work, and how it tells its progress.

It imports only NumPy and PyTorch, and the network is written as any user would write it, so that
nothing that makes Tessera fast reaches a peer.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Given:
    """The work; see `benchmarks.work` for what is in its folder.

    Attributes:
        inputs: float32, shape (N, 3, S, S), normalised.
        labels: int64, shape (N,).
        clients: int64, shape (K, n).
        cohorts: int64, shape (R, m).
        orders: int64, shape (R, m, n).
        learning_rate: Of local SGD, without momentum or weight decay.
        batch_size: Of local SGD.
        folder: Where it lies.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    clients: torch.Tensor
    cohorts: list[list[int]]
    orders: torch.Tensor
    learning_rate: float
    batch_size: int
    folder: Path

    @classmethod
    def read(cls, folder: Path) -> Given:
        """Read all of it into memory."""
        about = json.loads((folder / "work.json").read_text())
        with np.load(folder / "data.npz") as held:
            arrays = {name: torch.from_numpy(held[name]) for name in held.files}
        mean, std = (torch.tensor(about[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
        return cls(
            inputs=(arrays["images"].to(torch.float32) / 255 - mean) / std,
            labels=arrays["labels"],
            clients=arrays["clients"],
            cohorts=arrays["cohorts"].tolist(),
            orders=arrays["orders"],
            learning_rate=about["learning_rate"],
            batch_size=about["batch_size"],
            folder=folder,
        )

    def initial_model(self) -> nn.Module:
        """The network with the initial weights."""
        model = CNN(int(self.inputs.shape[-1]))
        with np.load(self.folder / "weights.npz") as held:
            model.load_state_dict({name: torch.from_numpy(held[name]) for name in held.files})
        return model

    def examples(self, round: int, client: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels of a client in the order in which it visits them in a round, from 1."""
        place = self.cohorts[round - 1].index(client)
        chosen = self.clients[client][self.orders[round - 1, place]]
        return self.inputs[chosen], self.labels[chosen]


class CNN(nn.Module):
    """Two 5x5 convolutions of 32 and 64 channels with ReLU and 2x2 max pooling, then 512, then 10.

    On 32x32 images 2,156,490 parameters.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            nn.Conv2d(3, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.hidden = nn.Linear(64 * (side // 4) ** 2, 512)
        self.classifier = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, 10) of images (B, 3, S, S)."""
        features = torch.relu(self.hidden(torch.flatten(self.blocks(x), 1)))
        logits: torch.Tensor = self.classifier(features)
        return logits


def train_one_epoch(model: nn.Module, given: Given, round: int, client: int) -> float:
    """One local epoch of SGD, in place; returns the mean loss over the examples visited."""
    inputs, labels = given.examples(round, client)
    optimizer = torch.optim.SGD(model.parameters(), lr=given.learning_rate)
    model.train()
    total = 0.0
    batches = zip(inputs.split(given.batch_size), labels.split(given.batch_size), strict=True)
    for batch, targets in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch), targets)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(targets)
    return total / len(labels)


class Diary:
    """Where a peer writes when each of its rounds ended, and the weights at the end."""

    def __init__(self, out: Path) -> None:
        self._out = out

    def round_ended(self, round: int) -> None:
        """Append one line to ``rounds.jsonl``."""
        with (self._out / "rounds.jsonl").open("a") as file:
            file.write(json.dumps({"round": round, "at": time.time()}) + "\n")

    def finished(self, weights: Mapping[str, Any]) -> None:
        """Write ``weights.npz``; values are tensors or arrays."""
        arrays: dict[str, Any] = {
            name: value.detach().numpy() if isinstance(value, torch.Tensor) else value
            for name, value in weights.items()
        }
        np.savez(self._out / "weights.npz", **arrays)


def arguments(description: str | None) -> argparse.Namespace:
    """The command line of every peer."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--work", type=Path, required=True, help="folder of the work")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--echo", action="store_true", help="clients return what they receive")
    return parser.parse_args()
