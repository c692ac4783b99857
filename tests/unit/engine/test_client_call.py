import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from core.errors import RunError
from engine.client_call import Outcome, by_value, call_client, load_client_app
from engine.flwr_seam import CLIENT_RAISED, run_identity, set_message_id

APP = "tests.unit.engine.counting_client"


def request() -> Message:
    with run_identity(1):
        message = Message(RecordDict({"config": ConfigRecord({"x": 1})}), 5, "train")
    set_message_id(message, "1")
    return message


def call(answer: Callable[[Message, Context], Message]) -> Outcome:
    app = ClientApp()
    app.train()(answer)
    return call_client(app, request(), Context(1, 5, {}, RecordDict(), {}))


def test_load_client_app() -> None:
    assert isinstance(load_client_app(f"{APP}:app"), ClientApp)


@pytest.mark.parametrize("reference", [APP, f"{APP}:", f"{APP}:missing", f"{APP}:not_an_app"])
def test_what_names_no_client_app_is_refused(reference: str) -> None:
    with pytest.raises(RunError, match="module:attribute") as error:
        load_client_app(reference)
    assert repr(reference) in str(error.value)


def test_reply_and_state_come_back() -> None:
    def answer(message: Message, context: Context) -> Message:
        context.state["s"] = MetricRecord({"n": 1})
        return Message(message.content, reply_to=message)

    outcome = call(answer)
    assert outcome.reply.content["config"] == ConfigRecord({"x": 1})
    assert outcome.state == RecordDict({"s": MetricRecord({"n": 1})})


def raises_value_error(message: Message, context: Context) -> Message:
    raise ValueError("no luck")


def exits(message: Message, context: Context) -> Message:
    raise SystemExit(3)


def returns_none(message: Message, context: Context) -> Message:
    return None  # type: ignore[return-value]


def replies_to_another(message: Message, context: Context) -> Message:
    set_message_id(message, "2")
    reply = Message(RecordDict(), reply_to=message)
    set_message_id(message, "1")
    return reply


@pytest.mark.parametrize(
    ("answer", "first_line"),
    [
        (raises_value_error, "ValueError: no luck"),
        (exits, "SystemExit: 3"),
        (returns_none, "TypeError: the ClientApp returned NoneType, not a Message"),
        (
            replies_to_another,
            "ValueError: the ClientApp returned a Message that does not reply to its request",
        ),
    ],
)
def test_failure_is_an_error_reply(
    answer: Callable[[Message, Context], Message], first_line: str
) -> None:
    outcome = call(answer)
    assert outcome.state is None
    assert outcome.reply.has_error() and outcome.reply.error.code == CLIENT_RAISED
    assert outcome.reply.metadata.reply_to_message_id == "1"
    assert outcome.reply.metadata.src_node_id == 5
    reason = outcome.reply.error.reason or ""
    assert reason.splitlines()[0] == first_line


def test_reason_holds_the_traceback_from_the_app_inwards() -> None:
    reason = call(raises_value_error).reply.error.reason or ""
    assert "in raises_value_error" in reason
    assert "in call_client" not in reason


def test_keyboard_interrupt_is_no_clients_failure() -> None:
    def interrupted(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(interrupted)


def test_by_value_is_equal_in_order_and_shares_only_bytes() -> None:
    content = RecordDict(
        {
            "z": MetricRecord({"list": [1, 2]}),
            "arrays": ArrayRecord({"w": Array(np.arange(3.0)), "b": Array(np.zeros((2, 0)))}),
            "a": ConfigRecord({"names": ["x"], "raw": b"1"}),
        }
    )
    arrays = content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    arrays["w"].slice_array()  # caches memoryviews in the Array, which pickle refuses
    copy = by_value(content)
    assert copy == content and list(copy) == list(content)
    copied, metrics = copy["arrays"], copy["z"]
    assert isinstance(copied, ArrayRecord) and isinstance(metrics, MetricRecord)
    assert copied["w"] is not arrays["w"] and copied["w"].data is arrays["w"].data
    values = metrics["list"]
    assert isinstance(values, list)
    values.append(3)
    copied["w"].data = b""
    del copied["b"]
    assert content["z"] == MetricRecord({"list": [1, 2]})
    assert len(arrays) == 2 and arrays["w"].numpy().tolist() == [0, 1, 2]


class Held:
    """Something large that a client works with."""


def test_what_a_client_that_fails_worked_with_is_let_go_of() -> None:
    held: list[weakref.ref[Held]] = []

    def answer(message: Message, context: Context) -> Message:
        own = Held()
        held.append(weakref.ref(own))
        raise ValueError("in vain")

    gc.collect()
    gc.disable()
    try:
        assert call(answer).reply.has_error()
        assert held[0]() is None
    finally:
        gc.enable()
