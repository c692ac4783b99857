from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.sent_replies import SentReplies, digest_of
from core.errors import RecordError
from core.wire import Record

REPLY = Record(
    {"images": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": np.array([1, 2])},
    {"snr": 0.25, "a_norm": 7},
    {"round": 4},
)


@pytest.fixture
def replies(tmp_path: Path) -> SentReplies:
    return SentReplies(tmp_path, 2, "run")


def test_the_same_request_gets_the_same_reply(replies: SentReplies) -> None:
    assert replies.read(4, "request") is None
    replies.write(4, "request", REPLY)
    again = replies.read(4, "request")
    assert again is not None
    assert dict(again.metrics) == dict(REPLY.metrics) and dict(again.settings) == {"round": 4}
    assert again.arrays.keys() == REPLY.arrays.keys()
    for name, array in REPLY.arrays.items():
        assert array.dtype == again.arrays[name].dtype and np.array_equal(array, again.arrays[name])


def test_any_other_request_gets_none(replies: SentReplies) -> None:
    replies.write(4, "request", REPLY)
    assert replies.read(4, "another") is None
    assert replies.read(5, "request") is None
    assert SentReplies(replies.folder, 3, "run").read(4, "request") is None
    assert SentReplies(replies.folder, 2, "another run").read(4, "request") is None


def test_a_damaged_reply_is_refused_by_name(replies: SentReplies) -> None:
    replies.write(4, "request", REPLY)
    (path,) = replies.folder.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(RecordError, match=path.name):
        replies.read(4, "request")


def test_replies_that_nobody_can_ask_for_again_are_removed(replies: SentReplies) -> None:
    for number in (1, 2, 3):
        replies.write(number, "request", REPLY)
    other = SentReplies(replies.folder, 12, "run")
    other.write(1, "request", REPLY)
    replies.forget(2)
    assert [replies.read(n, "request") is None for n in (1, 2, 3)] == [True, True, False]
    assert other.read(1, "request") is not None


def test_the_digest_tells_requests_apart_by_all_that_the_reply_depends_on() -> None:
    weights = np.array([1.0, 2.0], np.float32)
    settings = {"round": 3, "noise-multiplier": 1.5, "acknowledged-round": 2, "retained-round": 1}
    request = Record({"w": weights}, {}, settings)
    resumed = Record({"w": weights.copy()}, {}, {**settings, "retained-round": 0})
    assert digest_of(request) == digest_of(resumed), "which checkpoints there are does not matter"
    for other in (
        Record({"w": weights + 1}, {}, settings),
        Record({"v": weights}, {}, settings),
        Record({"w": weights.astype(np.float64)}, {}, settings),
        Record({"w": weights}, {}, {**settings, "noise-multiplier": 2.0}),
        Record({"w": weights}, {}, {**settings, "round": 4}),
    ):
        assert digest_of(other) != digest_of(request)
