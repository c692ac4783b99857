"""The pages of the documentation, executed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.records import RunFolder
from tests.conftest import TINY, Federate, tiny_keys

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def strategy_of_the_page(tmp_path: Path) -> str:
    (block,) = re.findall(
        r"```python\n(.*?)```", (DOCS / "adding-a-strategy.md").read_text(), flags=re.DOTALL
    )
    path = tmp_path / "equal_average.py"
    path.write_text(block)
    return f"{path}:EqualAverage"


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
