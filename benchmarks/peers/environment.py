"""pfl's own virtual environment: it pins packages that Tessera needs newer."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

from core.errors import RunError

PFL = "pfl[pytorch]==0.6.0"
OLDEST, NEWEST = (3, 10), (3, 12)
"""Versions of Python that this pfl installs on."""


def pfl_python(folder: Path) -> Path:
    """The interpreter of pfl's environment in `folder`, which is made where it is not there.

    It has the PyTorch and NumPy of this environment, so that contenders run the same kernels.
    Making it downloads some gigabytes and takes minutes, once.

    Raises:
        RunError: This Python is not one that pfl installs on, or the installation failed.
    """
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise RunError(
            f"{PFL} needs Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}, and this is "
            f"{sys.version_info[0]}.{sys.version_info[1]}; leave pfl out with --without pfl"
        )
    same = [f"{name}=={importlib.metadata.version(name)}" for name in ("torch", "numpy")]
    wanted = "\n".join([PFL, *same, ""])
    done, python = folder / "installed.txt", folder / "bin" / "python"
    if done.is_file() and done.read_text() == wanted:
        return python
    print(f"installing {PFL} into {folder}: some minutes, once", flush=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", *wanted.split()], check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise RunError(
            f"{PFL} could not be installed into {folder}: {error}; leave pfl out with --without pfl"
        ) from error
    done.write_text(wanted)
    return python
