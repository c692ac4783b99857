"""Everything of Flower 1.41 that an edge client uses and that is not public, and nothing else."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Self

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, ErrorCode, SubStatus
from flwr.common.serde import context_from_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PullTaskInputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    pull_and_inflate_object_from_tree,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

from engine.flwr_seam import set_message_id

APP_REFUSED = ErrorCode.INVALID_FAB

ACQUIRE_METHOD = "/flwr.proto.Runtime/AcquireTask"
"""The call that the shared secret protects; every other one needs the token it hands out."""

HEARTBEAT_S = HEARTBEAT_DEFAULT_INTERVAL / 3
"""Seconds between signs of life of a task: a claim lapses after 30 s, a task after 60 s."""

MESSAGE_WAIT_S = 10.0
"""How long a message may take to show up after its task: a SuperNode makes the task first."""

_JOINED = re.compile(r"SuperNode ID: (\d+)")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class RuntimeApiError(Exception):
    """The SuperNode did not do as it was asked, or is not there."""


class Registration(Enum):
    """What a SuperLink says of a key."""

    REGISTERED = "registered"
    UNKNOWN = "unknown"
    NOT_AUTHENTIC = "not authentic"


def plain(line: str) -> str:
    """A line of Flower's log without its colours."""
    return _ANSI.sub("", line).strip()


def is_of_note(line: str) -> bool:
    """Whether a line of a SuperNode's log tells of more than of its own runtime API."""
    return (
        bool(line) and line != "INFO :" and not line.startswith("INFO:") and "FastAPI" not in line
    )


def joined_as(line: str) -> int | None:
    """The node id that a SuperNode logs once it has joined."""
    found = _JOINED.search(line)
    return int(found[1]) if found else None


def says_refused(line: str) -> bool:
    """Whether a SuperNode logs that the SuperLink does not let it join."""
    return f"[code: {ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:d}]" in line


def supernode_arguments(
    *,
    superlink: str,
    root_certificates: Path,
    private_key: Path,
    node_config: Path,
    runtime_port: int,
    secret: Path,
    max_retries: int | None,
    health: str | None,
) -> list[str]:
    """Arguments of ``flower-supernode``.

    Args:
        superlink: HOST:PORT.
        root_certificates: PEM file.
        private_key: OpenSSH private key of the node.
        node_config: A TOML file, which no value needs quoting for a command line in.
        runtime_port: Where its task runner reaches it, on the loopback interface.
        secret: File of what the task runner proves itself by.
        max_retries: Attempts in a row to reach the SuperLink again; None for no end.
        health: HOST:PORT of a health server, if one is wanted.
    """
    arguments = ["--superlink", superlink, "--root-certificates", str(root_certificates)]
    arguments += ["--auth-supernode-private-key", str(private_key)]
    arguments += ["--node-config", str(node_config)]
    arguments += ["--isolation", "process", "--host", "127.0.0.1", "--port", str(runtime_port)]
    arguments += ["--superexec-auth-secret-file", str(secret)]
    if max_retries is not None:
        arguments += ["--max-retries", str(max_retries)]
    if health is not None:
        arguments += ["--health-server-address", health]
    return arguments


def run_supernode() -> None:
    """Be ``flower-supernode`` with the arguments in ``sys.argv``.

    Returns where its loop has ended and threads of its own would keep the process alive for ever.
    """
    from flwr.supernode.cli.flower_supernode import flower_supernode

    flower_supernode()


@dataclass(frozen=True, slots=True)
class Fleet:
    """A SuperLink as the node with this key sees it.

    Attributes:
        server: HOST:PORT.
        root_certificates: Content of the PEM file.
        key: The node's private key.
    """

    server: str
    root_certificates: bytes
    key: ec.EllipticCurvePrivateKey

    def registration(self) -> Registration:
        """Whether the key is registered; changes nothing on the server.

        Asks to be activated with an interval that is refused, after the key has been looked up.

        Raises:
            httpx.HTTPError: The server gives no answer, or another.
        """
        request = ActivateNodeRequest(
            public_key=public_key_to_bytes(self.key.public_key()), heartbeat_interval=0.0
        )
        try:
            with self._client() as client:
                client.ActivateNode(request)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.UNAUTHORIZED:
                return Registration.NOT_AUTHENTIC
            told = FlowerError.from_json(error.response.text)
            if told is not None and told.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
                return Registration.UNKNOWN
            if told is not None and told.code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
                return Registration.REGISTERED
            raise
        return Registration.REGISTERED

    def deactivate(self, node_id: int) -> bool:
        """Take the node offline.

        A node that was killed counts as online for up to a minute more. Until then it may not join,
        and what it had been asked is waited for.

        Returns:
            Whether it counted as online.
        """
        try:
            with self._client() as client:
                client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
        except httpx.HTTPError:
            return False
        return True

    def _client(self) -> FleetHttpClient:
        return FleetHttpClient.from_server_address(
            self.server,
            False,
            self.root_certificates,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(self.key, self.key.public_key()),
            ],
        )


