import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from core.errors import RecordError
from engine.edge import authority
from engine.edge.credentials import fingerprint

openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen here")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    signer = authority.ensure_authority(tmp_path / "ca")
    authority.ensure_server(tmp_path / "server", signer, ["fl.example.org", "10.1.2.3"])
    authority.ensure_client_key(tmp_path / "client-0")
    return tmp_path


def _handshake(folder: Path, trusted: Path, name: str) -> None:
    """A TLS handshake in this process; raises what a client would."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    client = ssl.create_default_context(cafile=trusted)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve() -> None:
        # The client's refusal is what is looked at.
        with theirs, contextlib.suppress(OSError):
            server.wrap_socket(theirs, server_side=True).close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ours, client.wrap_socket(ours, server_hostname=name):
            pass
    finally:
        thread.join()


@pytest.mark.parametrize(
    "name", ["superlink", "gateway", "localhost", "127.0.0.1", "::1", "fl.example.org", "10.1.2.3"]
)
def test_a_strict_client_accepts_the_server_by_each_of_its_names(made: Path, name: str) -> None:
    _handshake(made / "server", made / "ca" / "ca.crt", name)


def test_another_name_is_refused(made: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        _handshake(made / "server", made / "ca" / "ca.crt", "elsewhere.example.org")


def test_another_authority_is_refused(made: Path, tmp_path: Path) -> None:
    authority.ensure_authority(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(made / "server", tmp_path / "other" / "ca.crt", "localhost")


def test_an_expired_certificate_is_refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer = authority.ensure_authority(made / "ca")
    monkeypatch.setattr(authority, "SERVER_VALID", timedelta(seconds=-1))
    authority.ensure_server(tmp_path / "expired", signer, [])
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        _handshake(tmp_path / "expired", made / "ca" / "ca.crt", "localhost")


@openssl
def test_openssl_verifies_the_chain_for_a_tls_server(made: Path) -> None:
    words = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver"]
    words += ["-verify_hostname", "fl.example.org", "-CAfile", str(made / "ca" / "ca.crt")]
    done = subprocess.run(
        [*words, str(made / "server" / "server.crt")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@openssl
def test_a_server_s_certificate_signs_no_others(made: Path) -> None:
    words = ["openssl", "x509", "-noout", "-ext", "basicConstraints,keyUsage", "-in"]
    told = subprocess.run(
        [*words, str(made / "server" / "server.crt")], capture_output=True, text=True, check=True
    ).stdout
    assert "CA:FALSE" in told
    assert "Certificate Sign" not in told


@ssh_keygen
def test_ssh_keygen_prints_the_same_fingerprint(made: Path) -> None:
    told = subprocess.run(
        ["ssh-keygen", "-lf", str(made / "client-0" / "key.pub")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    key = authority.read_client_key(made / "client-0" / "key")
    assert told[:2] == ["384", fingerprint(key.public_key())]


@ssh_keygen
def test_ssh_keygen_derives_the_same_public_key(made: Path) -> None:
    told = subprocess.run(
        ["ssh-keygen", "-yf", str(made / "client-0" / "key")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert told.split()[:2] == (made / "client-0" / "key.pub").read_text().split()[:2]


def test_files_are_their_owner_s_alone(made: Path) -> None:
    old = os.umask(0)
    try:
        authority.ensure_client_key(made / "client-1")
    finally:
        os.umask(old)
    for path in made.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_again_replaces_nothing(made: Path) -> None:
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    signer = authority.ensure_authority(made / "ca")
    remade = authority.ensure_server(made / "server", signer, ["fl.example.org", "10.1.2.3"])
    authority.ensure_client_key(made / "client-0")
    assert not remade
    assert {path: path.read_bytes() for path in before} == before


def test_a_certificate_that_ends_soon_is_renewed_and_its_key_kept(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer = authority.ensure_authority(made / "ca")
    key = (made / "server" / "server.key").read_bytes()
    names = ["fl.example.org", "10.1.2.3"]
    monkeypatch.setattr(authority, "RENEW_BEFORE", authority.SERVER_VALID)
    assert authority.ensure_server(made / "server", signer, names)
    assert (made / "server" / "server.key").read_bytes() == key
    ends = authority.read_certificate(made / "server" / "server.crt").not_valid_after_utc
    assert ends - datetime.now(UTC) > timedelta(days=396)
    _handshake(made / "server", made / "ca" / "ca.crt", "fl.example.org")


def test_another_name_makes_another_certificate(made: Path) -> None:
    signer = authority.ensure_authority(made / "ca")
    assert authority.ensure_server(made / "server", signer, ["new.example.org"])
    _handshake(made / "server", made / "ca" / "ca.crt", "new.example.org")


def test_a_key_is_never_replaced(made: Path) -> None:
    with pytest.raises(RecordError, match="never replaced"):
        authority.write_private(made / "client-0" / "key", b"other")
    assert b"OPENSSH PRIVATE KEY" in (made / "client-0" / "key").read_bytes()
    assert not list(made.rglob(".key.*"))


def test_a_damaged_key_is_refused_and_left(made: Path) -> None:
    key = made / "client-0" / "key"
    key.write_bytes(b"nonsense")
    with pytest.raises(RecordError, match="no OpenSSH key"):
        authority.ensure_client_key(made / "client-0")
    assert key.read_bytes() == b"nonsense"


def test_an_authority_without_its_key_is_not_made_anew(made: Path) -> None:
    (made / "ca" / "ca.key").unlink()
    with pytest.raises(RecordError, match="bring the key back"):
        authority.ensure_authority(made / "ca")


def test_a_key_of_another_authority_is_refused(made: Path, tmp_path: Path) -> None:
    authority.ensure_authority(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "ca.key", made / "ca" / "ca.key")
    with pytest.raises(RecordError, match="is not the certificate of"):
        authority.ensure_authority(made / "ca")


@pytest.mark.parametrize("host", ["", "a b", "fl.example.org:8443", "-x.org", "x..y", "1.2.3"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="no host name"):
        authority.general_name(host)
