"""VLM in federations: every strategy that averages weights, and clients that lack a modality."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from core.config import parse_assignments
from core.records import RunFolder
from experiments.run import run as simulate
from pairing.configuration import parse_config
from server.prediction import predict_bytes
from server.preparation import prepare
from server.progress import PlainProgress
from tests.conftest import Federate
from tests.integration.test_workloads import AVERAGING, kept, tensors
from tests.integration.vlm import vlm_keys
from tests.unit.workloads.video.corpora import write_corpus
from workloads.table import open_workload
from workloads.video.vlm.workload import Vlm


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, object]:
    """Keys of a corpus of 15 training videos, 3 for validation and 3 for test."""
    root = tmp_path_factory.mktemp("corpus")
    return dict(parse_assignments(write_corpus(root, train=15, validation=3, test=3)))


@pytest.mark.parametrize("strategy", [*AVERAGING, "local", "centralized"])
def test_vlm_pre_trains_under_every_strategy_that_has_its_objective(
    strategy: str, corpus: Mapping[str, object], federate: Federate
) -> None:
    path = federate(vlm_keys(corpus, strategy))
    last = RunFolder.open(path).read_rounds()[-1]
    assert last.test is not None and 0 <= last.test.primary <= 1
    assert last.test.scores["step_recall"] <= 1
    measured = {"loss/pretraining", "masked_token_loss/video", "masked_token_loss/text"}
    assert measured | {"video_negatives"} <= last.server.keys()
    if strategy not in ("local", "centralized"):
        first, final = tensors(path, 1), tensors(path)
        moved = {name for name, value in final.items() if not torch.equal(value, first[name])}
        for part in ("encoder.embeddings.", "encoder.encoder.", "video.", "lm."):
            assert any(name.startswith(part) for name in moved), part


@pytest.fixture(scope="module")
def pretrained(
    corpus: Mapping[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, torch.Tensor]:
    """What one round of pre-training ends with."""
    keys = {**vlm_keys(corpus, rounds=1), "runs": str(tmp_path_factory.mktemp("pretrained"))}
    return tensors(simulate(parse_config({**keys, "name": "start"}), PlainProgress()), 1)


@pytest.mark.parametrize("strategy", AVERAGING)
def test_vlm_is_fine_tuned_under_every_strategy_from_what_was_pre_trained(
    strategy: str,
    corpus: Mapping[str, object],
    pretrained: Mapping[str, torch.Tensor],
    federate: Federate,
    tmp_path: Path,
) -> None:
    """From another run's encoder, and a classifier that only this run has."""
    start = tmp_path / "start.safetensors"
    save_file(dict(pretrained), start)
    tasks = "segmentation,retrieval"
    keys = vlm_keys(corpus, strategy, tasks, start_from=str(start), rounds=1)
    initial = prepare(parse_config(keys)).initial_state().weights
    shared = [name for name in initial if name in pretrained]
    assert shared and all(torch.equal(initial[name], pretrained[name]) for name in shared)
    path = federate(keys)
    last, final = RunFolder.open(path).read_rounds()[-1], tensors(path, 1)
    assert {"loss/segmentation", "loss/retrieval"} <= last.server.keys()
    assert last.test is not None and 0 <= last.test.primary <= 1
    for part in ("encoder.encoder.", "video.", "heads.segmentation."):
        names = [name for name in final if name.startswith(part)]
        assert any(not torch.equal(final[name], initial[name]) for name in names), part


