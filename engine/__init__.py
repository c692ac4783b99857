"""Runs the Flower apps on one machine: in this process, or on resident Ray actors.

Importing this package turns off every call home of Flower and Ray, here and in child processes,
and keeps Ray from writing to the standard output, which a program's own results go to.
"""

import os

os.environ.update(
    {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS_SKIP_REGEX": "^A worker died or was killed",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
)
