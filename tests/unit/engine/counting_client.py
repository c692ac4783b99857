"""A ClientApp for the engine's tests, importable by name; it needs neither Ray nor data."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
not_an_app = "a string"


@app.train()
def train(message: Message, context: Context) -> Message:
    """Count the node's calls in its state, then do to one partition what the request says."""
    partition_id = int(context.node_config["partition-id"])
    calls = 1 + _calls(context)
    context.state["calls"] = MetricRecord({"calls": calls})
    received = message.content["arrays"]
    assert isinstance(received, ArrayRecord)
    weights = received["w"].numpy()
    # What another client or the server must never see:
    received["w"] = Array(weights + 1)
    received["stray"] = Array(np.zeros(1))
    config = message.content.get("config", ConfigRecord())
    assert isinstance(config, ConfigRecord)
    if config.get("raise") == partition_id:
        raise ValueError(f"partition {partition_id} has no luck")
    if config.get("kill") == partition_id:
        os.kill(os.getpid(), signal.SIGKILL)
    if "full" in config:  # as of a file system that takes no more
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    if config.get("exit") == partition_id:
        raise SystemExit(3)  # as sys.exit does, which wandb replaces in a process that uses it
    factor = float(context.run_config["factor"])
    metrics = MetricRecord(
        {
            "num-examples": 1 + partition_id,
            "calls": calls,
            "num-partitions": int(context.node_config["num-partitions"]),
            "threads": torch.get_num_threads(),
        }
    )
    arrays = ArrayRecord({"w": Array(weights * factor + partition_id)})
    reply = RecordDict({"arrays": arrays, "metrics": metrics})
    return Message(reply, reply_to=message)


@app.query("process")
def process(message: Message, context: Context) -> Message:
    """Tell about the process that runs the client."""
    told = ConfigRecord(
        {
            "pid": os.getpid(),
            "node": _ray_node(),
            "folder": str(Path.cwd()),
            "cuda": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            "telemetry": os.environ.get("FLWR_TELEMETRY_ENABLED", ""),
            "usage": os.environ.get("RAY_USAGE_STATS_ENABLED", ""),
        }
    )
    return Message(RecordDict({"process": told}), reply_to=message)


@app.query("wait")
def wait(message: Message, context: Context) -> Message:
    """Keep partition 0's caller, or those of `hold`, waiting until there is a file at `gate`.

    That one waits is told by a file beside it.
    """
    config = message.content["config"]
    assert isinstance(config, ConfigRecord)
    gate, partition_id = Path(str(config["gate"])), int(context.node_config["partition-id"])
    hold = config.get("hold", [0])
    assert isinstance(hold, list)
    if partition_id in hold:
        gate.with_name(f"{gate.name}-{partition_id}").touch()
        deadline = time.monotonic() + 60
        while not gate.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    return Message(RecordDict(), reply_to=message)


def _ray_node() -> str:
    """The Ray node that this process is of; empty where it is of none."""
    ray = sys.modules.get("ray")
    return str(ray.get_runtime_context().get_node_id()) if ray and ray.is_initialized() else ""


def _calls(context: Context) -> int:
    record = context.state.get("calls", MetricRecord({"calls": 0}))
    assert isinstance(record, MetricRecord)
    calls = record["calls"]
    assert isinstance(calls, int)
    return calls
