"""One federation, from its configuration to its run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from client.app import forget_run
from core.config import NOT_SETTINGS, RunConfig
from core.errors import ConfigError, Problem, RecordError
from core.records import RunFolder
from engine.simulation import simulate
from pairing.configuration import parse_config
from server.app import make_server_app, run_folder_of
from server.preparation import forget_preparation, prepare
from server.progress import Progress
from server.recorder import default_run_name
from workloads.table import forget_data, workload_class

CLIENT_APP = "client.app:app"


def run(config: RunConfig, progress: Progress, *, keep_data: bool = False) -> Path:
    """Run one federation on this machine and return its run folder.

    Data, partition, model and method are checked first: what does not fit is refused before
    anything starts or is written.

    Args:
        config: What to run; a run without a name is given one.
        progress: Told how it goes.
        keep_data: Leave loaded data for a next run in this process.

    Raises:
        ConfigError: Model, data, method and machine do not fit.
        DataError: Data is missing or unfit, or no partition meets the configuration.
        RunError: The run could not go on; its folder says how far it came.
        RecordError: The run folder is there already or cannot be made.
    """
    refuse_network_keys(config)
    named = with_name(config)
    RunFolder.check_free(named.runs, named.name)
    return _simulate(named, progress, resumes=False, keep_data=keep_data)


def resume(
    path: Path,
    progress: Progress,
    changes: Mapping[str, object] = MappingProxyType({}),
    *,
    keep_data: bool = False,
) -> Path:
    """Go on with a run that was cut off, from its last checkpoint, and return its folder.

    It ends with the weights and records of a run that was not cut off, seconds aside. A run that
    is complete is left as it is.

    Args:
        path: The run folder; it may have been moved.
        progress: Told how it goes.
        changes: Keys to change; only such as cannot change a result.
        keep_data: As in `run`.

    Raises:
        ConfigError: A key in `changes` can change a result, or its value is refused.
        DataError, RunError: As `run`.
        RecordError: There is no run to go on with, or it cannot go on; names file and reason.
    """
    folder = RunFolder.open(path)
    config = config_to_resume(folder, changes)
    if (folder.path / "run.json").exists() and folder.read_json("run").get("status") == "complete":
        return folder.path
    return _simulate(config, progress, resumes=True, keep_data=keep_data)


def config_to_resume(folder: RunFolder, changes: Mapping[str, object]) -> RunConfig:
    """The configuration that a run goes on with.

    Raises:
        ConfigError: A key in `changes` can change a result, or its value is refused.
        RecordError: Its configuration is not of this version.
    """
    free = NOT_SETTINGS - {"name", "runs"}  # the run keeps its place
    rule = f"a run goes on as it began; only {', '.join(sorted(free))} may change"
    refused = [Problem(key, str(changes[key]), rule) for key in changes if key not in free]
    if refused:
        raise ConfigError(refused)
    flat = folder.read_json("config")
    place = {"runs": str(folder.path.parent), "name": folder.path.name}
    try:
        parse_config(flat)
    except ConfigError as error:
        raise RecordError(
            f"{folder.path / 'config.json'} does not fit this version of Tessera: {error}"
        ) from error
    return parse_config({**flat, **changes, **place})


def _simulate(config: RunConfig, progress: Progress, *, resumes: bool, keep_data: bool) -> Path:
    try:
        preparation = prepare(config)
        simulate(
            make_server_app(progress, resumes=resumes),
            CLIENT_APP,
            run_config=config.flat(),
            num_partitions=len(preparation.hand_out_order()),
            config=config.engine,
            shared_folder=Path(config.runs),
        )
    finally:
        forget_run()
        forget_preparation()
        if not keep_data:
            forget_data()
    return run_folder_of(config.runs, config.name)


def refuse_network_keys(config: RunConfig) -> None:
    """Refuse what only a federation of machines can do.

    Raises:
        ConfigError: A key asks for it.
    """
    problems = []
    if config.partition.scheme == "own":
        noun = workload_class(config.workload).noun
        rule = f"needs clients with {noun} of their own, on a network: tessera deploy run"
        problems.append(Problem("partition.scheme", "own", rule))
    if config.resume:
        rule = "is for a network; here it is tessera run --resume RUN"
        problems.append(Problem("resume", "true", rule))
    if problems:
        raise ConfigError(problems)


def with_name(config: RunConfig) -> RunConfig:
    """The configuration with its folder's name settled, so that server and clients agree on it."""
    return dataclasses.replace(config, name=config.name or default_run_name(config))
