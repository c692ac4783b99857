from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from core.config import RunConfig, TrainConfig
from core.device import check_precision, numerics, resolve_device
from core.errors import RunError
from core.examples import Examples
from core.parameters import ParameterVector
from models.convnet import ConvNet
from pairing.configuration import parse_config
from strategies.local_sgd import train_locally
from tests.unit.strategies.toy import ToyObjective

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert resolve_device("auto") == CPU
    with pytest.raises(RunError, match=r"engine.device=cuda, but torch sees no CUDA GPU"):
        resolve_device("cuda")


def test_tf32_is_refused_where_there_is_none() -> None:
    check_precision("tf32", torch.device("cuda"))
    with pytest.raises(RunError, match=r"engine.precision=tf32, but the device is cpu: .* bf16"):
        check_precision("tf32", CPU)
    with pytest.raises(RunError, match=r"engine.precision=tf32"), numerics("tf32", CPU):
        pass


def test_products_are_in_the_precision_and_settings_are_put_back() -> None:
    layer = nn.Linear(3, 2)
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    for precision, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        with numerics(precision, CPU):
            assert [flag.allow_tf32 for flag in flags] == [False, False]
            assert layer(torch.ones(1, 3)).dtype == dtype
        assert layer(torch.ones(1, 3)).dtype == torch.float32
        assert [flag.allow_tf32 for flag in flags] == before


class Workload:
    """Cross-entropy, all that the loop asks for."""

    def loss(self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(model(inputs), labels, reduction="none")


def test_every_step_in_bf16_sees_the_weights_of_the_step_before() -> None:
    """Autocast keeps its casts of weights for the length of a block unless it is told not to."""
    generator = torch.Generator().manual_seed(0)
    examples = Examples(torch.randn(64, 1, 8, 8, generator=generator), torch.arange(64) % 2)
    moved = {}
    for precision in ("float32", "bf16"):
        torch.manual_seed(1)
        parameters = ParameterVector(ConvNet((1, 8, 8), 2, width=8, depth=2))
        start = parameters.values.clone()
        config = TrainConfig(learning_rate=0.1, local_epochs=10, batch_size=16)
        objective = ToyObjective(Workload(), parameters.model, examples)
        with numerics(precision, CPU):
            train_locally(parameters, objective, config, seed=0)
        moved[precision] = parameters.values - start
    difference = (moved["bf16"] - moved["float32"]).norm() / moved["float32"].norm()
    assert difference < 0.1


def test_bf16_is_refused_for_noised_gradients() -> None:
    keys = {"strategy": "fedavg", "privacy.mechanism": "dp-sgd", "privacy.epsilon": 4.0}
    assert isinstance(parse_config(keys), RunConfig)
    with pytest.raises(ValueError, match=r"engine.precision=bf16: clips and noise .* float32"):
        parse_config({**keys, "engine.precision": "bf16"})
