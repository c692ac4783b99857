"""Certificates and keys: an authority, a server's certificate, a key for each client.

The authority signs the server's certificate alone; clients prove themselves by EC P-384 keys in
OpenSSH's form, which the server is told of. A file that holds a private key is never replaced.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from core.errors import RecordError
from engine.edge.credentials import fingerprint

AUTHORITY_VALID = timedelta(days=3650)
SERVER_VALID = timedelta(days=397)
"""Longest that common clients accept of a server's certificate."""

RENEW_BEFORE = timedelta(days=60)
"""A server's certificate that ends sooner is made anew."""

CLOCKS_MAY_DIFFER = timedelta(hours=1)
"""Certificates hold from so long before they are made."""

OWN_NAMES = ("superlink", "gateway", "localhost", "127.0.0.1", "::1")
"""What a server is called on its own machine and in its containers' network."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and the key that it is for."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, whole; one that is there is never replaced.

    Raises:
        RecordError: It is there, or cannot be written.
    """
    temporary = _write_beside(path, content, 0o600)
    try:
        os.link(temporary, path)  # fails where the name is taken, unlike a rename
    except FileExistsError as error:
        raise RecordError(f"{path} exists, and a key is never replaced") from error
    except OSError as error:
        raise RecordError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_public(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write or replace a file, whole."""
    temporary = _write_beside(path, content, mode)
    try:
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RecordError(f"{path} cannot be written: {error.strerror}") from error


def _write_beside(path: Path, content: bytes, mode: int) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RecordError(f"{path} cannot be written: {error.strerror}") from error
    return temporary


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner may enter, or leave the one that is there.

    Raises:
        RecordError: It cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise RecordError(f"folder {path} cannot be made: {error.strerror}") from error
    return path


def ensure_authority(folder: Path) -> Pair:
    """The authority of `folder`, made where there is none.

    Raises:
        RecordError: What is there is damaged, or half of it is missing.
    """
    private_folder(folder)
    certificate, key = folder / "ca.crt", folder / "ca.key"
    if not key.exists():
        if certificate.exists():
            raise RecordError(
                f"{certificate} is there and its key {key} is not: bring the key back, or move "
                f"{folder} away to make a new authority, whose certificate every client then needs"
            )
        write_private(key, _key_pem(ec.generate_private_key(ec.SECP384R1())))
    if not certificate.exists():
        write_public(certificate, _pem(_authority_certificate(read_key(key))))
    pair = Pair(read_certificate(certificate), read_key(key))
    if _public(pair.certificate) != _public_bytes(pair.key):
        raise RecordError(
            f"{certificate} is not the certificate of {key}; bring the right one back"
        )
    return pair


def ensure_server(folder: Path, authority: Pair, hosts: Sequence[str]) -> bool:
    """Give the server a key and a certificate for `hosts`; a key that is there is kept.

    Args:
        folder: Where ``server.key``, ``server.crt`` and ``ca.crt`` go.
        authority: Signs the certificate.
        hosts: Names and addresses besides `OWN_NAMES`.

    Returns:
        Whether a certificate was made: there was none that holds for these names, by this
        authority, for another `RENEW_BEFORE`.

    Raises:
        RecordError: The key that is there is damaged.
    """
    private_folder(folder)
    key_file, certificate_file = folder / "server.key", folder / "server.crt"
    if not key_file.exists():
        write_private(key_file, _key_pem(ec.generate_private_key(ec.SECP384R1())))
    key = read_key(key_file)
    write_public(folder / "ca.crt", _pem(authority.certificate))
    if _still_good(certificate_file, key, authority, hosts):
        return False
    write_public(certificate_file, _pem(_server_certificate(key, authority, hosts)))
    return True


def ensure_client_key(folder: Path) -> str:
    """Give a client a key, ``key`` and ``key.pub``, unless it has one; returns its fingerprint.

    Raises:
        RecordError: The key that is there is damaged.
    """
    private_folder(folder)
    key_file, public_file = folder / "key", folder / "key.pub"
    if not key_file.exists():
        private = ec.generate_private_key(ec.SECP384R1())
        write_private(key_file, _openssh(private))
    key = read_client_key(key_file)
    line = _public_line(key)
    if not public_file.exists() or public_file.read_bytes().split()[:2] != line.split()[:2]:
        write_public(public_file, line + b" " + folder.name.encode() + b"\n")
    return fingerprint(key.public_key())


def read_client_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a client's private key.

    Raises:
        RecordError: It is missing or is no unencrypted EC P-384 key in OpenSSH's form.
    """
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise RecordError(f"key {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RecordError(f"key {path} is no OpenSSH key without a passphrase: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp384r1":
        raise RecordError(f"key {path} must be of EC P-384; make one with tessera deploy init")
    return key


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key in PEM.

    Raises:
        RecordError: It is missing or damaged.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise RecordError(f"key {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RecordError(f"key {path} is damaged: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise RecordError(f"key {path} is not of an elliptic curve")
    return key


def read_certificate(path: Path) -> x509.Certificate:
    """Read a certificate in PEM.

    Raises:
        RecordError: It is missing or damaged.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise RecordError(f"certificate {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RecordError(f"certificate {path} is damaged: {error}") from error


def names_of(certificate: x509.Certificate) -> set[str]:
    """Host names and addresses that a certificate is for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    addresses = found.get_values_for_type(x509.IPAddress)
    return {*found.get_values_for_type(x509.DNSName), *map(str, addresses)}


def general_name(host: str) -> x509.GeneralName:
    """A host as a certificate names it.

    Raises:
        ValueError: It is no host name and no address.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        labels = host.removesuffix(".").split(".")
        usable = all(
            0 < len(label) < 64
            and label.strip("-") == label
            # An underscore is no host name's by the book, and common among containers.
            and all(c.isascii() and (c.isalnum() or c in "-_") for c in label)
            for label in labels
        )
        if not usable or len(host) > 253 or labels[-1].isdecimal():
            raise ValueError(f"{host!r} is no host name and no address") from None
        return x509.DNSName(host)


def _still_good(
    file: Path, key: ec.EllipticCurvePrivateKey, authority: Pair, hosts: Sequence[str]
) -> bool:
    if not file.exists():
        return False
    try:
        certificate = read_certificate(file)
        certificate.verify_directly_issued_by(authority.certificate)
    except (RecordError, InvalidSignature, ValueError, TypeError):
        return False
    asked = {str(general_name(host).value) for host in (*OWN_NAMES, *hosts)}
    return (
        certificate.not_valid_after_utc - datetime.now(UTC) > RENEW_BEFORE
        and asked == names_of(certificate)
        and _public(certificate) == _public_bytes(key)
    )


def _authority_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tessera federation authority")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        _builder(key, AUTHORITY_VALID)
        .subject_name(name)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA384())
    )


def _server_certificate(
    key: ec.EllipticCurvePrivateKey, authority: Pair, hosts: Sequence[str]
) -> x509.Certificate:
    names = [general_name(host) for host in dict.fromkeys((*OWN_NAMES, *hosts))]
    issuer = authority.key.public_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tessera server")])
    return (
        _builder(key, SERVER_VALID)
        .subject_name(subject)
        .issuer_name(authority.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
        .sign(authority.key, hashes.SHA384())
    )


def _builder(key: ec.EllipticCurvePrivateKey, valid: timedelta) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_MAY_DIFFER)
        .not_valid_after(now + valid)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _openssh(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )


def _public_line(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> bytes:
    public = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey) else key
    return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def _public(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _public_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
