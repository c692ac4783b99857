"""The only door that edge machines see: it lets node requests through to the SuperLink.

A SuperLink serves nodes, the command line and its own tasks on one port, and whoever reaches the
command line's part may start runs. So edge machines reach this instead. It ends TLS, passes on what
a node needs, by name, and refuses all else; bodies above a limit are cut off as they come. It opens
no message: nodes still prove themselves to the SuperLink by their keys.

``python -m engine.edge.gateway --listen HOST:PORT --superlink HOST:PORT --ca FILE --cert FILE
--key FILE``
"""

from __future__ import annotations

import argparse
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

NODE_CALLS = frozenset(
    f"/v1/fleet/{call}"
    for call in (
        "activate-node",
        "confirm-message-received",
        "deactivate-node",
        "get-fab",
        "get-run",
        "pull-messages",
        "pull-object",
        "push-messages",
        "push-object",
        "register-node",
        "send-node-heartbeat",
        "unregister-node",
    )
)
"""What a node calls. One without a registered key is refused by the SuperLink, which says why."""

MAX_BODY_BYTES = 32 * 2**20
"""Of one request. Arrays travel in pieces of 5 MB; what describes them is small."""

UPSTREAM_TIMEOUT_S = 60.0
KEEP_ALIVE_S = 75
"""Nodes call every few seconds; a connection that outlasts the pause needs no new handshake."""

UPSTREAM_KEEP_ALIVE_S = 2.0
"""Less than the SuperLink's five, so that no request meets a connection that is being closed."""

MAX_CONNECTIONS = 512

_OF_ONE_CONNECTION = frozenset(
    b"connection expect host keep-alive proxy-authenticate proxy-authorization proxy-connection te "
    b"trailer transfer-encoding upgrade".split()
)

log = logging.getLogger("tessera.gateway")


class TooLargeError(Exception):
    """A body goes on past the limit."""


class Gateway:
    """An ASGI application that passes node calls on."""

    def __init__(self, upstream: httpx.AsyncClient, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._upstream = upstream
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"]
        if (method, path) == ("GET", "/health"):
            await self._health(send)
        elif method != "POST" or path not in NODE_CALLS or scope["query_string"]:
            log.warning("refused %s %.200r from %s", method, path, _peer(scope))
            # 403 tells a node that its run is over.
            await _answer(send, 404, b"not a call of nodes")
        else:
            await self._pass_on(scope, receive, send)

    async def _health(self, send: Send) -> None:
        try:
            healthy = (await self._upstream.get("/health")).status_code == 200
        except httpx.HTTPError:
            healthy = False
        await _answer(send, 200 if healthy else 503, b"ok" if healthy else b"no SuperLink")

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _end_to_end(scope["headers"])
        told = dict(headers).get(b"content-length", b"0")
        if not told.isdigit() or int(told) > self._max_body_bytes:
            await self._refuse_size(scope, send)
            return
        request = self._upstream.build_request(
            "POST", scope["path"], headers=headers, content=self._body(receive)
        )
        try:
            response = await self._upstream.send(request, stream=True)
        except TooLargeError:
            await self._refuse_size(scope, send)
            return
        except httpx.HTTPError as error:
            log.warning("no answer from the SuperLink: %s", type(error).__name__)
            await _answer(send, 503, b"the SuperLink does not answer")
            return
        try:
            back = _end_to_end(response.headers.raw)
            await send(
                {"type": "http.response.start", "status": response.status_code, "headers": back}
            )
            async for part in response.aiter_raw():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await response.aclose()

    async def _refuse_size(self, scope: Scope, send: Send) -> None:
        limit = self._max_body_bytes
        log.warning("refused more than %d bytes from %s", limit, _peer(scope))
        await _answer(send, 413, f"more than {limit} bytes".encode(), close=True)

    async def _body(self, receive: Receive) -> AsyncIterator[bytes]:
        received, more = 0, True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                raise httpx.ReadError("the node hung up")
            part, more = event.get("body", b""), event.get("more_body", False)
            received += len(part)
            if received > self._max_body_bytes:
                raise TooLargeError
            yield part


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    return [(k.lower(), v) for k, v in headers if k.lower() not in _OF_ONE_CONNECTION]


async def _answer(send: Send, status: int, text: bytes, *, close: bool = False) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    headers += [(b"connection", b"close")] * close
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def _peer(scope: Scope) -> str:
    return str((scope.get("client") or ("unknown",))[0])


@asynccontextmanager
async def connected(superlink: str, authority: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the SuperLink that trusts `authority` and nobody else."""
    limits = httpx.Limits(max_connections=MAX_CONNECTIONS, keepalive_expiry=UPSTREAM_KEEP_ALIVE_S)
    async with httpx.AsyncClient(
        base_url=f"https://{superlink}",
        verify=ssl.create_default_context(cafile=authority),
        limits=limits,
        timeout=UPSTREAM_TIMEOUT_S,
        trust_env=False,
    ) as client:
        yield client


async def serve(listen: str, superlink: str, *, ca: str, cert: str, key: str) -> None:
    """Serve until told to stop."""
    host, _, port = listen.rpartition(":")
    async with connected(superlink, ca) as client:
        config = uvicorn.Config(
            Gateway(client),
            host=host.strip("[]"),
            port=int(port),
            ssl_certfile=cert,
            ssl_keyfile=key,
            lifespan="off",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            log_level="warning",
        )
        log.info("nodes are let through from %s to %s", listen, superlink)
        await uvicorn.Server(config).serve()


def main() -> None:
    """Read the command line and serve."""
    import asyncio

    parser = argparse.ArgumentParser(prog="python -m engine.edge.gateway")
    for name in ("listen", "superlink", "ca", "cert", "key"):
        parser.add_argument(f"--{name}", required=True)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    asyncio.run(serve(given.listen, given.superlink, ca=given.ca, cert=given.cert, key=given.key))


if __name__ == "__main__":
    main()
