"""The pages of the documentation, executed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.errors import ConfigError, QuorumError
from core.records import RunFolder
from core.workload import OwnData
from pairing.configuration import parse_config
from report.html import write_report
from server.preparation import prepare
from tests.conftest import TINY, Federate, tiny_keys
from tests.integration.network_grid import Node
from tests.integration.test_network import Network

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def strategy_of_the_page(tmp_path: Path) -> str:
    (block,) = re.findall(
        r"```python\n(.*?)```", (DOCS / "adding-a-strategy.md").read_text(), flags=re.DOTALL
    )
    path = tmp_path / "equal_average.py"
    path.write_text(block)
    return f"{path}:EqualAverage"


@pytest.fixture
def workload_of_the_page(tmp_path: Path) -> str:
    """The page's blocks, one after the other."""
    blocks = re.findall(
        r"```python\n(.*?)```", (DOCS / "adding-a-workload.md").read_text(), flags=re.DOTALL
    )
    path = tmp_path / "thermometers.py"
    *first, lacks, own = blocks
    # What it lacks continues the class of the block before.
    path.write_text("\n\n".join(first) + "\n" + lacks + "\n\n" + own)
    return f"{path}:Thermometers"


SITES: Mapping[str, object] = {
    "strategy": "fedavg",
    "rounds": 8,
    "evaluate-every": 8,
    "partition.clients": 3,
    "partition.scheme": "pathological",
    "partition.classes-per-client": 1,
    "train.learning-rate": 0.2,
    "train.local-epochs": 5,
    "engine.kind": "in-process",
}


def test_the_workload_of_the_page_learns_and_is_reported_by_its_own_scores(
    workload_of_the_page: str, federate: Federate
) -> None:
    keys = {k: v for k, v in SITES.items() if k != "partition.classes-per-client"}
    keys |= {"partition.scheme": "iid", "thermometers.noise": 0.05}
    path = federate({**keys, "workload": workload_of_the_page})
    first, *_, last = RunFolder.open(path).read_rounds()
    assert first.test is not None and last.test is not None
    assert list(last.test.scores) == ["r2", "rmse"]
    assert last.test.primary > 0.5 > first.test.primary
    assert last.test.scores["rmse"] ** 2 == pytest.approx(last.test.loss)
    assert {"error/morning", "error/noon", "error/evening"} <= last.server.keys()
    page = write_report([path], path.parent / "page.html").read_text()
    page = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)  # the plotting library's words
    assert "ariance explained" in page and "ccuracy" not in page


@pytest.mark.parametrize(
    "keys",
    [
        {"strategy": "scaffold", "groups.personal": "head"},
        {"groups.frozen": "body"},
        {"strategy": "local"},
        {"strategy": "centralized"},
        {
            "privacy.mechanism": "dp-sgd",
            "privacy.noise-multiplier": 1.0,
            "privacy.delta": 1e-4,
            "privacy.accountant": "rdp",
            "train.local-epochs": 1,
        },
    ],
    ids=["personal", "frozen", "local", "centralized", "dp-sgd"],
)
def test_the_workload_of_the_page_runs_as_others_do(
    workload_of_the_page: str, keys: Mapping[str, object], federate: Federate
) -> None:
    path = federate({**SITES, "rounds": 2, "workload": workload_of_the_page, **keys})
    last = RunFolder.open(path).read_rounds()[-1]
    assert RunFolder.open(path).read_json("run")["status"] == "complete"
    assert last.round == 2


def test_the_workload_of_the_page_refuses_what_it_has_not(workload_of_the_page: str) -> None:
    keys = {"workload": workload_of_the_page, "strategy": "fedavg"}
    with pytest.raises(ConfigError, match="brings its own data; leave it out"):
        parse_config({**keys, "data.source": "cifar10"})
    with pytest.raises(ConfigError, match="brings its own model; leave it out"):
        parse_config({**keys, "model.width": 4})
    with pytest.raises(ConfigError, match="is trained on temperatures and has no images; take an"):
        parse_config({"workload": workload_of_the_page, "strategy": "feddm"})


def test_the_workload_of_the_page_reads_what_clients_bring(
    workload_of_the_page: str, federate: Federate, tmp_path: Path
) -> None:
    """Over a network it ends with the weights of a simulation that deals the same."""
    with pytest.raises(ConfigError, match="does not say how clients' own are read"):
        parse_config(
            {"workload": workload_of_the_page, "strategy": "fedavg", "partition.scheme": "own"}
        )
    brings = workload_of_the_page.replace(":Thermometers", ":OwnThermometers")
    dealt = {**SITES, "rounds": 2, "evaluate-every": 2, "workload": brings}
    path = federate(dealt)
    preparation = prepare(parse_config(dealt))
    assert isinstance(preparation.workload, OwnData)
    shares = preparation.workload.write_shares(preparation.partition.clients, tmp_path / "data")
    nodes = {7 + k: Node({"partition-id": k, "data": str(file)}) for k, file in enumerate(shares)}
    kept = {k: v for k, v in dealt.items() if k != "partition.classes-per-client"}
    here = Network(tmp_path, {**kept, "partition.scheme": "own"}, nodes)
    here.run()
    found = here.weights(2)
    for name, tensor in final_weights(path).items():
        assert torch.equal(torch.from_numpy(found[name]), tensor)
    shares[0].write_text("0.5,1.0,midnight\n")
    with pytest.raises(QuorumError, match=r"holds \['midnight'\]; the federation's are"):
        here.run(name="again")


def final_weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(RunFolder.open(path).checkpoint(2))


def test_the_strategy_of_the_page_runs_and_reduces_to_fedavg(
    strategy_of_the_page: str, federate: Federate
) -> None:
    """Parts of equal size: equal weights are weights by examples."""
    iid = {**TINY, "partition.scheme": "iid", "data.train-examples": 900}
    ours = federate({**iid, "strategy": strategy_of_the_page})
    fedavg = federate({**tiny_keys("fedavg"), **iid})
    folder = RunFolder.open(ours)
    sizes = [
        int(r.metrics["num_examples"]) for r in RunFolder.open(fedavg).read_rounds()[1].clients
    ]
    assert len(set(sizes)) == 1
    for name, value in final_weights(fedavg).items():
        assert torch.allclose(final_weights(ours)[name], value, atol=1e-5), name
    assert folder.read_rounds()[1].server == {"clients_counted": 3}


def test_the_pages_own_key_takes_effect(strategy_of_the_page: str, federate: Federate) -> None:
    keys = {**TINY, "strategy": strategy_of_the_page, "rounds": 1, "evaluate-every": 1}
    half = federate({**keys, "equal-average.server-step": 0.5})
    whole = federate(keys)
    assert RunFolder.open(half).read_json("config")["equal-average.server-step"] == 0.5
    first, second = (load_file(RunFolder.open(p).checkpoint(1)) for p in (half, whole))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_the_readmes_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(
        r"```python\n(.*?)```", (DOCS.parent / "README.md").read_text(), flags=re.DOTALL
    )
    exec(compile(block, "README.md", "exec"), {})
    assert 0 < float(capsys.readouterr().out.splitlines()[-1]) <= 1
    assert len(list((tmp_path / ".runs").iterdir())) == 1
