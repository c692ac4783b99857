"""Processes that call clients: one imports the ClientApp, and forks a worker whenever asked.

So imports happen once, in a process that computes nothing and has one thread, and a worker that
ends is replaced in milliseconds.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from flwr.app import Error, Message

from engine.channel import Channel, RecordFile, read_record
from engine.client_call import Outcome, load_client_app
from engine.flwr_seam import CLIENT_CRASHED
from engine.resident_client import ResidentClient

NAME_BYTES = 16
"""Of a worker's name, filled up with spaces: each connection comes with so many bytes."""


def serve(control: int, client_app: str, client_threads: int, folder: str) -> None:
    """Fork a worker for every connection that comes, until whoever sends them is gone.

    Args:
        control: A socket over which connections come, each with the worker's name.
        client_app: ``module:attribute`` of the ClientApp.
        client_threads: torch threads of a worker.
        folder: What is exchanged lies there; removed at the end.
    """
    parent = socket.socket(fileno=control)
    try:
        load_client_app(client_app)
    except BaseException:
        parent.sendall("".join(traceback.format_exception_only(*sys.exc_info()[:2])).encode())
        raise SystemExit(1) from None
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        name, descriptors, *_ = socket.recv_fds(parent, NAME_BYTES, 1)
        if not name:
            shutil.rmtree(folder, ignore_errors=True)
            os.killpg(0, signal.SIGKILL)
        if os.fork() == 0:
            parent.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            connection, own = Connection(descriptors[0]), name.decode().strip()
            _work(Channel(connection, Path(folder), own), client_app, client_threads)
        os.close(descriptors[0])


def _work(channel: Channel, client_app: str, client_threads: int) -> None:
    """Answer calls until the peer hangs up; does not return."""
    code = 1
    try:
        client = ResidentClient(client_app, client_threads, RecordFile, read_record)
        channel.send(os.getpid())
        while True:
            try:
                message, parts, context = channel.receive()
            except (EOFError, OSError):
                code = 0
                return
            outcome = client.call(message, parts, context)
            try:
                channel.send(outcome)
            except ConnectionError:
                raise
            except OSError as error:  # nothing has gone out yet: its file could not be written
                reason = f"{type(error).__name__}: the reply cannot be written: {error.strerror}"
                channel.send(
                    Outcome(Message(Error(CLIENT_CRASHED, reason), reply_to=message), None)
                )
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
