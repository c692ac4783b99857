import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine

import httpx
import pytest

from engine.edge.gateway import NODE_CALLS, Gateway

Answer = Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]


class SuperLink:
    """Stands for one: keeps what reached it."""

    def __init__(self) -> None:
        self.received: list[httpx.Request] = []
        self.bodies: list[bytes] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(await request.aread())
        self.received.append(request)
        if request.url.path.endswith("/get-run"):
            return httpx.Response(401, content=_streamed(b"who are you"))
        return httpx.Response(200, content=_streamed(b"answer"), headers={"x-flwr": "1"})


async def _streamed(text: bytes) -> AsyncIterator[bytes]:
    yield text


async def _ask(
    method: str,
    path: str,
    content: bytes | AsyncIterator[bytes] = b"",
    headers: dict[str, str] | None = None,
    superlink: Answer | None = None,
    max_body_bytes: int = 1000,
) -> httpx.Response:
    upstream = httpx.AsyncClient(
        base_url="https://superlink:9000", transport=httpx.MockTransport(superlink or SuperLink())
    )
    gateway = Gateway(upstream, max_body_bytes)
    async with (
        upstream,
        httpx.AsyncClient(
            base_url="https://gateway:8443", transport=httpx.ASGITransport(gateway)
        ) as node,
    ):
        return await node.request(method, path, content=content, headers=headers)


@pytest.mark.parametrize("path", sorted(NODE_CALLS))
def test_node_calls_pass_with_body_and_signature(path: str) -> None:
    superlink = SuperLink()
    signed = {"content-type": "application/x-protobuf", "x-signature": "abc"}
    answer = asyncio.run(_ask("POST", path, b"body", signed, superlink))
    (received,) = superlink.received
    assert (received.url.path, superlink.bodies) == (path, [b"body"])
    assert received.headers["x-signature"] == "abc"
    assert received.headers["content-length"] == "4"
    assert received.headers["host"] == "superlink:9000"
    if not path.endswith("/get-run"):
        assert (answer.status_code, answer.content, answer.headers["x-flwr"]) == (
            200,
            b"answer",
            "1",
        )


def test_a_refusal_of_the_superlink_comes_back_as_it_is() -> None:
    answer = asyncio.run(_ask("POST", "/v1/fleet/get-run"))
    assert (answer.status_code, answer.content) == (401, b"who are you")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/control/list-nodes"),
        ("POST", "/v1/control/register-node"),
        ("POST", "/v1/runtime/acquire-task"),
        ("POST", "/v1/runtime/responses"),
        ("POST", "/v1/fleet/../control/start-run"),
        ("POST", "/v1/fleet/%2e%2e/control/start-run"),
        ("POST", "/v1/fleet/push-messages/"),
        ("POST", "//v1/fleet/push-messages"),
        ("POST", "/V1/FLEET/push-messages"),
        ("POST", "/v1/fleet/push-messages?x=1"),
        ("POST", "/v1/fleet/"),
        ("GET", "/v1/fleet/push-messages"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
        ("POST", "/health"),
        ("CONNECT", "/v1/fleet/push-messages"),
    ],
)
def test_all_else_is_refused_and_reaches_nobody(
    method: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    superlink = SuperLink()
    answer = asyncio.run(_ask(method, path, superlink=superlink))
    assert answer.status_code == 404
    assert not superlink.received
    assert f"refused {method}" in caplog.text


def test_every_call_of_flower_s_nodes_is_known() -> None:
    from flwr.superlink.routers.fleet.router import router

    assert {getattr(route, "path", "") for route in router.routes} == NODE_CALLS


def test_a_body_that_says_it_is_too_large_is_refused_unread() -> None:
    superlink = SuperLink()
    answer = asyncio.run(_ask("POST", "/v1/fleet/push-object", b"x" * 1001, superlink=superlink))
    assert answer.status_code == 413
    assert not superlink.received


def test_a_body_that_does_not_say_is_cut_off_at_the_limit() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100_000:
            sent += 100
            yield b"x" * 100

    superlink = SuperLink()
    answer = asyncio.run(_ask("POST", "/v1/fleet/push-object", endless(), superlink=superlink))
    assert answer.status_code == 413
    assert not superlink.received


def test_a_body_of_the_limit_passes() -> None:
    superlink = SuperLink()
    answer = asyncio.run(_ask("POST", "/v1/fleet/push-object", b"x" * 1000, superlink=superlink))
    assert answer.status_code == 200
    assert superlink.bodies == [b"x" * 1000]


def test_a_superlink_that_is_gone_is_a_reason_to_try_again() -> None:
    async def gone(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no")

    assert asyncio.run(_ask("POST", "/v1/fleet/get-fab", superlink=gone)).status_code == 503
    assert asyncio.run(_ask("GET", "/health", superlink=gone)).status_code == 503
    assert asyncio.run(_ask("GET", "/health")).status_code == 200
