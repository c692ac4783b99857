"""The one adapter between our wire records and Flower's."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from core.wire import Record

ARRAYS, METRICS, SETTINGS = "arrays", "metrics", "settings"


def to_flower(record: Record, arrays: ArrayRecord | None = None) -> RecordDict:
    """Serialise a record.

    Args:
        record: What to send.
        arrays: The record's arrays, serialised before; the same object may go into the messages
            of many clients, which an engine can then store once.
    """
    return RecordDict(
        {
            ARRAYS: serialise(record) if arrays is None else arrays,
            METRICS: MetricRecord(dict(record.metrics)),
            SETTINGS: ConfigRecord(dict(record.settings)),
        }
    )


def serialise(record: Record) -> ArrayRecord:
    """The record's arrays as Flower sends them: ``.npy`` bytes, C order."""
    return ArrayRecord({name: Array(array.copy("C")) for name, array in record.arrays.items()})


def from_flower(content: RecordDict) -> Record:
    """Read a record back. Nothing is unpickled.

    Raises:
        ValueError: A part is missing, a metric or setting is a list, or bytes are no array.
    """
    for name, kind in ((ARRAYS, ArrayRecord), (METRICS, MetricRecord), (SETTINGS, ConfigRecord)):
        if not isinstance(content.get(name), kind):
            raise ValueError(f"the message has no {kind.__name__} {name!r}")
    arrays = {name: array.numpy() for name, array in content.array_records[ARRAYS].items()}
    metrics, settings = {}, {}
    for name, metric in content.metric_records[METRICS].items():
        if isinstance(metric, list):
            raise ValueError(f"metric {name!r} is a list")
        metrics[name] = metric
    for name, setting in content.config_records[SETTINGS].items():
        if isinstance(setting, list | bytes):
            raise ValueError(f"setting {name!r} is no scalar")
        settings[name] = setting
    return Record(arrays, metrics, settings)


def serialised_bytes(message: Message) -> int:
    """Size of a message's records as Flower counts them."""
    return sum(record.count_bytes() for record in message.content.values())
