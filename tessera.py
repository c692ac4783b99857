"""Tessera: federated learning in which clients can send synthetic images instead of weights.

>>> import tessera
>>> tessera.config(strategy="fedprox", rounds=2).strategy
'fedprox'
"""

from cli.api import compare, config, load_run, plan, report, resume, run, table
from core.errors import (
    BusyError,
    ConfigError,
    DataError,
    DivergedError,
    RecordError,
    RunError,
    TesseraError,
)
from experiments.execution import SuiteResult
from experiments.plan import Plan
from report.loading import LoadedRun

__all__ = [
    "BusyError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "LoadedRun",
    "Plan",
    "RecordError",
    "RunError",
    "SuiteResult",
    "TesseraError",
    "compare",
    "config",
    "load_run",
    "plan",
    "report",
    "resume",
    "run",
    "table",
]
