"""The noised sum of clients' updates: by hand, by definition, and against Flower's clipping."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from flwr.serverapp import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyConfig,
    RdpAccountant,
    SamplingMethod,
)
from flwr.supercore.differential_privacy import compute_clip_model_update, compute_stdv
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from core.errors import PrivacyError
from core.parameters import NamedTensors
from privacy.accounting import RDP_ORDERS, Segment, epsilon
from privacy.client_level import ClientSum
from privacy.mechanism import GaussianSums
from privacy.noise import NoiseSource, SystemNoise
from tests.unit.privacy.noises import NoNoise

W = {"w": torch.tensor([1.0, 1.0]), "delta/b": torch.zeros(1)}
"""What a client sends that changes nothing: one array of weights, and one of changes."""


def mechanism(
    clip: float = 1.0, sigma: float = 1.0, source: NoiseSource | None = None
) -> GaussianSums:
    return GaussianSums(
        "client",
        clip=clip,
        noise_multiplier=sigma,
        sampling_rate=1.0,
        steps=1,
        source=source or NoNoise(),
    )


def client_sum(
    unchanged: NamedTensors = W,
    *,
    clip: float = 1.0,
    sigma: float = 1.0,
    denominator: int = 1,
    source: NoiseSource | None = None,
) -> ClientSum:
    return ClientSum(mechanism(clip, sigma, source), unchanged, denominator)


def sent(w: tuple[float, float], b: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(w), "delta/b": torch.tensor([b])}


def test_three_clients_by_hand() -> None:
    """Updates (3, 0 | 4) of norm 5, (0, 1 | 0) of norm 1 and none at all; C is 2.5."""
    total = client_sum(clip=2.5, denominator=3)
    for arrays in (sent((4.0, 1.0), 4.0), sent((1.0, 2.0), 0.0), sent((1.0, 1.0), 0.0)):
        total.add(arrays)
    mean = total.release_mean()
    assert mean["w"].tolist() == pytest.approx([1 + 1.5 / 3, 1 + 1 / 3])
    assert mean["delta/b"].tolist() == pytest.approx([2.0 / 3])


def test_a_client_of_which_nothing_comes_stays_in_the_denominator() -> None:
    means = []
    for stay_away in (0, 1):
        total = client_sum(clip=2.5, denominator=3)
        total.add(sent((4.0, 1.0), 4.0))
        for _ in range(2 - stay_away):
            total.add({name: array.clone() for name, array in W.items()})
        means.append(total.release_mean())
    assert torch.equal(means[0]["w"], means[1]["w"])
    assert torch.equal(means[0]["delta/b"], means[1]["delta/b"])


NUMBERS = st.one_of(
    st.floats(-1e6, 1e6),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, 5e-324, 1e308, -1e308, math.inf, -math.inf, math.nan]),
)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[list[NamedTensors], NamedTensors, float]:
    """Replies of 1 to 5 clients, what a client sends that changes nothing, and a clip."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))

    def reply(values: st.SearchStrategy[float]) -> NamedTensors:
        drawn = [draw(st.lists(values, min_size=n, max_size=n)) for n in sizes]
        return {str(i): torch.tensor(v, dtype=torch.float64) for i, v in enumerate(drawn)}

    replies = [reply(NUMBERS) for _ in range(draw(st.integers(1, 5)))]
    return replies, reply(st.floats(-100, 100)), draw(st.floats(1e-3, 1e3))


def summed(
    replies: Sequence[NamedTensors],
    unchanged: NamedTensors,
    clip: float,
    kind: type[ClientSum] = ClientSum,
) -> torch.Tensor:
    """The sum before noise, as one vector."""
    total = kind(mechanism(clip), unchanged, 1)
    for arrays in replies:
        total.add(arrays)
    released = total.release_mean()
    return torch.cat([released[name] - unchanged[name] for name in unchanged])


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(one - other))


@given(rounds())
def test_one_client_moves_the_sum_by_at_most_the_clip(
    case: tuple[list[NamedTensors], NamedTensors, float],
) -> None:
    replies, unchanged, clip = case
    whole, slack = summed(replies, unchanged, clip), 1e-9 * (1 + clip)
    assert whole.isfinite().all()
    for k in range(len(replies)):
        others = [*replies[:k], *replies[k + 1 :]]
        assert distance(whole, summed(others, unchanged, clip)) <= clip + slack
        swapped = [*others[:k], {n: -a for n, a in replies[k].items()}, *others[k:]]
        assert distance(whole, summed(swapped, unchanged, clip)) <= 2 * clip + slack


class ClippedArrayByArray(ClientSum):
    """Clips each array on its own, as layers are sometimes."""

    def add(self, arrays: NamedTensors) -> None:
        for name in arrays:
            super().add({**self._unchanged, name: arrays[name]})


