"""One call of a ClientApp: load the app, call it, and turn its failure into an error reply."""

from __future__ import annotations

import importlib
import time
import traceback
from copy import copy, deepcopy
from dataclasses import dataclass

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from core.errors import RunError
from engine.flwr_seam import CLIENT_RAISED


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call of a client came to.

    Attributes:
        reply: The client's reply, or an error reply.
        state: The client's ``context.state`` after the call; None where the call failed, and the
            state stays what it was before.
        seconds: How long the call took, as the engine measured it.
    """

    reply: Message
    state: RecordDict | None
    seconds: float = 0.0


def load_client_app(reference: str) -> ClientApp:
    """Import the ClientApp that ``module:attribute`` names.

    Raises:
        RunError: `reference` has another form or names something else.
    """
    module, _, attribute = reference.partition(":")
    app = getattr(importlib.import_module(module), attribute, None) if attribute else None
    if not isinstance(app, ClientApp):
        raise RunError(
            f"client app {reference!r}: must be module:attribute and name a flwr.clientapp."
            "ClientApp, such as client.app:app"
        )
    return app


def call_client(app: ClientApp, message: Message, context: Context) -> Outcome:
    """Call `app`; whatever it raises becomes an error reply, so that other clients go on.

    The reply's error reason is ``ExceptionType: text`` in its first line and the traceback, from
    the call of the app inwards, after it.
    """
    started = time.perf_counter()
    try:
        reply = app(message, context)
        if not isinstance(reply, Message):
            raise TypeError(f"the ClientApp returned {type(reply).__name__}, not a Message")
        if reply.metadata.reply_to_message_id != message.metadata.message_id:
            raise ValueError("the ClientApp returned a Message that does not reply to its request")
    except (Exception, SystemExit) as error:
        summary = "".join(traceback.format_exception_only(error)).rstrip()
        inwards = error.__traceback__.tb_next if error.__traceback__ else None
        reason = "\n".join([summary, *traceback.format_tb(inwards)]).rstrip()
        del inwards  # it holds this frame, which holds it, and with it all that the client did
        return Outcome(Message(Error(CLIENT_RAISED, reason), reply_to=message), None)
    return Outcome(reply, context.state, time.perf_counter() - started)


def copy_arrays(record: ArrayRecord) -> ArrayRecord:
    """A copy of `record` with Arrays of its own over the same, immutable, bytes."""
    return ArrayRecord({name: copy(array) for name, array in record.items()})


def by_value(content: RecordDict) -> RecordDict:
    """A copy of `content` that shares nothing mutable with it, as if it had been sent."""
    return RecordDict(
        {
            name: copy_arrays(record) if isinstance(record, ArrayRecord) else deepcopy(record)
            for name, record in content.items()
        }
    )
