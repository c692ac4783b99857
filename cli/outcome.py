"""What every command returns, and the exit codes that all of them end with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from core.errors import (
    INTERRUPTED,
    ConfigError,
    DataError,
    QuorumError,
    RecordError,
    RunError,
    TesseraError,
)

EXIT_CODES: Mapping[int, str] = {
    0: "ok",
    TesseraError.exit_code: "unexpected failure, or doctor found something required missing",
    ConfigError.exit_code: "bad configuration or usage",
    DataError.exit_code: "data missing or unfit",
    RunError.exit_code: "a run failed",
    RecordError.exit_code: "run folder missing, damaged or in the way",
    QuorumError.exit_code: "too few clients joined or answered",
    INTERRUPTED: "interrupted",
}
"""What each exit code means."""

EPILOG = "\b\nExit codes:\n" + "\n".join(
    f"  {code:>3}  {what}" for code, what in EXIT_CODES.items()
)
"""The end of every command's help."""

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object, also for an error; nothing else.")
]

WithReport = Annotated[
    bool,
    typer.Option(
        "--report/--no-report",
        help="Write report.html into the run folder, the default.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command came to.

    Attributes:
        text: For readers.
        value: The same for programs, printed instead under ``--json``.
        exit_code: One of `EXIT_CODES`.
    """

    text: str
    value: Mapping[str, Any]
    exit_code: int = 0
