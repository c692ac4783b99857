"""A node that has a registered key and does not keep to the rules. A driver, not a test.

``python -m tests.integration.hostile_node MODES SERVER FOLDER PARTITION`` joins with the key in
FOLDER and answers with the installed ClientApp, but the k-th training message as the k-th of the
modes says, which are separated by commas; the last one goes on:

- ``honest``: as it should;
- ``duplicate``: sends every reply twice;
- ``replay``: as it should, and sends its first reply again;
- ``oversize``: 64 MiB in the place of an array;
- ``malformed``: an array whose header tells another shape than its bytes;
- ``object``: an array of Python objects, which only pickle could read;
- ``nan``: numbers that are none;
- ``empty``: nothing at all.
"""

from __future__ import annotations

import io
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.common.config import get_fused_config_from_fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supernode.fleet_http_connection import http_request_response

from client.app import app
from engine.flwr_seam import set_message_id

OVERSIZE_BYTES = 64 << 20

Send = Callable[[Message], None]


def main(modes: list[str], server: str, folder: Path, partition_id: int) -> None:
    """Join, and answer until ended."""
    key = load_ssh_private_key((folder / "key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    with http_request_response(
        server, False, (folder / "ca.crt").read_bytes(), (key, key.public_key()), 0
    ) as connection:
        node_id, receive, send, get_run, get_fab, pull_object, push_object, confirm = connection
        print(f"joined {server} as node {node_id}", flush=True)

        def send_whole(reply: Message) -> None:
            set_message_id(reply, reply.object_id)
            with no_object_id_recompute():
                objects = get_all_nested_objects(reply)
                wanted, session = send(reply, get_object_tree(reply), 0.0)
                run_id = reply.metadata.run_id
                push_objects(
                    objects,
                    lambda object_id, content: push_object(run_id, session, object_id, content),
                    object_ids_to_push=wanted,
                )
            print(f"sent a reply to {reply.metadata.message_type}", flush=True)

        held: list[Message] = []
        left = list(modes)
        contexts: dict[int, Context] = {}
        while True:
            received = receive()
            if received is None:
                time.sleep(0.5)
                continue
            shell, tree = received
            run_id = shell.metadata.run_id
            if run_id not in contexts:
                run = get_run(run_id)
                config = get_fused_config_from_fab(get_fab(run.fab_hash, run_id).content, run)
                node_config: Any = {"partition-id": partition_id, "data": str(folder / "data")}
                node_config["state"] = str(folder / "state")
                contexts[run_id] = Context(run_id, node_id, node_config, RecordDict(), config)
            message = pull_and_inflate_object_from_tree(
                tree,
                lambda object_id, run_id=run_id: pull_object(run_id, object_id),  # type: ignore[misc]
                lambda object_id, run_id=run_id: confirm(run_id, object_id),  # type: ignore[misc]
                return_type=Message,
            )
            set_message_id(message, tree.object_id)
            reply = app(message, contexts[run_id])
            if message.metadata.message_type == "train":
                _answer(left.pop(0) if len(left) > 1 else left[0], reply, held, send_whole)
            else:
                send_whole(reply)


def _answer(mode: str, reply: Message, held: list[Message], send: Send) -> None:
    print(f"answers as {mode}", flush=True)
    if mode in _TAMPERED:
        _TAMPERED[mode](reply)
    send(reply)
    if mode == "duplicate":
        # Under another id: Flower knows a message by what is in it.
        again = Message(reply.content, reply_to=_request_of(reply))
        again.metadata.__dict__["_created_at"] = reply.metadata.created_at + 1e-3
        send(again)
    if mode == "replay" and held:
        send(held[0])
    held.append(reply)


def _request_of(reply: Message) -> Message:
    """As much of the request as a reply to it is made of."""
    metadata = reply.metadata
    request = Message(RecordDict(), reply_to=reply)
    request.metadata.__dict__.update(
        _message_id=metadata.reply_to_message_id,
        _src_node_id=metadata.dst_node_id,
        _dst_node_id=metadata.src_node_id,
    )
    return request


def _first_array(reply: Message) -> tuple[ArrayRecord, str]:
    for record in reply.content.values():
        if isinstance(record, ArrayRecord) and record:
            return record, next(iter(record))
    raise AssertionError("the reply holds no array")


def _replace(make: Callable[[Array], Array]) -> Callable[[Message], None]:
    def tamper(reply: Message) -> None:
        record, name = _first_array(reply)
        record[name] = make(record[name])

    return tamper


def _oversize(array: Array) -> Array:
    return Array(np.zeros(OVERSIZE_BYTES // 4, dtype=np.float32))


def _malformed(array: Array) -> Array:
    told = io.BytesIO()
    shape = (10**6, 10**6, 10**6)
    np.lib.format.write_array_header_1_0(
        told, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return Array(array.dtype, array.shape, array.stype, told.getvalue() + b"\0" * 36)


def _object(array: Array) -> Array:
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"not": "numbers"}], dtype=object), allow_pickle=True)
    return Array(array.dtype, array.shape, array.stype, pickled.getvalue())


def _nan(array: Array) -> Array:
    return Array(np.full(array.shape, np.nan, dtype=np.float32))


def _empty(reply: Message) -> None:
    reply.content = RecordDict()


_TAMPERED: dict[str, Callable[[Message], None]] = {
    "oversize": _replace(_oversize),
    "malformed": _replace(_malformed),
    "object": _replace(_object),
    "nan": _replace(_nan),
    "empty": _empty,
}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    main(sys.argv[1].split(","), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
