"""Whether a server can be reached, is who it says it is, and knows a client's key.

Looked into before an edge client joins: Flower tells little of why it could not, and tries again
where trying does not help.
"""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography import x509

from core.errors import ConfigError, Problem, RunError
from engine.edge.credentials import Credentials
from engine.edge.deployment import DEFAULT_PORT
from engine.edge.flwr_seam import Fleet, Registration

TIMEOUT_S = 10.0

_EXPIRED, _NOT_YET_VALID, _HOST_NAME, _ADDRESS = 10, 9, 62, 64
"""``X509_V_ERR_*`` of OpenSSL."""

_NOTHING_SENT = "nothing was sent"


class UnreachableError(RunError):
    """A server does not answer; it may do so later."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server is.

    Attributes:
        host: Name or address.
        port: Its one port.
    """

    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> ServerAddress:
        """Read ``HOST``, ``HOST:PORT`` or ``[IPv6]:PORT``.

        Raises:
            ConfigError: It is none of these.
        """
        host, port = text, str(DEFAULT_PORT)
        if text.startswith("["):
            host, closed, after = text[1:].partition("]")
            port = after.removeprefix(":") or port
            valid = bool(closed) and (not after or after.startswith(":"))
        elif text.count(":") == 1:
            host, _, port = text.partition(":")
            valid = True
        else:
            valid = text.count(":") != 1
        valid = valid and bool(host) and not set(host) & set("/@ ") and port.isdecimal()
        if not valid or not 0 < int(port) < 65536:
            rule = (
                "must be HOST or HOST:PORT without https://, such as fl.example.org or "
                f"192.0.2.7:{DEFAULT_PORT}"
            )
            raise ConfigError([Problem("--server", text, rule)])
        return cls(host, int(port))


def check_server(address: ServerAddress, credentials: Credentials) -> None:
    """Check that the server answers by TLS, is certified, and knows the client's key.

    Raises:
        UnreachableError: It does not answer, which may pass.
        RunError: It answers and will not do; the message says how.
    """
    _check_certificate(address, credentials.ca)
    try:
        registration = Fleet(
            str(address), credentials.ca.read_bytes(), credentials.key
        ).registration()
    except httpx.TransportError as error:
        raise UnreachableError(
            f"--server={address}: gave no answer: {type(error).__name__}"
        ) from error
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in (502, 503, 504):
            raise UnreachableError(f"--server={address}: answers HTTP {status}") from error
        raise RunError(
            f"--server={address}: answers HTTP {status}; there must be a SuperLink of Flower 1.41 "
            f"there; {_NOTHING_SENT}"
        ) from error
    if registration is Registration.UNKNOWN:
        raise RunError(
            f"--key={credentials.path}: the server at {address} does not know this key, whose "
            f"fingerprint is {credentials.fingerprint}; register it on the server, with: "
            f"flwr supernode register {credentials.path.name}.pub, or: tessera deploy up; "
            "nothing was sent but the public key"
        )
    if registration is Registration.NOT_AUTHENTIC:
        now = datetime.datetime.now(datetime.UTC)
        raise RunError(
            f"--key={credentials.path}: the server at {address} does not accept this client's "
            f"signature; clocks may differ by 5 s ahead and 300 s behind at most, and this "
            f"machine's says {now:%Y-%m-%d %H:%M:%S} UTC: set it, such as with timedatectl"
        )


def _check_certificate(address: ServerAddress, ca: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cafile=ca)
    except ssl.SSLError as error:
        rule = "must be a PEM file that holds a certificate; copy ca.crt from the server"
        raise ConfigError([Problem("--ca", str(ca), rule)]) from error
    try:
        _shake_hands(address, context)
    except ssl.SSLCertVerificationError as error:
        raise RunError(_why_not_certified(address, ca, error)) from error
    except ssl.SSLEOFError as error:
        raise UnreachableError(f"--server={address}: hung up in the handshake of TLS") from error
    except ssl.SSLError as error:
        raise RunError(
            f"--server={address}: does not speak TLS ({error.reason or error}); the server must be "
            f"started with its certificate, as tessera deploy up does; {_NOTHING_SENT}"
        ) from error
    except socket.gaierror as error:
        raise UnreachableError(
            f"--server={address}: the name {address.host!r} is not known ({error.strerror}); give "
            "the server's name or address as HOST[:PORT]"
        ) from error
    except OSError as error:
        raise UnreachableError(
            f"--server={address}: cannot be reached ({error.strerror or error}); see that the "
            "server is up and that no firewall is between"
        ) from error


def _shake_hands(address: ServerAddress, context: ssl.SSLContext) -> bytes:
    with (
        socket.create_connection((address.host, address.port), TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname=address.host) as secure,
    ):
        return secure.getpeercert(binary_form=True) or b""


def _why_not_certified(
    address: ServerAddress, ca: Path, error: ssl.SSLCertVerificationError
) -> str:
    certificate = _certificate_of(address)
    if error.verify_code == _EXPIRED:
        until = "" if certificate is None else f" of {certificate.not_valid_after_utc:%Y-%m-%d}"
        return (
            f"--server={address}: its certificate{until} has expired, by the clock of this "
            "machine; make another on the server, with: tessera deploy init, or set the clock; "
            f"{_NOTHING_SENT}"
        )
    if error.verify_code == _NOT_YET_VALID:
        return (
            f"--server={address}: its certificate is not valid yet, by the clock of this machine; "
            f"set the clock; {_NOTHING_SENT}"
        )
    if error.verify_code in (_HOST_NAME, _ADDRESS):
        names = "" if certificate is None else f", only for {', '.join(_names_in(certificate))}"
        return (
            f"--server={address}: its certificate is not for {address.host}{names}; name one of "
            f"these, or on the server: tessera deploy init --host {address.host}; {_NOTHING_SENT}"
        )
    return (
        f"--server={address}: its certificate is not from the authority in --ca={ca} "
        f"({error.verify_message}); this may be another server than the one meant. Copy ca.crt "
        f"from the server again if it was made anew; {_NOTHING_SENT}"
    )


def _certificate_of(address: ServerAddress) -> x509.Certificate | None:
    """What the server shows, believed or not; for the message alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        return x509.load_der_x509_certificate(_shake_hands(address, context))
    except (OSError, ValueError):
        return None


def _names_in(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ["nothing"]
    addresses = names.get_values_for_type(x509.IPAddress)
    shown: list[str | ipaddress.IPv4Address | ipaddress.IPv6Address] = [
        *names.get_values_for_type(x509.DNSName),
        *(a for a in addresses if isinstance(a, ipaddress.IPv4Address | ipaddress.IPv6Address)),
    ]
    return [str(name) for name in shown]
