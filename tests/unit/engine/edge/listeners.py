"""Servers that are not the one meant: they take down what they are sent. Not a test."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.edge.server import ServerAddress


class Listener:
    """Shakes hands with all who come.

    Args:
        server: Folder of ``server.crt`` and ``server.key``; None speaks plain HTTP.

    Attributes:
        address: Where it listens.
        received: What came after the handshake, or without one.
    """

    def __init__(self, server: Path | None) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = ServerAddress("127.0.0.1", self._socket.getsockname()[1])
        self.received = b""
        self._context = None
        if server is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(server / "server.crt", server / "server.key")
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    self._answer(connection)
                except OSError:
                    continue

    def _answer(self, connection: socket.socket) -> None:
        if self._context is None:
            self.received += connection.recv(10_000)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            return
        with self._context.wrap_socket(connection, server_side=True) as secure:
            while more := secure.recv(10_000):
                self.received += more
                secure.sendall(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")


@contextmanager
def listening(server: Path | None) -> Iterator[Listener]:
    """A listener for as long as it is needed."""
    listener = Listener(server)
    try:
        yield listener
    finally:
        listener.close()
