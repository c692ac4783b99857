"""The command line of a deployment, as a user types it."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_S = 3600.0


@dataclass(frozen=True)
class Done:
    """A command that has ended.

    Attributes:
        value: What it printed under ``--json``.
        code: Its exit code.
        told: What it wrote to the standard error.
        seconds: How long it took.
    """

    value: dict[str, Any]
    code: int
    told: str
    seconds: float


@dataclass(frozen=True)
class Tessera:
    """``tessera deploy`` on one deployment.

    Attributes:
        folder: The deployment's.
        environment: Variables besides this process's.
    """

    folder: Path
    environment: dict[str, str]

    def __call__(self, command: str, *words: str, check: bool = True) -> Done:
        """Run a command with ``--json``; a failure fails the test, unless it is asked for."""
        began = time.monotonic()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "cli.main", "deploy", command),
                *("--dir", str(self.folder), "--json", *words),
            ],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        seconds = time.monotonic() - began
        assert not check or done.returncode == 0, f"{done.stderr}\n{done.stdout}"
        return Done(json.loads(done.stdout or "{}"), done.returncode, done.stderr, seconds)
