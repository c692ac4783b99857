"""Clients with video files of their own in real processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from core.workload import OwnData
from data.video.shapestory.make import Recipe, make_corpus
from experiments.run import run as simulate
from pairing.configuration import parse_config
from server.preparation import prepare
from server.progress import PlainProgress
from tests.integration.edge_federation import PATIENCE_S, EdgeFederation
from tests.integration.test_edge_survival import assert_same_weights, weights
from tests.integration.test_network import own_keys
from tests.integration.vlm import vlm_keys

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(900),
]


def test_own_video_files_give_the_weights_of_a_simulation(tmp_path: Path) -> None:
    """Decoded, encoded and trained on where they lie, by clients with different tasks."""
    root = tmp_path / "corpus"
    make_corpus(Recipe(train=10, validation=2, test=2), root)
    corpus = {
        "video.source": f"shapestory:{root}",
        "video.encoder": "conv3d-random",
        "video.cache": str(tmp_path / "features"),
        "partition.clients": 2,
        "partition.scheme": "iid",
    }
    keys = vlm_keys(corpus, tasks="retrieval;segmentation", rounds=1)
    preparation = prepare(parse_config(keys))
    assert isinstance(preparation.workload, OwnData)
    clients = preparation.partition.clients
    shares = preparation.workload.write_shares(clients, tmp_path / "dealt")

    with EdgeFederation(tmp_path / "edge", num_clients=2) as federation:
        for client, share in zip(federation.clients, shares, strict=True):
            (client / "data").rmdir()
            share.rename(client / "data")
        federation.start_clients()
        run = federation.start_run({**own_keys(keys), "name": "videos"})
        assert run.wait(PATIENCE_S) == 0, run.text()
        found = weights(federation.runs / "videos", 1)
        for client in federation.clients:
            assert list((client / "state" / "cache").glob("*/*.npy")), "features stay with it"

    simulated = simulate(
        parse_config({**keys, "runs": str(tmp_path / "simulated"), "name": "videos"}),
        PlainProgress(),
    )
    assert_same_weights(found, weights(simulated, 1))
