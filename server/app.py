"""The ServerApp that every engine runs."""

from __future__ import annotations

from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from core.records import RunFolder
from server.federation import Federation
from server.preparation import forget_preparation, prepare
from server.progress import PlainProgress, Progress
from server.recorder import Recorder
from strategies.table import parse_config


def make_server_app(progress: Progress, *, resumes: bool = False) -> ServerApp:
    """A ServerApp that reports to `progress`.

    Args:
        progress: Told how it goes.
        resumes: Whether the run folder is there and its run goes on, instead of being made.
    """
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        config = parse_config(context.run_config)
        preparation = prepare(config)
        torch.set_num_threads(config.engine.server_threads)
        name = config.folder_name(context.run_id)
        if resumes:
            folder = RunFolder.open(run_folder_of(config.runs, name))
            recorder = Recorder.resume(folder, preparation)
        else:
            recorder = Recorder(RunFolder.create(config.runs, name, config.flat()), preparation)
        status, failure = "failed", None
        try:
            Federation(grid, preparation, recorder, progress).run()
            status = "complete"
        except (KeyboardInterrupt, SystemExit):
            status = "interrupted"
            raise
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            raise
        finally:
            recorder.close(status, failure)
            progress.run_ended(status)
            forget_preparation()

    return server_app


def run_folder_of(runs: str, name: str) -> Path:
    """Where a run of this name is recorded."""
    return Path(runs).expanduser().resolve() / name


app = make_server_app(PlainProgress())
