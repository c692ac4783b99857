"""Where a run's figures go while it goes on: TensorBoard, Weights & Biases, MLflow.

All receive the same scalars under the same names (`scalars_of`), with step = round. The run folder
stays the record of a run; a sink is a view of it. So a sink that fails while the run goes on is
given up with a warning, and a run that is taken up again fills in from the folder's records what
a sink does not hold:

===================  ==============================================================
TensorBoard          rounds to be done again are purged (``purge_step``)
Weights & Biases     the same run; on-line, steps that the server holds are left
                     alone; off-line, the whole history is written anew, because a
                     killed run leaves a torn file that ends its upload
MLflow               the same run; steps that the store holds are left alone, since
                     it would keep a repeated one beside the first
===================  ==============================================================

A round done again has the same figures but for its seconds, so which of the two is kept does not
matter. Packages of a sink are imported when it is configured, and only then.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from core.config import RunConfig
from core.errors import Problem, RunError
from core.records import RoundRecord, RunFolder

WANDB_FINISH_TIMEOUT_S = 300.0
"""How long the end of a run waits for its last figures to reach Weights & Biases."""

_EXIT_CODES = {"complete": 0, "failed": 1, "interrupted": 255}  # 255 reads "killed"
_MLFLOW_STATUSES = {"complete": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_MLFLOW_PARAMS_PER_CALL = 100


class Sink(Protocol):
    """A place that receives every round."""

    def round(self, record: RoundRecord) -> None:
        """A round was done; round 0 is the initial model."""

    def close(self, status: str) -> None:
        """The run is over: complete, failed or interrupted."""


def _told_seconds(record: RoundRecord, hides_counts: bool) -> list[tuple[str, float]]:
    """Seconds of a round; of a private one not those of clients, which depend on their samples."""
    return [
        (name, value)
        for name, value in record.seconds.items()
        if not (hides_counts and name.startswith("client_"))
    ]


def scalars_of(record: RoundRecord, *, hides_counts: bool) -> dict[str, float]:
    """What a round looks like in every sink, by name, such as ``test/accuracy``.

    Args:
        record: The round.
        hides_counts: Whether what clients hold is hidden (``config.hides_counts``).
    """
    scalars: dict[str, float] = {
        "bytes/up": record.bytes_up,
        "bytes/down": record.bytes_down,
        **{f"server/{name}": value for name, value in record.server.items()},
        **{f"seconds/{name}": value for name, value in _told_seconds(record, hides_counts)},
    }
    for split, judged in (("validation", record.validation), ("test", record.test)):
        if judged is not None:
            scalars |= {f"{split}/{name}": value for name, value in judged.scores.items()}
            scalars[f"{split}/loss"] = judged.loss
    # A client's accuracy is that of each class weighted by the client's counts, without noise. The
    # simulator may know it, since it holds all data; whoever reads a sink of a private run may not.
    worst = record.worst_client_score
    if record.test is not None and worst is not None and not hides_counts:
        scalars[f"test/worst_client_{next(iter(record.test.scores))}"] = worst
    return scalars


def missing_sinks(config: RunConfig) -> list[Problem]:
    """What keeps the configured sinks from being opened: no package, no fit place."""
    problems = [
        Problem(
            f"sinks.{name}",
            "true",
            f"needs the package {name}, which is not installed; "
            f"python -m pip install {distribution}, or leave it out",
        )
        for name, distribution, wanted in (
            ("wandb", "wandb", config.sinks.wandb),
            ("mlflow", "mlflow-skinny", config.sinks.mlflow),
        )
        if wanted and not _is_installed(name)
    ]
    runs = Path(config.runs).expanduser().resolve()
    if config.sinks.mlflow and not _tracking_uri() and set(str(runs)) & set("%?"):
        rule = (
            f"with sinks.mlflow=true the path {runs} may have neither % nor ?, which MLflow reads "
            "as parts of a URL; give another folder, or set MLFLOW_TRACKING_URI"
        )
        problems.append(Problem("runs", config.runs, rule))
    return problems


def open_sinks(config: RunConfig, folder: RunFolder, resumed_after: int | None) -> list[Sink]:
    """Open every sink that is configured; TensorBoard always is.

    Args:
        config: Its settings are logged once, as flat keys.
        folder: The run's folder; ``sinks.json`` keeps by which id a sink knows the run.
        resumed_after: The round after which a run goes on that was cut off; its records up to
            there are in `folder`. None for a new run.

    Raises:
        RunError: A sink cannot be opened; those that could are closed again.
    """
    kept = [] if resumed_after is None else _records_until(resumed_after, folder)
    openers: list[tuple[str, str, Callable[[], Sink]]] = [
        ("TensorBoard", "", lambda: TensorBoardSink(config, folder, resumed_after))
    ]
    if config.sinks.wandb:
        openers.append(
            (
                "Weights & Biases",
                "; WANDB_MODE=offline needs no server, sinks.wandb=false leaves it out",
                lambda: WandbSink(config, folder, kept),
            )
        )
    if config.sinks.mlflow:
        openers.append(
            (
                "MLflow",
                "; check MLFLOW_TRACKING_URI, sinks.mlflow=false leaves it out",
                lambda: MLflowSink(config, folder, kept),
            )
        )
    opened: list[Sink] = []
    try:
        for name, way_out, opener in openers:
            try:
                opened.append(_Expendable(name, opener()))
            except Exception as error:
                raise RunError(f"{name} cannot be opened: {_in_short(error)}{way_out}") from error
    except BaseException:
        for sink in opened:
            sink.close("failed")
        raise
    return opened


def replay(config: RunConfig, folder: RunFolder) -> None:
    """Send a complete run's records to every sink that is configured, as to a new run.

    Raises:
        RecordError: The records cannot be read.
        RunError: As `open_sinks`.
    """
    records = folder.read_rounds()
    sinks, status = open_sinks(config, folder, None), "interrupted"
    try:
        for record in records:
            for sink in sinks:
                sink.round(record)
        status = "complete"
    finally:
        for sink in sinks:
            sink.close(status)


class TensorBoardSink:
    """Event files in the run folder."""

    def __init__(self, config: RunConfig, folder: RunFolder, resumed_after: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        # A new run may have been cut off before its first round was on record.
        purge_step = 0 if resumed_after is None else resumed_after + 1
        self._hides_counts = config.hides_counts
        _await_later_name(folder.events)
        self._events: Any = SummaryWriter(str(folder.events), purge_step=purge_step)

    def round(self, record: RoundRecord) -> None:
        """Write and flush."""
        for name, value in scalars_of(record, hides_counts=self._hides_counts).items():
            self._events.add_scalar(name, value, record.round)
        self._events.flush()

    def close(self, status: str) -> None:
        """Close the event file; it has no place for a status."""
        self._events.close()


def _await_later_name(events: Path) -> None:
    """Wait until a new event file is the last by name, in which order TensorBoard reads them.

    A name begins with the second, and goes on with the process id, as text. Of two files of one
    second the newer could be read first, and the older would then hide what the newer tells.
    """
    begun = f"events.out.tfevents.{int(time.time()):010d}."
    while any(path.name.startswith(begun) for path in events.glob("events.*")):
        time.sleep(0.05)
        begun = f"events.out.tfevents.{int(time.time()):010d}."


class WandbSink:
    """A run of Weights & Biases.

    On-line or off-line as the user's WANDB_MODE says; local files go to WANDB_DIR, or into the run
    folder.
    """

    def __init__(self, config: RunConfig, folder: RunFolder, kept: Sequence[RoundRecord]) -> None:
        import wandb

        self._hides_counts = config.hides_counts
        known = _ids(folder).get("wandb")
        run_id = known or _new_id(folder)
        offline = wandb.setup().settings.mode in {"offline", "dryrun"}
        settings = wandb.Settings(console="off")  # the terminal shows progress, not results
        if "WANDB_FINISH_TIMEOUT" not in os.environ:
            settings.finish_timeout = WANDB_FINISH_TIMEOUT_S
        settings.finish_timeout_raises = True
        self._run = wandb.init(
            project=config.sinks.project,
            id=run_id,
            name=folder.path.name,
            config=config.flat(),
            dir=None if os.environ.get("WANDB_DIR") else str(folder.path),
            # A user's own run in this process stays as it is.
            reinit="create_new",
            # Off-line there is nobody to tell where to go on. Without `resume` what is uploaded
            # later replaces what the server has.
            resume="allow" if known and not offline else None,
            settings=settings,
        )
        _keep_id(folder, "wandb", run_id)
        for record in kept:
            self.round(record)
        if offline:
            _remove_older_files(Path(self._run.dir).parent, run_id)

    def round(self, record: RoundRecord) -> None:
        """Log one step, unless the server holds it from before the run was cut off."""
        if record.round >= self._run.starting_step:
            scalars = scalars_of(record, hides_counts=self._hides_counts)
            self._run.log(scalars, step=record.round, commit=True)

    def close(self, status: str) -> None:
        """Wait until all is uploaded, and end the run.

        Raises:
            TimeoutError: It takes longer than WANDB_FINISH_TIMEOUT; what is left is on disk.
        """
        self._run.finish(exit_code=_EXIT_CODES[status])


class MLflowSink:
    """A run of MLflow, where MLFLOW_TRACKING_URI says, or in ``mlflow.db`` beside the run folder.

    The local store is SQLite: MLflow refuses to make new file stores.
    """

    def __init__(self, config: RunConfig, folder: RunFolder, kept: Sequence[RoundRecord]) -> None:
        # The one connection that MLflow would make unasked.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        self._hides_counts = config.hides_counts
        runs = folder.path.parent
        uri = _tracking_uri()
        self._client = MlflowClient(tracking_uri=uri or f"sqlite:///{runs / 'mlflow.db'}")
        # Without a place for artifacts, MLflow notes one in the working directory.
        artifacts = None if uri else (runs / "mlflow-artifacts").as_uri()
        known = _ids(folder).get("mlflow")
        self._held: set[int] = set()
        if known is None:
            experiment_id = self._experiment(config.sinks.project, artifacts)
            self._run_id = self._new_run(experiment_id, config, folder.path.name)
            _keep_id(folder, "mlflow", self._run_id)
        else:
            self._run_id = known
            # A round is logged in one transaction, so one of its metrics stands for all.
            history = self._client.get_metric_history(known, "bytes/up")
            self._held = {metric.step for metric in history}
            self._client.update_run(known, status="RUNNING")
        for record in kept:
            self.round(record)

    def round(self, record: RoundRecord) -> None:
        """Log one step, unless the store holds it from before the run was cut off."""
        if record.round in self._held:
            return
        now_ms = int(time.time() * 1000)
        metrics = [
            self._metric(name, value, now_ms, record.round)
            for name, value in scalars_of(record, hides_counts=self._hides_counts).items()
        ]
        self._client.log_batch(self._run_id, metrics=metrics, synchronous=True)

    def close(self, status: str) -> None:
        """End the run."""
        self._client.set_terminated(self._run_id, _MLFLOW_STATUSES[status])

    def _experiment(self, name: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=artifacts))
            except MlflowException:
                # Another run may have made it in between.
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _new_run(self, experiment_id: str, config: RunConfig, name: str) -> str:
        from mlflow.entities import Param

        run_id = str(self._client.create_run(experiment_id, run_name=name).info.run_id)
        params = iter([Param(key, str(value)) for key, value in config.flat().items()])
        while some := list(islice(params, _MLFLOW_PARAMS_PER_CALL)):
            self._client.log_batch(run_id, params=some, synchronous=True)
        return run_id


class _Expendable:
    """A sink whose failure does not end the run: it is given up, and stderr says so."""

    def __init__(self, name: str, sink: Sink) -> None:
        self._name = name
        self._sink = sink
        self._given_up = False

    def round(self, record: RoundRecord) -> None:
        if not self._given_up:
            self._attempt(lambda: self._sink.round(record), f"in round {record.round}")

    def close(self, status: str) -> None:
        self._attempt(lambda: self._sink.close(status), "at the end of the run")

    def _attempt(self, call: Callable[[], None], when: str) -> None:
        try:
            call()
        except Exception as error:
            if not self._given_up:
                print(
                    f"tessera: WARNING: {self._name} failed {when} and gets nothing more of this "
                    f"run: {_in_short(error)}. The run goes on; its folder has every round.",
                    file=sys.stderr,
                    flush=True,
                )
            self._given_up = True


def _is_installed(package: str) -> bool:
    # A mere folder of that name, such as the `wandb` that W&B leaves behind, has no origin.
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


def _tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI", "")


def _records_until(last_round: int, folder: RunFolder) -> list[RoundRecord]:
    return [record for record in folder.read_rounds() if record.round <= last_round]


def _ids(folder: RunFolder) -> dict[str, Any]:
    return folder.read_json("sinks") if (folder.path / "sinks.json").is_file() else {}


def _keep_id(folder: RunFolder, sink: str, run_id: str) -> None:
    folder.write_json("sinks", {**_ids(folder), sink: run_id})


def _new_id(folder: RunFolder) -> str:
    """An id from the folder's name and the time; names may hold what ids may not."""
    return hashlib.sha256(f"{folder.path.name} {datetime.now(UTC)}".encode()).hexdigest()[:16]


def _remove_older_files(current: Path, run_id: str) -> None:
    """Remove off-line files of the same run, which `current` replaces."""
    for path in current.parent.glob(f"offline-run-*-{run_id}"):
        if path != current:
            shutil.rmtree(path, ignore_errors=True)


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
