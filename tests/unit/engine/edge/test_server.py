from pathlib import Path

import pytest

from core.errors import ConfigError, RunError
from engine.edge.credentials import Credentials, read_credentials
from engine.edge.server import ServerAddress, UnreachableError, check_server
from engine.edge.supernode import free_port
from tests.integration.edge_federation import Authority, make_client_folder
from tests.unit.engine.edge.listeners import listening


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def credentials(tmp_path: Path, authority: Authority) -> Credentials:
    return read_credentials(make_client_folder(tmp_path / "client", 0, authority.certificate))


@pytest.mark.parametrize(
    ("text", "host", "port", "shown"),
    [
        ("fl.example.org", "fl.example.org", 8443, "fl.example.org:8443"),
        ("127.0.0.1:99", "127.0.0.1", 99, "127.0.0.1:99"),
        ("::1", "::1", 8443, "[::1]:8443"),
        ("[::1]:99", "::1", 99, "[::1]:99"),
        ("[::1]", "::1", 8443, "[::1]:8443"),
    ],
)
def test_address_is_read(text: str, host: str, port: int, shown: str) -> None:
    address = ServerAddress.parse(text)
    assert (address.host, address.port, str(address)) == (host, port, shown)


@pytest.mark.parametrize(
    "text",
    ["", ":99", "host:", "host:0", "host:65536", "https://host", "a b", "[::1", "h:x", "u@h"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"must be HOST or HOST:PORT"):
        ServerAddress.parse(text)


def test_an_expired_certificate_is_named(authority: Authority, credentials: Credentials) -> None:
    with (
        listening(authority.server("old", days=-2)) as listener,
        pytest.raises(RunError, match=r"certificate of \d{4}-\d\d-\d\d has expired"),
    ):
        check_server(listener.address, credentials)
    assert listener.received == b""


def test_a_certificate_for_another_name_is_told(
    authority: Authority, credentials: Credentials
) -> None:
    with (
        listening(authority.server("other", ["fl.example.org", "192.0.2.7"])) as listener,
        pytest.raises(
            RunError, match=r"not for 127\.0\.0\.1, only for fl\.example\.org, 192\.0\.2\.7"
        ),
    ):
        check_server(listener.address, credentials)
    assert listener.received == b""


def test_another_authority_is_not_believed(tmp_path: Path, credentials: Credentials) -> None:
    with (
        listening(Authority(tmp_path / "other").server("server")) as listener,
        pytest.raises(RunError, match=r"not from the authority in --ca=.*ca\.crt"),
    ):
        check_server(listener.address, credentials)
    assert listener.received == b""


def test_plain_http_gets_nothing_but_an_offer_of_tls(credentials: Credentials) -> None:
    with (
        listening(None) as listener,
        pytest.raises(RunError, match="does not speak TLS") as caught,
    ):
        check_server(listener.address, credentials)
    assert not isinstance(caught.value, UnreachableError)
    assert listener.received[:1] == b"\x16" and b"HTTP" not in listener.received


def test_another_server_of_the_same_authority_is_told(
    authority: Authority, credentials: Credentials
) -> None:
    with (
        listening(authority.server("server")) as listener,
        pytest.raises(RunError, match="answers HTTP 404; there must be a SuperLink"),
    ):
        check_server(listener.address, credentials)


def test_who_does_not_answer_may_do_so_later(credentials: Credentials) -> None:
    with pytest.raises(UnreachableError, match="cannot be reached"):
        check_server(ServerAddress("127.0.0.1", free_port()), credentials)
    with pytest.raises(UnreachableError, match=r"'no-such-host\.invalid' is not known"):
        check_server(ServerAddress("no-such-host.invalid"), credentials)
