import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import PrivateFormat

from core.errors import ConfigError
from engine.edge.credentials import read_credentials
from tests.integration.edge_federation import Authority, make_client_folder, write_private


@pytest.fixture
def client(tmp_path: Path) -> Path:
    return make_client_folder(
        tmp_path / "client-3", 3, Authority(tmp_path / "authority").certificate
    )


def test_a_folder_or_its_key_names_all_that_lies_beside_it(client: Path) -> None:
    for given in (client, client / "key"):
        found = read_credentials(given)
        assert (found.path, found.ca) == (client / "key", client / "ca.crt")
        assert found.partition_id == 3
    (client / "client.json").unlink()
    assert read_credentials(client).partition_id is None


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_fingerprint_is_that_of_ssh_keygen(client: Path) -> None:
    shown = subprocess.run(
        ["ssh-keygen", "-lf", str(client / "key.pub")], capture_output=True, text=True, check=True
    )
    assert read_credentials(client).fingerprint == shown.stdout.split()[1]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_key_that_is_open_to_others_is_refused(client: Path, mode: int) -> None:
    (client / "key").chmod(mode)
    with pytest.raises(ConfigError, match=rf"key: has mode {mode:04o}.*chmod 600"):
        read_credentials(client)


def test_what_is_missing_is_named(client: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--ca=.*elsewhere: cannot be read.*--ca FILE"):
        read_credentials(client, tmp_path / "elsewhere")
    (client / "ca.crt").unlink()
    with pytest.raises(ConfigError, match=r"--ca=.*ca\.crt: cannot be read: No such file"):
        read_credentials(client)
    (client / "key").unlink()
    with pytest.raises(ConfigError, match=r"--key=.*key: cannot be read.*tessera deploy init"):
        read_credentials(client)


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("key", "none", "must be an OpenSSH private key"),
        ("ca.crt", "none", "must be a PEM file"),
        ("client.json", "[]", "must be a JSON object"),
        ("client.json", '{"partition_id": -1}', "must be a whole number from 0"),
        ("client.json", '{"partition_id": true}', "must be a whole number from 0"),
    ],
)
def test_what_is_another_kind_of_thing_is_refused(
    client: Path, name: str, content: str, rule: str
) -> None:
    (client / name).write_text(content)
    with pytest.raises(ConfigError, match=rule):
        read_credentials(client)


def test_a_key_in_another_form_is_refused(client: Path) -> None:
    (client / "key").unlink()
    write_private(client / "key", ec.generate_private_key(ec.SECP384R1()), PrivateFormat.PKCS8)
    with pytest.raises(ConfigError, match="OpenSSH private key"):
        read_credentials(client)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_key_that_cannot_be_read_is_refused(client: Path) -> None:
    (client / "key").chmod(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        read_credentials(client)