def test_clients_without_a_modality_train_on_the_other(
    corpus: Mapping[str, object], federate: Federate
) -> None:
    more: dict[str, Any] = {"vlm__clients_without_text": 0.34, "vlm__clients_without_video": 0.34}
    keys = vlm_keys(corpus, **more, vlm__token_rate=0.6)
    last = RunFolder.open(federate(keys)).read_rounds()[-1]
    workload = open_workload(parse_config(keys), torch.device("cpu"))
    assert isinstance(workload, Vlm)
    has = {k: workload.modalities(k) for k in range(3)}
    assert sorted(has.values()) == [(False, True), (True, False), (True, True)]
    for client in last.clients:
        has_video, has_text = has[client.partition_id]
        assert client.outcome == "counted", client.failure
        assert ("masked_token_loss/video" in client.metrics) == has_video
        assert ("masked_token_loss/text" in client.metrics) == has_text
        assert client.metrics["loss/pretraining"] > 0
    for part, index in (("video", 0), ("text", 1)):
        name = f"masked_token_loss/{part}"
        told = [c for c in last.clients if has[c.partition_id][index]]
        weights = [c.metrics["num_examples"] for c in told]
        total = sum(w * c.metrics[name] for w, c in zip(weights, told, strict=True))
        assert last.server[name] == pytest.approx(total / sum(weights))
    assert last.bytes_up == sum(predict_bytes(prepare(parse_config(keys))).up[1])


def test_what_reads_video_is_averaged_over_the_clients_that_have_it(
    corpus: Mapping[str, object], federate: Federate
) -> None:
    """With all else frozen and one client that has video, it is what that client alone makes."""
    more: dict[str, Any] = {"vlm__clients_without_video": 0.67, "groups__frozen": "encoder,lm"}
    keys = vlm_keys(corpus, rounds=1, **more)
    workload = open_workload(parse_config(keys), torch.device("cpu"))
    assert isinstance(workload, Vlm)
    (client,) = (k for k in range(3) if workload.modalities(k)[0])
    path = federate(keys)
    own = kept(federate(vlm_keys(corpus, "local", rounds=1, **more)), client, 1)
    final, initial = tensors(path, 1), prepare(parse_config(keys)).initial_state().weights
    names = [name for name in final if name.startswith("video.")]
    assert any(not torch.equal(final[name], initial[name]) for name in names)
    for name in names:
        torch.testing.assert_close(final[name], own[name], rtol=1e-6, atol=1e-7)
    last = RunFolder.open(path).read_rounds()[-1]
    assert [client.outcome for client in last.clients] == ["counted"] * 3


@pytest.mark.parametrize("tasks", ["retrieval", "segmentation,captioning"])
def test_one_client_with_all_videos_is_central_training(
    tasks: str, corpus: Mapping[str, object], federate: Federate
) -> None:
    """One plain step a round on everything: videos come in another order, and nothing else."""
    one = {"partition__clients": 1, "partition__scheme": "iid", "vlm__dropout": 0.0}
    plain = {"train__batch_size": 64, "train__learning_rate": 0.01}
    federated = vlm_keys(corpus, "fedavg", tasks, **one, **plain)
    central = vlm_keys(corpus, "centralized", tasks, **one, **plain)
    found, expected = federate(federated), federate(central)
    for name, value in tensors(expected).items():
        torch.testing.assert_close(tensors(found)[name], value, rtol=1e-5, atol=1e-6)
    ends = [RunFolder.open(path).read_rounds()[-1] for path in (found, expected)]
    assert ends[0].test is not None and ends[1].test is not None
    assert ends[0].test.loss == pytest.approx(ends[1].test.loss, rel=1e-5)
    assert ends[0].server["train_loss"] == pytest.approx(ends[1].server["train_loss"], rel=1e-5)


def test_client_level_privacy_tells_no_measures(
    corpus: Mapping[str, object], federate: Federate
) -> None:
    private = {
        "privacy.mechanism": "client",
        "privacy.noise-multiplier": 1.0,
        "privacy.delta": 1e-2,
        "privacy.accountant": "rdp",
    }
    path = federate({**vlm_keys(corpus), **private})
    last = RunFolder.open(path).read_rounds()[-1]
    assert last.server["epsilon"] > 0
    assert not any("/" in name or name == "video_negatives" for name in last.server)
    for client in last.clients:
        assert not client.metrics.keys() & {"loss/pretraining", "num_examples"}
