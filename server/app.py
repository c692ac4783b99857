"""The ServerApp that every engine runs."""

from __future__ import annotations

from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from core.errors import INTERRUPTED, TesseraError
from core.records import RunFolder
from pairing.configuration import parse_config
from server.federation import Federation
from server.nodes import Nodes, own_partition
from server.preparation import forget_preparation, prepare
from server.progress import PlainProgress, Progress
from server.recorder import End, Recorder


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
        if resumes or (config.resume and (Path(config.runs).expanduser() / name).exists()):
            folder = RunFolder.open(run_folder_of(config.runs, name))
            recorder = Recorder.resume(folder, preparation)
        else:
            recorder = Recorder(RunFolder.create(config.runs, name, config.flat()), preparation)
        end = End("failed", None, TesseraError.exit_code)
        try:
            nodes = Nodes(grid, preparation, recorder.members())
            nodes.join()
            if preparation.has_own_data:
                preparation = preparation.joined(own_partition(preparation, nodes.members))
            recorder.settle(preparation, nodes.joined)
            Federation(grid, nodes, preparation, recorder, progress).run()
            end = End("complete", None, 0)
        except (KeyboardInterrupt, SystemExit):
            end = End("interrupted", None, INTERRUPTED)
            raise
        except Exception as error:
            code = error.exit_code if isinstance(error, TesseraError) else TesseraError.exit_code
            end = End("failed", f"{type(error).__name__}: {error}", code)
            raise
        finally:
            recorder.close(end)
            progress.run_ended(end.status)
            forget_preparation()

    return server_app


def run_folder_of(runs: str, name: str) -> Path:
    """Where a run of this name is recorded."""
    return Path(runs).expanduser().resolve() / name


app = make_server_app(PlainProgress())
