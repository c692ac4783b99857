"""Tessera: federated learning in which clients can send synthetic images instead of weights.

>>> import tessera
>>> tessera.config(strategy="fedprox", rounds=2).strategy
'fedprox'
"""

from cli.api import compare, config, load_run, plan, report, run, table
from core.errors import ConfigError, DataError, RecordError, RunError, TesseraError
from experiments.execution import SuiteResult
from experiments.plan import Plan
from report.loading import LoadedRun

__all__ = [
    "ConfigError",
    "DataError",
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
    "run",
    "table",
]
