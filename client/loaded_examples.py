"""Clients' examples as ready tensors, kept from round to round as far as memory goes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from core.examples import ExampleSet


class LoadedExamples:
    """The examples that were used last, up to a number of bytes.

    Args:
        most_bytes: Of all that is kept; examples that alone take more are not kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[int, ExampleSet] = OrderedDict()
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Of all that is kept."""
        return self._num_bytes

    def get(self, partition_id: int, load: Callable[[], ExampleSet]) -> ExampleSet:
        """A client's examples; `load` makes them where they are not kept."""
        if partition_id in self._kept:
            self._kept.move_to_end(partition_id)
            return self._kept[partition_id]
        examples = load()
        if (num_bytes := examples.num_bytes) <= self._most_bytes:
            while self._num_bytes + num_bytes > self._most_bytes:
                self._num_bytes -= self._kept.popitem(last=False)[1].num_bytes
            self._kept[partition_id] = examples
            self._num_bytes += num_bytes
        return examples
