"""Training on a device that is not the host's, where there is no GPU: torch's "meta" device.

Its tensors have a form and no values. Whatever asks for a value, which would wait for a GPU, fails,
and all that is computed must be where the model and the examples are. The host's own tensors, such
as what generators draw, are real.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.parameters import ParameterVector
from core.seeds import torch_generator
from distill import matching
from distill.matching import ClassImages, MatchingConfig, match
from distill.weights import WeightSampling, draws_around
from models.convnet import ConvNet
from pairing.configuration import parse_config
from strategies.base import ServerTask
from strategies.local_sgd import train_locally
from strategies.mosaic import MosaicConfig, train_on_mosaic
from tests.conftest import tiny_keys
from workloads.table import open_workload

ELSEWHERE = torch.device("meta")

MOVES = {"_to_copy", "copy_"}
INDEXED = {"index", "index_put_", "_index_put_impl_"}
"""A GPU's tensor may be indexed by the host's, which are sent."""


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices, but for single numbers, and copies back.

    Attributes:
        num_sent: Tensors that were made on the host and sent, for which a GPU is waited for.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_sent = 0

    def __torch_dispatch__(
        self,
        operation: OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = operation.name().removeprefix("aten::").partition(".")[0]
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        devices = {t.device.type for t in tensors if t.ndim}
        assert len(devices) < 2 or name in MOVES | INDEXED, f"{name} on {devices}"
        if name == "_to_copy" and ELSEWHERE.type in devices:
            assert kwargs.get("device", ELSEWHERE) == ELSEWHERE, "copied to the host"
        if name == "copy_" and args[1].device == ELSEWHERE:
            assert args[0].device == ELSEWHERE, "copied to the host"
        result = operation(*args, **kwargs)
        if name == "lift_fresh" or (name in MOVES and "cpu" in devices):
            self.num_sent += result.device == ELSEWHERE
        return result


@contextlib.contextmanager
def up_to_the_first_value() -> Iterator[OneDevice]:
    """What is inside the block must ask for a value of the device, and ends there."""
    with (
        pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"),
        OneDevice() as device,
    ):
        yield device


class Count:
    steps = 0

    def __call__(self) -> None:
        self.steps += 1


def test_the_device_tells_of_values_and_of_mixed_operations() -> None:
    here, there = torch.ones(3), torch.ones(3, device=ELSEWHERE)
    with up_to_the_first_value():
        float(there.sum() * 2)
    with pytest.raises(AssertionError, match="where on"), OneDevice():
        torch.where(there > 0, here, there)
    with pytest.raises(AssertionError, match="copied to the host"), OneDevice():
        there.cpu()
    with pytest.raises(AssertionError, match="copied to the host"), OneDevice():
        here.copy_(there)


def test_what_is_sent_is_counted() -> None:
    with OneDevice() as device:
        torch.tensor([1.0, 2.0], device=ELSEWHERE)
        torch.ones(3).to(ELSEWHERE)
        assert device.num_sent == 2
        torch.tensor([1.0, 2.0])
        torch.ones(3, device=ELSEWHERE).double()
    assert device.num_sent == 2


@pytest.mark.parametrize("augmentation", ["off", "dsa"])
@pytest.mark.parametrize("pool", [0, 4])
@pytest.mark.parametrize("kind", ["sphere", "ball", "gaussian"])
def test_all_steps_of_matching_run_before_a_value_is_asked_for(
    kind: WeightSampling, pool: int, augmentation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It has no automatic mixed precision, which could be switched off.
    monkeypatch.setattr(matching, "_exact_sums", lambda images: contextlib.nullcontext())

    def num_sent(iterations: int) -> int:
        model = ConvNet((3, 16, 16), 4, width=8, depth=2).to(ELSEWHERE)
        parameters, count = ParameterVector(model), Count()
        draw = draws_around(
            parameters.values.clone(),
            kind=kind,
            radius=5.0,
            sigma=1.0,
            mask=torch.ones_like(parameters.values),
            generator=None,  # type: ignore[arg-type]  # it has none
        )
        classes = [
            ClassImages(label, torch.rand(6, 3, 16, 16, device=ELSEWHERE)) for label in (1, 3)
        ]
        with up_to_the_first_value() as device:
            match(
                parameters,
                model,
                classes,
                torch.rand(4, 3, 16, 16, device=ELSEWHERE),
                torch.tensor([1, 1, 3, 3], device=ELSEWHERE),
                MatchingConfig(
                    iterations=iterations,
                    real_batch=4,
                    augmentation=augmentation,
                    network_pool=pool,
                ),
                draw=draw,
                generator=torch_generator(0),
                count_step=count,
            )
        assert count.steps == iterations
        return device.num_sent

    # Steps send nothing, of which 40 draws are of all operations of the augmentation.
    assert num_sent(40) == num_sent(4)


def steps_of_local_training(keys: Mapping[str, object]) -> int:
    config, count = parse_config(keys), Count()
    workload = open_workload(config, ELSEWHERE)
    model = workload.build_model(0)
    objective = workload.objective(
        model, workload.examples(torch.arange(24)), seed=0, partition_id=0
    )
    with up_to_the_first_value():
        train_locally(ParameterVector(model), objective, config.train, seed=0, count_step=count)
    return count.steps


@pytest.mark.parametrize(
    "keys",
    [
        {"model__name": "cnn"},
        {"model__name": "convnet", "train__momentum": 0.9},
        {"model__name": "resnet18"},
        {"model__name": "resnet32"},
        {"train__optimizer": "adamw"},
    ],
)
def test_a_clients_steps_run_before_a_value_is_asked_for(keys: Mapping[str, Any]) -> None:
    flat = tiny_keys("fedavg", **{"train__batch_size": 8, "train__local_epochs": 2, **keys})
    if keys.get("model__name") in ("cnn", "resnet18", "resnet32"):
        del flat["model.width"]
    assert steps_of_local_training(flat) == 6


@pytest.mark.parametrize("loss", ["transformer", "scale-only", "linear"])
@pytest.mark.parametrize("optimizer", ["itd", "stocbio", "aid-fp", "aid-fp-lite"])
def test_losses_are_differentiated_twice_where_the_model_is(optimizer: str, loss: str) -> None:
    """But for conjugate gradients, which look at the curvature that they meet."""
    keys = tiny_keys(
        "fedavg",
        workload="meltr",
        meltr__tasks="rotation,mixup,random-labels",
        meltr__optimizer=optimizer,
        meltr__loss=loss,
        meltr__update_every=1,
        train__batch_size=12,
        train__local_epochs=1,
        model__width=4,
        **({"meltr__steps": 2} if optimizer in ("stocbio", "aid-fp") else {}),
    )
    if loss != "linear":
        keys |= {"meltr.fit-steps": 0, "meltr.width": 16, "meltr.heads": 2}
    assert steps_of_local_training(keys) == 2


def test_the_servers_steps_run_before_a_value_is_asked_for() -> None:
    config, count = parse_config(tiny_keys("feddm", mosaic__images_per_class=2)), Count()
    workload = open_workload(config, ELSEWHERE)
    task = ServerTask(
        round=1,
        seed=0,
        parameters=ParameterVector(workload.build_model(0)),
        workload=workload,
        device=ELSEWHERE,
        count_step=count,
    )
    images = torch.rand(20, *workload.input_shape)  # type: ignore[attr-defined]
    with up_to_the_first_value():
        train_on_mosaic(
            task,
            images,
            torch.arange(20) % 10,
            torch.ones(20),
            MosaicConfig(epochs=3, batch_size=8),
        )
    assert count.steps == 9