class RuntimeApi:
    """A SuperNode as its task runner sees it.

    Args:
        address: HOST:PORT of its runtime API, on this machine.
        secret: What the SuperNode knows the task runner by.
    """

    def __init__(self, address: str, secret: bytes) -> None:
        self._address = address
        self._client = _runtime_client(
            address,
            SuperExecAuthHttpInterceptor(
                master_secret=secret, protected_methods=frozenset({ACQUIRE_METHOD})
            ),
        )

    def acquire(self) -> HeldTask | None:
        """Take a message to answer, if there is one.

        Raises:
            RuntimeApiError: The SuperNode does not answer.
        """
        request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        try:
            response = self._client.AcquireTask(request)
        except (httpx.HTTPError, ValueError) as error:
            raise RuntimeApiError(f"AcquireTask: {error}") from error
        if not response.HasField("task") or not response.token:
            return None
        return HeldTask(self._address, response.token)

    def close(self) -> None:
        """Hang up."""
        self._client.close()


@dataclass(frozen=True, slots=True)
class TaskInput:
    """What is to be answered.

    Attributes:
        message: The request.
        context: The client's context.
        app: ``publisher/name`` of the app that the server runs.
    """

    message: Message
    context: Context
    app: str


class HeldTask:
    """A task that this process has taken on, with signs of life until `close`.

    Within ``with``, so that it is closed.
    """

    def __init__(self, address: str, token: str) -> None:
        self._client = _runtime_client(address, RuntimeTokenHttpInterceptor(token))
        self._context: Context | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._beat, name="task-heartbeat", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pull(self) -> TaskInput:
        """Fetch what is to be answered, arrays and all.

        Raises:
            RuntimeApiError: The SuperNode does not have it, or has gone.
        """
        try:
            given = self._client.PullTaskInput(PullTaskInputRequest())
            context = self._context = context_from_proto(given.context)
            pulled = self._pull_messages()
            node, run_id = Node(node_id=context.node_id), context.run_id
            tree = pulled.message_object_trees[0]
            message = pull_and_inflate_object_from_tree(
                tree,
                make_pull_object_fn_protobuf(self._client.PullObject, node, run_id),
                make_confirm_message_received_fn_protobuf(
                    self._client.ConfirmMessageReceived, node, run_id
                ),
                return_type=Message,
            )
        except (httpx.HTTPError, ObjectPullError, ValueError) as error:
            raise RuntimeApiError(f"a message could not be fetched: {error}") from error
        set_message_id(message, tree.object_id)
        return TaskInput(message, context, given.run.fab_id)

    def push(self, reply: Message, state: RecordDict | None) -> None:
        """Hand over the reply, and the client's state where it has changed.

        Raises:
            RuntimeApiError: The SuperNode does not take it, or has gone.
        """
        assert self._context is not None, "pull comes first"
        failure = (reply.error.reason or "error").partition("\n")[0] if reply.has_error() else ""
        try:
            push_message(self._client, reply, self._context)
            if state is not None:
                self._context.state = state
            push_task_output(
                self._client,
                None if state is None else self._context,
                SubStatus.FAILED if failure else SubStatus.COMPLETED,
                failure,
            )
        except (httpx.HTTPError, ObjectPushError, ValueError) as error:
            raise RuntimeApiError(f"a reply could not be handed over: {error}") from error

    def close(self) -> None:
        """End the signs of life."""
        self._closed.set()
        self._client.close()

    def _pull_messages(self) -> PullAppMessagesResponse:
        deadline = time.monotonic() + MESSAGE_WAIT_S
        while True:
            pulled = self._client.PullMessages(PullAppMessagesRequest())
            if pulled.messages_list:
                return pulled
            if time.monotonic() > deadline:
                raise ValueError("the task has no message")
            time.sleep(0.2)

    def _beat(self) -> None:
        while not self._closed.is_set():
            # Whether the SuperNode is there is seen where it is asked for something.
            with suppress(httpx.HTTPError, RuntimeError):
                self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            self._closed.wait(HEARTBEAT_S)


def node_config_toml(node_config: Mapping[str, str | int | float]) -> str:
    """`node_config` as the TOML that ``--node-config FILE.toml`` reads.

    Raises:
        ValueError: A text holds a control character.
    """
    return "".join(f"{key} = {_toml(value)}\n" for key, value in node_config.items())


def _toml(value: str | int | float) -> str:
    if not isinstance(value, str):
        return repr(value)
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise ValueError(f"{value!r} holds a control character")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _runtime_client(
    address: str, interceptor: SuperExecAuthHttpInterceptor | RuntimeTokenHttpInterceptor
) -> RuntimeHttpClient:
    """A client without retries: the SuperNode is a process of this machine that is watched."""
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec"), interceptor],
    )
