import pytest
from flwr.app import Message, RecordDict

from core.errors import RunError
from engine.flwr_seam import SUPERLINK_NODE_ID, run_identity, set_message_id


def test_messages_can_be_made_within_a_run_and_only_there() -> None:
    with run_identity(7) as run:
        message = Message(RecordDict(), 5, "train")
    assert run.run_id == message.metadata.run_id == 7
    assert message.metadata.src_node_id == SUPERLINK_NODE_ID
    with pytest.raises(RuntimeError, match="not set"):
        Message(RecordDict(), 5, "train")


def test_identity_ends_with_a_run_that_fails() -> None:
    with pytest.raises(KeyboardInterrupt), run_identity(7):
        raise KeyboardInterrupt
    with run_identity(8) as run:
        assert run.run_id == 8


def test_a_second_run_in_the_process_is_refused() -> None:
    with run_identity(7), pytest.raises(RunError, match="already running"), run_identity(8):
        pytest.fail("two runs share one process-wide identity")


def test_message_id_is_what_a_reply_refers_to() -> None:
    with run_identity(7):
        message = Message(RecordDict(), 5, "train")
    set_message_id(message, "12")
    reply = Message(RecordDict(), reply_to=message)
    assert reply.metadata.reply_to_message_id == message.metadata.message_id == "12"
