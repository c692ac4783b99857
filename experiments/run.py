"""One federation, from its configuration to its run folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from client.app import forget_run
from core.config import RunConfig
from core.records import RunFolder
from engine.simulation import simulate
from server.app import make_server_app, run_folder_of
from server.preparation import forget_preparation, prepare
from server.progress import Progress
from server.recorder import default_run_name

CLIENT_APP = "client.app:app"


def run(config: RunConfig, progress: Progress) -> Path:
    """Run one federation on this machine and return its run folder.

    Data, partition, model and method are checked first: what does not fit is refused before
    anything starts or is written.

    Args:
        config: What to run; a run without a name is given one.
        progress: Told how it goes.

    Raises:
        ConfigError: Model, data, method and machine do not fit.
        DataError: Data is missing or unfit, or no partition meets the configuration.
        RunError: The run could not go on; its folder says how far it came.
        RecordError: The run folder is there already or cannot be made.
    """
    named = with_name(config)
    try:
        RunFolder.check_free(named.runs, named.name)
        preparation = prepare(named)
        simulate(
            make_server_app(progress),
            CLIENT_APP,
            run_config=named.flat(),
            num_partitions=len(preparation.hand_out_order()),
            config=named.engine,
        )
    finally:
        forget_run()
        forget_preparation()
    return run_folder_of(named.runs, named.name)


def with_name(config: RunConfig) -> RunConfig:
    """The configuration with its folder's name settled, so that server and clients agree on it."""
    return dataclasses.replace(config, name=config.name or default_run_name(config))
