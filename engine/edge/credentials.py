"""What an edge client proves itself by, and by what it knows the server."""

from __future__ import annotations

import base64
import hashlib
import json
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
)

from core.errors import ConfigError, Problem

KEY_FILE, CA_FILE, CLIENT_FILE, STATE_FOLDER = "key", "ca.crt", "client.json", "state"

_WAY_OUT = "tessera deploy init, on the server, makes one folder of key and certificate per client"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A client's key and what lies beside it.

    Attributes:
        path: The private key's file.
        key: The private key.
        fingerprint: Of the public key, as ``ssh-keygen -lf`` prints it.
        ca: PEM file of the authority that the server's certificate is from.
        partition_id: As `CLIENT_FILE` beside the key tells it; None where there is none.
    """

    path: Path
    key: ec.EllipticCurvePrivateKey
    fingerprint: str
    ca: Path
    partition_id: int | None


def read_credentials(key: Path, ca: Path | None = None) -> Credentials:
    """Read a client's credentials.

    Args:
        key: The private key, or the folder that holds it as `KEY_FILE`.
        ca: The authority's certificate; by default `CA_FILE` beside the key.

    Raises:
        ConfigError: One of them is missing, is another kind of thing, or is open to others.
    """
    path = key.expanduser()
    path = path / KEY_FILE if path.is_dir() else path
    private = _read_key(path)
    authority = path.with_name(CA_FILE) if ca is None else ca.expanduser()
    try:
        pem = authority.read_bytes()
    except OSError as error:
        raise _refused(
            "--ca",
            str(authority),
            f"cannot be read: {error.strerror}; it must be the certificate of the authority that "
            f"the server's is from: copy {CA_FILE} from the server, or name it with --ca FILE",
        ) from error
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise _refused(
            "--ca",
            str(authority),
            f"must be a PEM file that holds a certificate; copy {CA_FILE} from the server",
        )
    return Credentials(
        path, private, fingerprint(private.public_key()), authority, _read_partition(path)
    )


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """The key's fingerprint, as ``ssh-keygen -lf`` prints it."""
    blob = base64.b64decode(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1])
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return f"SHA256:{digest}"


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except OSError as error:
        raise _refused(
            "--key", str(path), f"cannot be read: {error.strerror}; {_WAY_OUT}"
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise _refused(
            "--key",
            str(path),
            f"has mode {stat.S_IMODE(mode):04o}, so that others than its owner can use it; close "
            f"it with: chmod 600 {path}",
        )
    try:
        private = load_ssh_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _refused(
            "--key",
            str(path),
            f"must be an OpenSSH private key without a passphrase ({error}); {_WAY_OUT}",
        ) from error
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise _refused("--key", str(path), f"must be a key of an elliptic curve; {_WAY_OUT}")
    return private


def _read_partition(key: Path) -> int | None:
    path = key.with_name(CLIENT_FILE)
    try:
        told = json.loads(path.read_bytes())
        partition_id = told["partition_id"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _refused(
            "--key", str(path), f"must be a JSON object with partition_id ({error}); {_WAY_OUT}"
        ) from error
    if type(partition_id) is not int or partition_id < 0:
        raise _refused(
            "--key", str(path), f"partition_id={partition_id!r} must be a whole number from 0"
        )
    return partition_id


def _refused(option: str, value: str, rule: str) -> ConfigError:
    return ConfigError([Problem(option, value, rule)])
