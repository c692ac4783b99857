"""Messages to `tests.unit.engine.counting_client` over a grid, for the tests of the engines."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from engine.grid import ResidentGrid


def large_arrays() -> ArrayRecord:
    weights = np.random.default_rng(0).normal(size=(100, 400))
    return ArrayRecord({"w": Array(weights)})


def exchange(
    grid: ResidentGrid,
    arrays: ArrayRecord | None = None,
    *,
    kind: str = "train",
    config: ConfigRecord | None = None,
    timeout: float | None = None,
) -> dict[int, Message]:
    """Send one message to each partition and file the replies by partition."""
    content = RecordDict({"config": config or ConfigRecord()})
    if arrays is not None:
        content["arrays"] = arrays
    messages = [Message(content, node_id, kind) for node_id in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages, timeout=timeout))
    filed = {grid.partition_of(reply.metadata.src_node_id): reply for reply in replies}
    assert len(filed) == len(replies)
    return filed
