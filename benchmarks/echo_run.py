"""``python -m benchmarks.echo_run KEY=VALUE...``: Tessera's run with the clients of an app here."""

from __future__ import annotations

import sys

from core.config import parse_assignments
from engine.simulation import simulate
from pairing.configuration import parse_config
from server.app import make_server_app
from server.preparation import prepare
from server.progress import PlainProgress


def main() -> None:
    """Do what ``tessera run`` does, but for the ClientApp."""
    config = parse_config(parse_assignments(sys.argv[1:]))
    preparation = prepare(config)
    simulate(
        make_server_app(PlainProgress()),
        "benchmarks.echo:app",
        run_config=config.flat(),
        num_partitions=len(preparation.hand_out_order()),
        config=config.engine,
    )


if __name__ == "__main__":
    main()
