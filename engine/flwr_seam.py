"""Everything of Flower 1.41 that is used and not public, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID as SUPERLINK_NODE_ID
from flwr.common.constant import ErrorCode
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity

from core.errors import RunError

CLIENT_RAISED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
CLIENT_CRASHED = ErrorCode.CLIENT_APP_CRASHED

_identity = threading.Lock()


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its id, which Flower's own grids set in the same way."""
    message.metadata.__dict__["_message_id"] = message_id


@contextmanager
def run_identity(run_id: int) -> Iterator[Run]:
    """Set whose messages this process makes, for the length of one run.

    ``Message(content, dst_node_id, message_type)`` raises where this is not set.

    Raises:
        RunError: Another run is going on in this process; the identity is process-wide.
    """
    if not _identity.acquire(blocking=False):
        raise RunError(
            "a simulation is already running in this process; "
            "wait for it to end, or start this one in another process"
        )
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    try:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = (
            run_id,
            SUPERLINK_NODE_ID,
            run_id,
        )
        yield Run.create_empty(run_id)
    finally:
        TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before
        _identity.release()