def test_a_variant_that_clips_array_by_array_moves_it_by_more() -> None:
    update = sent((10.0, 1.0), 10.0)
    nothing = torch.zeros(3)
    assert distance(summed([update], W, 1.0), nothing) == pytest.approx(1.0)
    assert distance(summed([update], W, 1.0, ClippedArrayByArray), nothing) > 1.4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_update_without_a_norm_counts_as_zero(value: float) -> None:
    total = client_sum(clip=2.5, denominator=2)
    total.add(sent((4.0, 1.0), 4.0))
    total.add(sent((1.0, 1.0), value))
    assert total.count == 2
    assert total.release_mean()["w"].tolist() == pytest.approx([1 + 1.5 / 2, 1.0])


def test_the_mean_is_noised_on_every_coordinate_as_stated() -> None:
    """Chi-square of each coordinate over many rounds, and of all; sigma C / m is 1.5 2 / 4."""
    count, rounds, std = 40, 300, 1.5 * 2.0 / 4
    unchanged = {"w": torch.full((5, 7), 3.0), "delta/b": torch.zeros(5)}
    drawn = []
    for _ in range(rounds):
        total = client_sum(unchanged, clip=2.0, sigma=1.5, denominator=4, source=SystemNoise())
        total.add(unchanged)
        mean = total.release_mean()
        drawn.append(torch.cat([(mean[n] - unchanged[n]).double().flatten() for n in unchanged]))
    squares = torch.stack(drawn).div(std).square()
    low, high = stats.chi2.ppf([1e-10, 1 - 1e-10], rounds)
    assert ((squares.sum(0) > low) & (squares.sum(0) < high)).all()
    low, high = stats.chi2.ppf([1e-10, 1 - 1e-10], rounds * count)
    assert low < float(squares.sum()) < high
    correlation = np.corrcoef(torch.stack(drawn).T.numpy())
    assert np.abs(correlation - np.eye(count)).max() < 6.5 / rounds**0.5


def test_no_noise_is_used_twice() -> None:
    means = []
    for _ in range(2):
        total = client_sum(source=SystemNoise())
        total.add(W)
        means.append(total.release_mean()["w"])
    assert not torch.equal(*means)
    with pytest.raises(AssertionError, match="released twice"):
        total.release_mean()
    with pytest.raises(AssertionError, match="released"):
        total.add(W)


def test_what_cannot_be_noised_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"'steps' .* torch.int64"):
        client_sum({**W, "steps": torch.tensor(3)})


def test_it_keeps_forms_and_types() -> None:
    unchanged = {"half": torch.ones(2, 3, dtype=torch.float16), "scalar": torch.tensor(2.0)}
    total = client_sum(unchanged)
    total.add(unchanged)
    for name, array in total.release_mean().items():
        assert (array.dtype, array.shape) == (unchanged[name].dtype, unchanged[name].shape)
        assert torch.equal(array, unchanged[name])


@pytest.mark.parametrize("clip", [0.1, 3.0, 100.0])
def test_it_clips_as_flower_does(clip: float) -> None:
    generator = np.random.default_rng(3)
    shapes = {"w": (4, 5), "b": (5,), "c": (1,)}  # Flower leaves a scalar, shape (), unclipped
    received = {name: generator.normal(size=shape) for name, shape in shapes.items()}
    reply = {name: array + generator.normal(size=array.shape) for name, array in received.items()}
    theirs = [array.copy() for array in reply.values()]
    compute_clip_model_update(theirs, list(received.values()), clip)
    total = client_sum({n: torch.tensor(a) for n, a in received.items()}, clip=clip)
    total.add({n: torch.tensor(a) for n, a in reply.items()})
    for ours, expected in zip(total.release_mean().values(), theirs, strict=True):
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)


class Constant(NoNoise):
    """Draws one standard deviation on every coordinate."""

    def normal(self, reference: torch.Tensor, std: float) -> torch.Tensor:
        return torch.full_like(reference, std)


def test_the_deviation_is_flowers() -> None:
    total = client_sum(clip=0.7, sigma=1.3, denominator=11, source=Constant())
    total.add(W)
    assert total.release_mean()["delta/b"].item() == pytest.approx(compute_stdv(1.3, 0.7, 11))


@pytest.mark.parametrize(("sigma", "count"), [(1.0, 1), (4.0, 20), (10.0, 100)])
def test_epsilon_is_that_of_flowers_accountant(sigma: float, count: int) -> None:
    """Client-level, add or remove one, no amplification: sampling rate 1, one step a round."""
    config = PrivacyConfig(
        target_delta=1e-5,
        population_size=10,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
        sampling_method=SamplingMethod.NO_AMPLIFICATION,
    )
    accountant = RdpAccountant(config, tuple(map(float, RDP_ORDERS)))
    accountant.compose(GaussianPrivacyEvent(sigma, 10, 10), count)
    ours = epsilon([Segment(sigma, 1.0, 1)] * count, 1e-5, "rdp").value
    assert ours == pytest.approx(accountant.get_epsilon(1e-5), rel=0.005)
