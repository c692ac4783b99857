"""What an edge client costs: memory and seconds a message, beside Flower's own way. Not a test.

``python -m tests.integration.measure_edge [TIMES]`` runs, in turn, ``tessera deploy client`` and
``flower-supernode`` with its default isolation, which starts ``flwr-clientapp`` for every message.
One client, FedAvg on digits with a tiny model, over TLS on the loopback interface. Prints one JSON
object a measurement.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from core.records import RunFolder
from engine.edge.supernode import free_port
from tests.conftest import tiny_keys
from tests.integration.edge_federation import (
    BIN,
    PATIENCE_S,
    EdgeFederation,
    Process,
    descendants,
    wait_until,
)

NUM_ROUNDS = 4
IDLE_S = 10.0


def main(times: int) -> None:
    """Measure each way `times` times, in turn."""
    with (
        tempfile.TemporaryDirectory(prefix="edge-") as folder,
        EdgeFederation(Path(folder), 1) as federation,
    ):
        for time_ in range(times):
            for way in ("tessera", "flower"):
                print(json.dumps({"way": way, **_measure(federation, way, time_)}), flush=True)


def _measure(federation: EdgeFederation, way: str, time_: int) -> dict[str, float]:
    [client] = federation.clients
    wait_until(
        lambda: None if "online" in [n["status"] for n in federation.nodes()] else True,
        PATIENCE_S,
        lambda: "the client before is still online",
    )
    if way == "tessera":
        process = federation.start_client(client)
    else:
        process = federation.start(
            way,
            [
                *(str(BIN / "flower-supernode"), "--superlink", federation.address),
                *("--root-certificates", str(client / "ca.crt")),
                *("--auth-supernode-private-key", str(client / "key")),
                *("--node-config", "partition-id=0", "--port", str(free_port())),
            ],
        )
    process.wait_for(r"SuperNode ID: \d+")
    time.sleep(IDLE_S)
    before_idle = _cpu_s(process)
    time.sleep(IDLE_S)
    before = _cpu_s(process)
    idle = _memory(process)
    peak, ended = _Peak(process), threading.Event()
    sampler = threading.Thread(target=peak.sample_until, args=(ended,))
    sampler.start()
    name = f"{way}-{time_}"
    keys = tiny_keys("fedavg", name=name, partition__clients=1, rounds=NUM_ROUNDS)
    run = federation.start_run(keys)
    assert run.wait(600) == 0, run.text()
    ended.set()
    sampler.join()
    after, cpu_s = _memory(process), _cpu_s(process) - before
    process.stop()
    rounds = RunFolder.open(federation.runs / name).read_rounds()[1:]
    walls = [record.seconds["wall"] for record in rounds]
    return {
        "message_s_median": round(statistics.median(walls), 2),
        "message_s_first": round(walls[0], 2),
        "message_cpu_s": round(cpu_s / (NUM_ROUNDS + 1), 2),
        "idle_cpu_percent": round(100 * (before - before_idle) / IDLE_S, 1),
        "idle_mb": round(idle / 1e6),
        "idle_after_run_mb": round(after / 1e6),
        "peak_mb": round(peak.bytes / 1e6),
        "load": float(Path("/proc/loadavg").read_text().split()[0]),
    }


class _Peak:
    def __init__(self, process: Process) -> None:
        self._process = process
        self.bytes = 0

    def sample_until(self, ended: threading.Event) -> None:
        while not ended.wait(0.2):
            self.bytes = max(self.bytes, _memory(self._process))


def _cpu_s(process: Process) -> float:
    """Seconds on a processor of all of the client's processes, those that have ended among them.

    Of what a run takes, one message each round and the query before them.
    """
    total = 0
    for pid in {process.pid, *descendants(process.pid)}:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


def _memory(process: Process) -> int:
    """Bytes of all of the client's processes; pages that several share count once."""
    total = 0
    for pid in {process.pid, *descendants(process.pid)}:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
