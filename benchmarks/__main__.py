"""``python -m benchmarks matching|speed|scale``: each prints a table and writes its results."""

from __future__ import annotations

import argparse
import importlib
import sys

MODULES = {
    "matching": "benchmarks.matching",
    "speed": "benchmarks.speed",
    "scale": "benchmarks.scale",
}
"""Each has ``add_arguments(parser)`` and ``run(arguments) -> int``, the exit code."""


def main() -> int:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in MODULES.items():
        loaded = importlib.import_module(module)
        command = commands.add_parser(
            name,
            description=loaded.__doc__,
            help=(loaded.__doc__ or "").partition("\n")[0],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        loaded.add_arguments(command)
    arguments = parser.parse_args()
    code: int = importlib.import_module(MODULES[arguments.command]).run(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
