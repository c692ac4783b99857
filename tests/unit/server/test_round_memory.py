"""What a round holds in memory does not grow with its cohort, whoever is late."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from safetensors.torch import load_file

import engine.simulation
import server.federation
import server.replies
import strategies.flower
from core.records import RunFolder
from engine.client_call import Outcome
from engine.serial_workers import SerialWorkers
from server.recorder import Recorder
from tests.conftest import Federate, tiny_keys

NUM_ACTORS = 3
Choice = Callable[[int, int], int]
"""From calls made so far and calls that wait, the place of the call that ends next."""


def like_actors(num_calls: int, num_waiting: int) -> int:
    """Any of those at work; none is passed over for long."""
    return num_calls % min(NUM_ACTORS, num_waiting)


def first_last(num_calls: int, num_waiting: int) -> int:
    """The client asked first ends after all others that wait."""
    return min(1, num_waiting - 1)


class Tally:
    """How many of some objects were alive at once."""

    def __init__(self) -> None:
        self.alive = self.seen = self.peak = 0

    def note(self, one: object) -> None:
        weakref.finalize(one, self._gone)
        self.seen += 1
        self.alive += 1
        self.peak = max(self.peak, self.alive)

    def _gone(self) -> None:
        self.alive -= 1


class Observed:
    """Runs federations over workers that answer as told, and counts what is alive."""

    def __init__(self, federate: Federate, monkeypatch: pytest.MonkeyPatch) -> None:
        self._federate, self._monkeypatch = federate, monkeypatch

    def run(self, answers: Choice, cohort: int, **keys: object) -> Path:
        self.requests, self.messages, self.replies = Tally(), Tally(), Tally()
        self.alive_between_rounds = 0
        observed = self

        class Workers(SerialWorkers):
            num_calls = 0

            def submit(self, message: Message, context: Context) -> None:
                observed.requests.note(message)
                super().submit(message, context)

            def next_reply(self, timeout: float | None) -> Outcome | None:
                if self._queue:
                    self._queue.rotate(-answers(self.num_calls, len(self._queue)))
                    self.num_calls += 1
                outcome = super().next_reply(timeout)
                if outcome is not None:
                    observed.messages.note(outcome.reply)
                # In the order of work again, but for the one that is done.
                items = sorted(self._queue, key=lambda call: int(call[0].metadata.message_id))
                self._queue.clear()
                self._queue.extend(items)
                return outcome

        decode, record = strategies.flower.from_flower, Recorder.round

        def from_flower(*arguments: Any) -> Any:
            decoded = decode(*arguments)
            observed.replies.note(next(iter(decoded.arrays.values())))
            return decoded

        def count_and_record(self: Recorder, *arguments: Any, **named: Any) -> None:
            observed.alive_between_rounds = max(
                observed.alive_between_rounds, observed.replies.alive + observed.messages.alive
            )
            record(self, *arguments, **named)

        with self._monkeypatch.context() as patch:
            patch.setattr(engine.simulation, "SerialWorkers", Workers)
            patch.setattr(server.federation, "from_flower", from_flower)
            patch.setattr(Recorder, "round", count_and_record)
            return self._federate({**many_keys(cohort), **keys})


def many_keys(cohort: int) -> Mapping[str, object]:
    keys = tiny_keys("fedavg", cohort__size=cohort, rounds=1)
    return {**keys, "partition.clients": 120, "partition.scheme": "iid"}


@pytest.fixture
def observed(federate: Federate, monkeypatch: pytest.MonkeyPatch) -> Observed:
    return Observed(federate, monkeypatch)


def final_weights(path: Path) -> Mapping[str, torch.Tensor]:
    return load_file(RunFolder.open(path).checkpoint(1))


@pytest.mark.parametrize("cohort", [20, 100])
def test_replies_alive_are_as_many_as_actors_and_a_few(cohort: int, observed: Observed) -> None:
    observed.run(like_actors, cohort)
    assert observed.replies.seen == observed.messages.seen == observed.requests.seen == cohort
    assert 0 < observed.replies.peak <= NUM_ACTORS + 3
    assert 0 < observed.messages.peak <= NUM_ACTORS + 3
    assert observed.alive_between_rounds <= 3


def test_a_client_that_takes_long_holds_back_two_lots_at_most(
    observed: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.replies, "LOT", 8)
    late = observed.run(first_last, 100)
    assert observed.replies.seen == 100
    assert 8 <= observed.replies.peak + observed.messages.peak <= 2 * 8 + 4
    assert observed.requests.peak <= 2 * 8 + 4
    for name, value in final_weights(observed.run(like_actors, 100)).items():
        assert torch.equal(value, final_weights(late)[name]), name


def test_replies_that_are_not_needed_hold_nothing_back(observed: Observed) -> None:
    """With over-sampling some who are asked first are surplus, which the end of the round tells."""
    path = observed.run(like_actors, 50, **{"cohort.over-sampling": 1.0})
    clients = RunFolder.open(path).read_rounds()[1].clients
    assert [client.outcome for client in clients].count("surplus") == 50
    assert observed.replies.seen == 50
    assert observed.replies.peak <= NUM_ACTORS + 3
