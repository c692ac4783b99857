"""The ClientApp under stock Flower. An actor reads the data and builds the network once."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from benchmarks.peers.given import Given, train_one_epoch

app = ClientApp()


@lru_cache(maxsize=1)
def _resident(folder: str) -> tuple[Given, nn.Module]:
    torch.set_num_threads(1)
    given = Given.read(Path(folder))
    return given, given.initial_model()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One local epoch of the client that the message names, or the model as it came."""
    config = message.content["config"]
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    loss = 0.0
    num_examples = 1
    if not config["echo"]:
        given, model = _resident(str(config["work"]))
        model.load_state_dict(arrays.to_torch_state_dict())
        client = int(config["client"])  # type: ignore[arg-type]
        loss = train_one_epoch(model, given, int(config["server-round"]), client)  # type: ignore[arg-type]
        arrays = ArrayRecord(model.state_dict())
        num_examples = len(given.clients[client])
    metrics = MetricRecord({"train_loss": loss, "num-examples": num_examples})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
