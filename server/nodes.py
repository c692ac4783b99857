"""Which of Flower's nodes holds which partition."""

from __future__ import annotations

import time

from flwr.app import Message
from flwr.serverapp import Grid

from core.errors import RunError
from core.wire import Record, RecordSpec
from strategies.flower import from_flower, to_flower

JOIN_TIMEOUT_S = 60.0


def nodes_by_partition(grid: Grid, num_clients: int) -> dict[int, int]:
    """Map partition ids 0 .. num_clients - 1 to node ids.

    Tessera's own grid knows; any other is asked once, node by node, because Flower draws node ids
    at random.

    Raises:
        RunError: Nodes are missing, or two hold the same partition.
    """
    if num_clients == 0:
        return {}
    if getattr(grid, "node_is_partition", False):
        return dict(enumerate(sorted(grid.get_node_ids())))
    node_ids = _wait_for_nodes(grid, num_clients)
    requests = [
        Message(to_flower(Record()), dst_node_id=node_id, message_type="query")
        for node_id in node_ids
    ]
    found: dict[int, int] = {}
    for reply in grid.send_and_receive(requests, timeout=JOIN_TIMEOUT_S):
        if reply.has_error():
            raise RunError(
                f"node {reply.metadata.src_node_id} cannot say which partition it "
                f"holds: {reply.error.reason}"
            )
        partition_id = _partition_id(reply)
        if partition_id in found:
            raise RunError(
                f"two nodes hold partition {partition_id}; give each its own partition-id"
            )
        found[partition_id] = reply.metadata.src_node_id
    missing = sorted(set(range(num_clients)) - found.keys())
    if missing:
        raise RunError(
            f"no node holds partitions {missing}; the federation needs one for each of "
            f"partition.clients={num_clients}"
        )
    return found


def _partition_id(reply: Message) -> int:
    form = RecordSpec(metrics=("partition_id",))
    try:
        record = from_flower(reply.content, form)
    except ValueError as error:
        raise RunError(f"node {reply.metadata.src_node_id}: {error}") from error
    partition_id = record.metrics.get("partition_id")
    if not isinstance(partition_id, int) or partition_id < 0:
        raise RunError(
            f"node {reply.metadata.src_node_id} holds partition {partition_id}; it must be a whole "
            "number from 0"
        )
    return partition_id


def _wait_for_nodes(grid: Grid, num_clients: int) -> list[int]:
    deadline = time.monotonic() + JOIN_TIMEOUT_S
    while True:
        node_ids = sorted(grid.get_node_ids())
        if len(node_ids) >= num_clients:
            return node_ids
        if time.monotonic() > deadline:
            raise RunError(
                f"{len(node_ids)} nodes joined within {JOIN_TIMEOUT_S:g} s and "
                f"partition.clients={num_clients} are needed; start as many, such as with "
                f'--federation-config "num-supernodes={num_clients}"'
            )
        time.sleep(0.2)
