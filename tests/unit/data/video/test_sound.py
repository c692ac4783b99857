from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from core.errors import DataError
from data.video.sound import LogMel


def tone(hz: float, config: LogMel, seconds: float = 1.0, amplitude: float = 0.5) -> torch.Tensor:
    times_s = torch.arange(round(seconds * config.hz), dtype=torch.float64) / config.hz
    return (amplitude * torch.sin(2 * math.pi * hz * times_s)).float()


@settings(max_examples=40, deadline=None)
@given(hz=st.floats(150.0, 3500.0))
def test_a_tone_peaks_in_the_filter_that_contains_it(hz: float) -> None:
    """Where corners lie is computed here anew, from the formula of the mel scale."""
    config = LogMel(hz=8000, num_mels=40, low_hz=0.0)
    columns = config(tone(hz, config))
    most = int(columns[20:-20].mean(0).argmax())
    step = 2595 * math.log10(1 + 4000 / 700) / 41
    mel = 2595 * math.log10(1 + hz / 700)
    assert abs(mel - step * (most + 1)) < 0.75 * step, "the nearest peak, up to the window's width"


def test_a_filter_is_a_triangle_on_frequencies() -> None:
    """One filter from 0 to 4000 Hz peaks where half the mels lie: by hand at 1114 Hz."""
    config = LogMel(hz=8000, num_mels=1, low_hz=0.0)
    (triangle,) = config.filters()
    hz = torch.arange(len(triangle)) * (8000 / config.num_fft)
    peak = 700 * (math.sqrt(1 + 4000 / 700) - 1)
    assert peak == pytest.approx(1113.9, abs=0.1)
    expected = np.interp(hz.numpy(), [0, peak, 4000], [0, 1, 0])
    np.testing.assert_allclose(triangle.numpy(), expected, atol=1e-6)


def test_neighbouring_filters_add_up_to_one_between_the_outer_peaks() -> None:
    config = LogMel(hz=16000, num_mels=32, window_s=0.064)
    filters = config.filters()
    first, last = int(filters[0].argmax()), int(filters[-1].argmax())
    total = filters.sum(0)[first + 1 : last]
    torch.testing.assert_close(total, torch.ones_like(total))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_samples=st.integers(600, 3000))
def test_power_sums_to_the_windowed_mean_square(seed: int, num_samples: int) -> None:
    """Parseval, against samples alone."""
    config = LogMel(hz=8000)
    samples = np.random.default_rng(seed).normal(size=num_samples).astype(np.float32)
    power = config.power(torch.from_numpy(samples)).sum(-1).numpy()
    window = signal.get_window("hann", config.window, fftbins=True)
    half = config.window // 2
    for column in (3, len(power) // 2):
        middle = column * config.hop
        part = samples[max(0, middle - half) : middle - half + config.window]
        expected = np.sum((part * window[-len(part) :]) ** 2) / np.sum(window**2)
        if middle >= half and len(part) == config.window:
            assert power[column] == pytest.approx(expected, rel=1e-4)


def test_power_is_that_of_scipy() -> None:
    config = LogMel(hz=8000, window_s=0.032, hop_s=0.010)
    samples = np.random.default_rng(1).normal(size=4001).astype(np.float32)
    window = signal.get_window("hann", config.window, fftbins=True)
    padded = np.pad(samples, config.num_fft // 2)
    wide = np.pad(window, (config.num_fft - config.window) // 2)
    starts = range(0, len(samples), config.hop)
    _, _, found = signal.stft(
        padded,
        8000,
        wide,
        config.num_fft,
        config.num_fft - config.hop,
        boundary=None,
        padded=False,
        scaling="psd",
    )
    # SciPy's is a density in 1 / Hz; ours is the power of a bin, which is 8000 / num_fft Hz wide.
    expected = np.abs(found.T) ** 2 * (8000 / config.num_fft)
    expected[:, 1:-1] *= 2
    power = config.power(torch.from_numpy(samples)).numpy()
    assert power.shape == (len(starts), config.num_fft // 2 + 1)
    count = min(len(power), len(expected))
    assert count >= len(power) - 1
    np.testing.assert_allclose(power[:count], expected[:count], rtol=1e-3, atol=1e-8)


def test_ten_times_the_amplitude_is_a_hundred_times_the_power() -> None:
    config = LogMel(hz=8000, floor=1e-20)
    quiet, loud = (config(tone(500, config, amplitude=a))[50] for a in (0.05, 0.5))
    audible = quiet > quiet.max() - 10
    torch.testing.assert_close(
        (loud - quiet)[audible], torch.full_like(quiet, math.log(100))[audible]
    )


def test_silence_is_the_floor_and_columns_are_of_their_time() -> None:
    config = LogMel(hz=8000, floor=1e-6)
    samples = torch.zeros(2, 3, 8000)
    samples[1, 2, 4000] = 1.0
    columns = config(samples)
    assert columns.shape == (2, 3, 100, 64)
    torch.testing.assert_close(columns[0], torch.full((3, 100, 64), math.log(1e-6)))
    heard = (columns[1, 2] > math.log(1e-6) + 1e-3).any(-1).nonzero().flatten()
    assert heard.tolist() == [49, 50, 51], "within half a window of 32 ms about 0.5 s"


def test_a_batch_is_as_one_by_one() -> None:
    config = LogMel(hz=8000)
    samples = torch.randn(3, 2000, generator=torch.Generator().manual_seed(0))
    together = config(samples)
    torch.testing.assert_close(together, torch.stack([config(one) for one in samples]))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"hz": 0}, "hz=0"),
        ({"num_mels": 0}, "num_mels=0"),
        ({"hop_s": 1e-6}, "lengthen"),
        ({"low_hz": 5000.0}, "low_hz=5000.0"),
        ({"high_hz": 4001.0}, "half of hz=8000"),
        ({"num_mels": 400}, "take fewer"),
        ({"floor": float("nan")}, "floor=nan"),
    ],
)
def test_configurations_without_sense_are_refused(options: dict[str, float], told: str) -> None:
    with pytest.raises(DataError, match=told):
        LogMel(**{"hz": 8000, **options})  # type: ignore[arg-type]


def test_no_samples_are_refused() -> None:
    with pytest.raises(DataError, match="0 samples"):
        LogMel(hz=8000)(torch.zeros(0))
