"""Flower's SuperNode as a child process, which ends with the process that started it."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.edge.flwr_seam import (
    RuntimeApi,
    is_of_note,
    joined_as,
    node_config_toml,
    plain,
    run_supernode,
    says_refused,
    supernode_arguments,
)

STOP_S = 5.0
"""Seconds that a SuperNode has to sign off before it is killed."""

LOOP_ENDED = 70
"""Exit code of a SuperNode whose loop has ended, which Flower would leave hanging."""

_PR_SET_PDEATHSIG = 1

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from engine.edge.supernode import serve; serve(int(sys.argv[2]), sys.argv[3:])"
)


class SuperNode:
    """A SuperNode that runs.

    Args:
        superlink: HOST:PORT.
        root_certificates: PEM file of the authority.
        private_key: The node's.
        node_config: What the ClientApp finds in ``context.node_config``.
        max_retries: Attempts in a row to reach the SuperLink again; None for no end.
        health: HOST:PORT of a health server, if one is wanted.
        folder: Its own for as long as it runs; what a SuperNode before it left there is removed.
        log: Told every line that the SuperNode logs.

    Attributes:
        pid: Of its process.
        node_id: What the SuperLink calls the node; None until it has joined.
        refused: Whether the SuperLink has refused to let it join.
        last_line: The latest that it logged.
    """

    def __init__(
        self,
        *,
        superlink: str,
        root_certificates: Path,
        private_key: Path,
        node_config: Mapping[str, str | int | float],
        max_retries: int | None,
        health: str | None,
        folder: Path,
        log: Callable[[str], None],
    ) -> None:
        self.node_id: int | None = None
        self.refused = False
        self._log = log
        self._lines: deque[str] = deque(maxlen=20)
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        secret, config = self._folder / "secret", self._folder / "node.toml"
        config.write_text(node_config_toml(node_config))
        secret.write_bytes(secrets.token_bytes(32))
        port = free_port()
        self._api = RuntimeApi(f"127.0.0.1:{port}", secret.read_bytes())
        arguments = supernode_arguments(
            superlink=superlink,
            root_certificates=root_certificates,
            private_key=private_key,
            node_config=config,
            runtime_port=port,
            secret=secret,
            max_retries=max_retries,
            health=health,
        )
        sys_path = json.dumps([str(Path(entry).resolve()) for entry in sys.path])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, sys_path, str(os.getpid()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # ^C is for this process to handle
            env={**os.environ, "FLWR_HOME": str(self._folder), "PYTHONUNBUFFERED": "1"},
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, name="supernode-log", daemon=True)
        self._reader.start()

    @property
    def api(self) -> RuntimeApi:
        """Its runtime API."""
        return self._api

    @property
    def last_line(self) -> str:
        """The latest that it logged, for a message of why it ended."""
        return self._lines[-1] if self._lines else "it logged nothing"

    def exit_code(self) -> int | None:
        """What it ended with; None while it runs."""
        return self._process.poll()

    def signal_stop(self) -> None:
        """Ask it to sign off, without waiting; safe in a signal handler."""
        if self._process.poll() is None:
            self._process.terminate()

    def close(self) -> None:
        """End it, in a few seconds at most."""
        self.signal_stop()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(1.0)
        self._api.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for raw in stream:
                line = plain(raw.decode(errors="replace"))
                if not is_of_note(line):
                    continue
                self._lines.append(line)
                self.refused |= says_refused(line)
                self._log(line)
                if self.node_id is None:
                    self.node_id = joined_as(line)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def serve(parent: int, arguments: list[str]) -> None:
    """Be the SuperNode; does not return."""
    end_with(parent)
    sys.argv = ["flower-supernode", *arguments]
    run_supernode()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(LOOP_ENDED)


def end_with(parent: int) -> None:
    """See to it that this process is killed when the process `parent` is gone, however it went."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
