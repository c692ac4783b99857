"""A federation of real processes on the loopback interface, with TLS and keys. Not a test."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from engine.channel import folder_in_memory
from engine.edge.supernode import free_port

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
CONNECTION = "edge"

PATIENCE_S = 240.0
"""How long anything that must happen may take on a machine that is busy with other tests."""


class Authority:
    """Signs certificates of servers.

    Args:
        folder: ``ca.crt`` and the servers' folders are written there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("Tessera test authority")
        certificate = (
            _builder(self._name, self._name, self._key, _now(), _now() + _days(30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = folder / "ca.crt"
        self.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))

    def server(
        self, name: str, names: Sequence[str] = ("localhost", "127.0.0.1"), *, days: float = 30
    ) -> Path:
        """Make a key and a certificate for `names`; with negative `days`, one that has expired.

        Returns:
            The folder of ``server.key`` and ``server.crt``.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        until = _now() + _days(days)
        alternatives: list[x509.GeneralName] = []
        for each in names:
            try:
                alternatives.append(x509.IPAddress(ipaddress.ip_address(each)))
            except ValueError:
                alternatives.append(x509.DNSName(each))
        certificate = (
            _builder(_name(name), self._name, key, min(_now(), until - _days(1)), until)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        folder = self._folder / name
        folder.mkdir()
        (folder / "server.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
        write_private(folder / "server.key", key, PrivateFormat.PKCS8)
        return folder


def write_private(path: Path, key: ec.EllipticCurvePrivateKey, form: PrivateFormat) -> None:
    """Write a private key that only its owner can read."""
    path.touch(0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, form, NoEncryption()))


def make_client_folder(folder: Path, partition_id: int, ca: Path) -> Path:
    """What an edge machine is given: a key, the authority and the partition."""
    folder.mkdir(parents=True)
    key = ec.generate_private_key(ec.SECP384R1())
    write_private(folder / "key", key, PrivateFormat.OpenSSH)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (folder / "key.pub").write_bytes(public + b"\n")
    (folder / "ca.crt").write_bytes(ca.read_bytes())
    (folder / "client.json").write_text(
        json.dumps({"partition_id": partition_id, "name": folder.name})
    )
    (folder / "data").mkdir()
    return folder


class Process:
    """A process of the federation, with what it prints in a file.

    Args:
        arguments: Its command line.
        log: Where its output goes.
        environment: Its environment.
        cwd: Where it runs.
    """

    def __init__(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str], cwd: Path
    ) -> None:
        self.log = log
        with log.open("ab") as stream:
            self._popen = subprocess.Popen(
                list(arguments),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=cwd,
                start_new_session=True,
            )
        self.pid = self._popen.pid

    def text(self) -> str:
        """What it has printed so far."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(errors="replace"))

    def exit_code(self) -> int | None:
        """What it ended with; None while it runs."""
        return self._popen.poll()

    def wait(self, timeout_s: float) -> int:
        """Wait for its end."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {timeout_s} s:\n{self.text()}") from None

    def wait_for(self, pattern: str, timeout_s: float = PATIENCE_S, *, count: int = 1) -> str:
        """Wait until what it prints matches `pattern` so many times, and return the last match."""

        def found() -> str | None:
            matches = re.findall(pattern, self.text())
            return matches[count - 1] if len(matches) >= count else None

        return wait_until(
            found,
            timeout_s,
            lambda: f"no {pattern!r} (exit code {self.exit_code()}) in:\n{self.text()}",
        )

    def kill(self) -> None:
        """``kill -9`` of this one process."""
        self._popen.kill()
        self._popen.wait()

    def stop(self, timeout_s: float = 20) -> int:
        """SIGTERM, and what it ends with."""
        if self._popen.poll() is None:
            self._popen.terminate()
        return self.wait(timeout_s)

    def close(self) -> None:
        """End it in any way."""
        if self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()


class EdgeFederation:
    """A SuperLink, and clients that `tessera deploy client` starts.

    Within ``with``; all that it started is ended with it.

    Args:
        folder: Everything is kept there.
        num_clients: Client folders ``client-0`` and so on are made, and their keys registered.
    """

    def __init__(self, folder: Path, num_clients: int) -> None:
        self.folder = folder
        self.port = free_port()
        self.authority = Authority(folder / "authority")
        self.runs = folder / "runs"
        self.cwd = folder / "empty"  # apps come from the bundle, not from the working tree
        self.cwd.mkdir()
        self._server = self.authority.server("server")
        self._started: list[Process] = []
        self._database = folder_in_memory()  # where there is no waiting for a disk
        self.environment = edge_environment(folder / "flower")
        self._configure()
        self.superlink = self.start_superlink()
        self.clients = [self.make_client(f"client-{i}", i) for i in range(num_clients)]
        for client in self.clients:
            self.register(client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._started):
            process.close()
        shutil.rmtree(self._database, ignore_errors=True)

    @property
    def address(self) -> str:
        """HOST:PORT of the SuperLink."""
        return f"127.0.0.1:{self.port}"

    def start(self, name: str, arguments: Sequence[str]) -> Process:
        """Start a process; `close` ends it."""
        log = self.folder / f"{name}-{len(self._started)}.log"
        process = Process(arguments, log, self.environment, self.cwd)
        self._started.append(process)
        return process

    def start_superlink(self, server: Path | None = None, port: int | None = None) -> Process:
        """Start the SuperLink, anew with the same database where there was one."""
        server, port = server or self._server, port or self.port
        process = self.start(
            "superlink",
            [
                str(BIN / "flower-superlink"),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--ssl-ca-certfile", str(self.authority.certificate)),
                *("--ssl-certfile", str(server / "server.crt")),
                *("--ssl-keyfile", str(server / "server.key")),
                *("--database", str(self._database_file(port))),
                "--enable-supernode-auth",
            ],
        )
        process.wait_for("Uvicorn running on")
        return process

    def kill_server(self) -> None:
        """``kill -9`` of the SuperLink and of all that it started, runs among them, at once.

        Its own processes would see only a little later that it is gone, and a run that is told to
        end then keeps its folder until it has.
        """
        server = {self.superlink.pid, *descendants(self.superlink.pid)}
        for pid in server:
            freeze(pid)  # so that none starts another meanwhile
        server |= descendants(self.superlink.pid)
        for pid in server:
            kill(pid)
        self.superlink.kill()
        wait_until(
            lambda: None if any(map(is_alive, server)) else True,
            PATIENCE_S,
            lambda: "processes of the SuperLink live on",
        )

    def num_untaken(self, node_id: int) -> int:
        """Requests to a node whose replies no run has taken from the SuperLink yet.

        Once a run has taken a reply, nothing that happens to the node takes it back; before, the
        SuperLink answers for a node that goes off-line.
        """
        signed = node_id - (1 << 64) if node_id >= 1 << 63 else node_id
        with closing(sqlite3.connect(self._database_file(self.port), timeout=60)) as database:
            query = "SELECT COUNT(*) FROM message_ins WHERE dst_node_id = ?"
            count: int = database.execute(query, (signed,)).fetchone()[0]
        return count

    def make_client(self, name: str, partition_id: int) -> Path:
        """A client's folder; its key is not registered yet."""
        return make_client_folder(self.folder / name, partition_id, self.authority.certificate)

    def register(self, client: Path) -> None:
        """Let the client with this folder's key join."""
        self.flwr("supernode", "register", str(client / "key.pub"), CONNECTION)

    def start_client(
        self, client: Path, *options: str, server: str | None = None, patch: str = ""
    ) -> Process:
        """``tessera deploy client`` with a client's folder; `patch` is Python to run before."""
        return self.start(
            client.name,
            [
                *(sys.executable, "-c", f"{patch}\nfrom cli.main import main\nmain()"),
                *("deploy", "client", "--server", server or self.address),
                *("--data", str(client / "data"), "--key", str(client), *options),
            ],
        )

    def start_clients(self) -> list[Process]:
        """Start all clients, and wait until they have joined."""
        processes = [self.start_client(client) for client in self.clients]
        for process in processes:
            node_id_of(process)
        return processes

    def start_hostile(self, client: Path, partition_id: int, *modes: str) -> Process:
        """A node with a client's key that answers as `tests.integration.hostile_node` says."""
        return self.start(
            f"{client.name}-hostile",
            [
                *(sys.executable, "-m", "tests.integration.hostile_node", ",".join(modes)),
                self.address,
                *(str(client), str(partition_id)),
            ],
        )

    def start_run(self, keys: Mapping[str, object]) -> Process:
        """``flwr run`` with these keys; run folders lie in `runs`."""
        quoted = " ".join(
            f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}".lower()
            for key, value in {"runs": str(self.runs), **keys}.items()
        )
        arguments = [str(BIN / "flwr"), "run", str(ROOT), CONNECTION, "--stream"]
        return self.start("run", [*arguments, "--run-config", quoted])

    def flwr(self, *arguments: str) -> str:
        """Any other command of Flower's, and what it prints."""
        done = subprocess.run(
            [str(BIN / "flwr"), *arguments],
            env=self.environment,
            cwd=self.cwd,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that the SuperLink lists."""
        told = json.loads(self.flwr("supernode", "list", CONNECTION, "--format", "json"))
        nodes: list[dict[str, Any]] = told["nodes"]
        return nodes

    def _database_file(self, port: int) -> Path:
        return self._database / f"state-{port}.db"

    def _configure(self) -> None:
        home = Path(self.environment["FLWR_HOME"])
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f'address = "{self.address}"\nroot-certificates = "{self.authority.certificate}"\n'
        )


def edge_environment(home: Path) -> dict[str, str]:
    """Of every process: a Flower home of its own, and nothing fetched or told to anyone."""
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
    }


def node_id_of(client: Process, timeout_s: float = PATIENCE_S) -> int:
    """Wait until a client has joined, and return its node id."""
    return int(client.wait_for(r"joined \S+ as node (\d+)", timeout_s))


T = TypeVar("T")


def wait_until(found: Callable[[], T | None], timeout_s: float, otherwise: Callable[[], str]) -> T:
    """Wait until `found` returns something, and return it."""
    deadline = time.monotonic() + timeout_s
    while (result := found()) is None:
        if time.monotonic() > deadline:
            raise AssertionError(otherwise())
        time.sleep(0.1)
    return result


def descendants(pid: int) -> set[int]:
    """Ids of all processes that come from this one."""
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            own = {int(child) for child in children.read_text().split()}
        except FileNotFoundError:
            continue
        found |= own.union(*map(descendants, own))
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def worker_of(client: Process) -> int:
    """The process in which a client computes: forked by one of its children."""
    children = {pid for pid in descendants(client.pid) if parent_of(pid) == client.pid}
    workers = descendants(client.pid) - children
    assert len(workers) == 1, workers
    return workers.pop()


def parent_of(pid: int) -> int:
    """Id of the process that started this one."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except FileNotFoundError:
        return 0


def freeze(pid: int) -> None:
    """Stop a process where it is, so that what it is given stays unanswered."""
    os.kill(pid, signal.SIGSTOP)


def kill(pid: int) -> None:
    """``kill -9``."""
    os.kill(pid, signal.SIGKILL)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    since: datetime.datetime,
    until: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _days(days: float) -> datetime.timedelta:
    return datetime.timedelta(days=days)
