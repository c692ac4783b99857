"""What a run folder holds, read back with the libraries its users would use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from core.records import RunFolder
from data.partition import Partition
from server.preparation import prepare
from server.recorder import reproducing_command, with_nearest_images
from strategies.base import Mosaic
from strategies.table import parse_config
from tests.conftest import Federate, tiny_keys


@pytest.fixture
def folder(federate: Federate) -> RunFolder:
    return RunFolder.open(federate(tiny_keys("feddm", rounds=4, name="it")))


def test_the_folder_tells_all_of_the_run(folder: RunFolder) -> None:
    config = parse_config(folder.read_json("config"))
    assert config.identity() == folder.read_json("run")["identity"]
    environment = folder.read_json("environment")
    assert torch.__version__.startswith(environment["torch"])
    assert Partition.read(folder.partition).source == "digits"
    privacy = folder.read_json("privacy")
    assert privacy["guarantee"] == "none"
    assert privacy["text"].startswith("none: the images are not private")
    assert folder.read_json("run")["scores"] == prepare(config).workload.scores.to_json()
    assert not folder.progress.exists()


def test_tensorboard_shows_the_records(folder: RunFolder) -> None:
    events = EventAccumulator(str(folder.events))
    events.Reload()
    shown = events.Scalars("test/accuracy")
    for record, event in zip(folder.read_rounds(), shown, strict=True):
        assert record.test is not None
        assert event.step == record.round
        assert event.value == pytest.approx(record.test.primary)


def test_the_last_two_checkpoints_are_kept_and_name_their_run(folder: RunFolder) -> None:
    kept = sorted(path.name for path in folder.checkpoint(1).parent.iterdir())
    assert kept == ["round-0003.safetensors", "round-0004.safetensors"]
    with safe_open(folder.checkpoint(4), "pt") as file:
        metadata = file.metadata()
        assert metadata["round"] == "4"
        assert metadata["identity"] == folder.read_json("run")["identity"]
        names = set(file.keys())
        weights = prepare(parse_config(folder.read_json("config"))).initial_weights
        assert names == {"acknowledged", *(f"weights/{name}" for name in weights)}


def test_the_checkpoint_is_the_model_that_was_judged(folder: RunFolder) -> None:
    config = parse_config(folder.read_json("config"))
    preparation = prepare(config)
    weights = load_file(folder.checkpoint(4))
    preparation.model.load_state_dict(
        {
            name.removeprefix("weights/"): value
            for name, value in weights.items()
            if name.startswith("weights/")
        }
    )
    judged = preparation.workload.evaluate(preparation.model, "test")
    assert folder.read_rounds()[-1].test == judged


def test_the_command_gives_the_same_configuration_again(folder: RunFolder) -> None:
    config = parse_config(folder.read_json("config"))
    words = reproducing_command(config).split()[2:]
    again = parse_config(dict(word.split("=", 1) for word in words))
    assert again.identity() == config.identity()


def test_nearest_images_are_the_clients_own_nearest() -> None:
    preparation = prepare(parse_config(tiny_keys("feddm")))
    dataset, partition = preparation.workload.dataset, preparation.partition
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 1, 8, 8), generator=generator, dtype=torch.uint8)
    pixels[0] = dataset.train.images[int(partition.clients[1][5])]
    senders = torch.tensor([1, 0, 2, 1, 0, 2])
    tensors = with_nearest_images(
        Mosaic(pixels, torch.zeros(6, dtype=torch.int64), senders), dataset, partition
    )
    for k, sender in enumerate(senders.tolist()):
        own = partition.clients[sender]
        real = dataset.train.images[torch.from_numpy(own)].double()
        gaps = (pixels[k].double() - real).square().mean(dim=(1, 2, 3)).sqrt().tolist()
        assert int(tensors["nearest_indices"][k]) == own[int(np.argmin(gaps))]
        assert float(tensors["nearest_distances"][k]) == pytest.approx(min(gaps), rel=1e-4)
        nearest = dataset.train.images[tensors["nearest_indices"][k]]
        assert torch.equal(tensors["nearest_images"][k], nearest)
    assert float(tensors["nearest_distances"][0]) == 0


def test_an_interrupted_run_says_so(
    federate: Federate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server import federation

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(federation.Federation, "_server_task", interrupt)
    with pytest.raises(KeyboardInterrupt):
        federate(tiny_keys("fedavg", name="cut"))
    status = json.loads((tmp_path / "runs" / "cut" / "run.json").read_text())
    assert status["status"] == "interrupted"
    assert status["rounds_done"] == 0
