"""Clients' examples are kept up to a number of bytes, those used last."""

from __future__ import annotations

import torch

from client.loaded_examples import LoadedExamples
from core.examples import Examples, labelled

EACH = 4 * (4 * 3 + 8)
"""Bytes of four examples of three float32 pixels and an int64 label."""


class Loader:
    """Makes examples and notes for whom."""

    def __init__(self, most_bytes: int) -> None:
        self.kept = LoadedExamples(most_bytes)
        self.loaded: list[int] = []

    def ask(self, partition_id: int, count: int = 4) -> Examples:
        def load() -> Examples:
            self.loaded.append(partition_id)
            return Examples(
                torch.full((count, 1, 1, 3), float(partition_id)), torch.zeros(count).long()
            )

        return labelled(self.kept.get(partition_id, load))


def test_a_federation_that_fits_is_loaded_once() -> None:
    loader = Loader(3 * EACH)
    first = [loader.ask(k) for k in range(3)]
    again = [loader.ask(k) for k in range(3)]
    assert loader.loaded == [0, 1, 2]
    assert all(one is other for one, other in zip(first, again, strict=True))
    assert loader.kept.num_bytes == 3 * EACH


def test_those_used_last_stay() -> None:
    loader = Loader(2 * EACH)
    for k in (0, 1, 0, 2):
        loader.ask(k)
    loader.loaded.clear()
    for k in (0, 2, 1):
        loader.ask(k)
    assert loader.loaded == [1]


def test_bytes_never_exceed_the_limit_whoever_is_asked() -> None:
    loader = Loader(5 * EACH)
    generator = torch.Generator().manual_seed(0)
    for k in torch.randint(0, 50, (500,), generator=generator).tolist():
        examples = loader.ask(k, count=1 + k % 9)
        assert len(examples) == 1 + k % 9 and examples.inputs[0, 0, 0, 0] == k
        assert 0 < loader.kept.num_bytes <= 5 * EACH


def test_what_is_larger_than_the_limit_is_not_kept_and_displaces_nothing() -> None:
    loader = Loader(2 * EACH)
    loader.ask(0)
    assert len(loader.ask(1, count=9)) == 9
    assert loader.kept.num_bytes == EACH
    loader.ask(0)
    loader.ask(1, count=9)
    assert loader.loaded == [0, 1, 1]
