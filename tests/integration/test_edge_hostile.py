"""A node that has a key and does not keep to the rules: its reply is not counted, others go on."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from core.records import RunFolder
from tests.conftest import tiny_keys
from tests.integration.edge_federation import PATIENCE_S, EdgeFederation, node_id_of

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(900),
]

MODES = ("honest", "duplicate", "replay", "malformed", "object", "nan", "empty", "oversize")
COUNTED = {"honest", "duplicate", "replay"}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeFederation]:
    with EdgeFederation(tmp_path_factory.mktemp("hostile"), num_clients=2) as federation:
        yield federation


def test_what_breaks_the_rules_is_not_counted(federation: EdgeFederation) -> None:
    # A SuperNode would ask for work every 3 s only.
    node_id_of(federation.start_hostile(federation.clients[0], 0, "honest"))
    hostile = federation.start_hostile(federation.clients[1], 1, *MODES)
    node_id_of(hostile)
    keys = tiny_keys("fedavg", name="hostile", partition__clients=2, rounds=len(MODES))
    run = federation.start_run(keys)
    assert run.wait(2 * PATIENCE_S) == 0, run.text() + hostile.text()
    rounds = RunFolder.open(federation.runs / "hostile").read_rounds()[1:]
    told = {}
    for mode, record in zip(MODES, rounds, strict=True):
        honest, other = record.clients
        assert honest.outcome == "counted"
        told[mode] = (other.outcome == "counted", other.failure)
    assert {mode for mode, (counted, _) in told.items() if counted} == COUNTED, told
    for mode, (counted, failure) in told.items():
        assert f"answers as {mode}\n" in hostile.text()
        assert counted or (failure and "Node Unavailable" not in failure), (mode, failure)
    assert hostile.exit_code() is None
