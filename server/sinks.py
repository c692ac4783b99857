"""Where figures go beside the run folder (being written: TensorBoard only, for the moment)."""

from __future__ import annotations

from typing import Any, Protocol

from core.config import RunConfig
from core.records import EvaluationRecord, RoundRecord, RunFolder


class Sink(Protocol):
    def round(self, record: RoundRecord) -> None: ...

    def close(self, status: str) -> None: ...


class TensorBoard:
    def __init__(self, folder: RunFolder, resumed_after: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = None if resumed_after is None else resumed_after + 1
        self._events: Any = SummaryWriter(str(folder.events), purge_step=purge)

    def round(self, record: RoundRecord) -> None:
        for name, value in scalars_of(record).items():
            self._events.add_scalar(name, value, record.round)
        self._events.flush()

    def close(self, status: str) -> None:
        self._events.close()


def scalars_of(record: RoundRecord) -> dict[str, float]:
    scalars: dict[str, float] = {
        "bytes/up": record.bytes_up,
        "bytes/down": record.bytes_down,
        **{f"server/{name}": value for name, value in record.server.items()},
        **{f"seconds/{name}": value for name, value in record.seconds.items()},
    }
    for split in ("validation", "test"):
        judged: EvaluationRecord | None = getattr(record, split)
        if judged is not None:
            scalars[f"{split}/accuracy"] = judged.accuracy
            scalars[f"{split}/loss"] = judged.loss
            scalars[f"{split}/macro_f1"] = judged.macro_f1
    if record.worst_client_accuracy is not None:
        scalars["test/worst_client_accuracy"] = record.worst_client_accuracy
    return scalars


def open_sinks(config: RunConfig, folder: RunFolder, resumed_after: int | None) -> list[Sink]:
    return [TensorBoard(folder, resumed_after)]
