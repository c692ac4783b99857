"""``python -m benchmarks COMMAND``: each prints a table, and most write their results."""

from __future__ import annotations

import argparse
import importlib
import sys

COMMANDS = {
    "matching": "distribution matching against the limit of the machine",
    "speed": "the simulation engine against its peers",
    "scale": "memory and time against the number of clients",
    "paired": "methods of a suite against one of them, seed by seed",
    "meltr_cost": "MELTR's optimizers in passes and processor time, at equal update frequency",
    "meltr_sensitivity": "what MELTR's learned loss makes of each task over training",
    "vlm_chance": "what guessing scores on a video corpus, by VLM's tasks",
}
"""Each is a module here with ``add_arguments(parser)`` and ``run(arguments)``, the exit code.

Only the module of the command that is asked for is imported.
"""


def main() -> int:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    asked = next((word for word in sys.argv[1:] if word in COMMANDS), None)
    module = importlib.import_module(f"benchmarks.{asked}") if asked else None
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            description=module.__doc__ if module and name == asked else None,
            help=summary,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if module and name == asked:
            module.add_arguments(command)
    arguments = parser.parse_args()
    assert module is not None, "argparse ends the process where no command is named"
    code: int = module.run(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
