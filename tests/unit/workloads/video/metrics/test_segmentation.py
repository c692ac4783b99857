"""Windows hold every frame, averages are means, accuracy is a share."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from workloads.video.metrics.segmentation import average_windows, frame_accuracy, window_starts


@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_windows_hold_every_frame(num_frames: int, size: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(1, size))
    starts = window_starts(num_frames, size, step)
    assert starts[0] == 0 and starts == sorted(set(starts))
    held = {frame for start in starts for frame in range(start, start + size)}
    assert held >= set(range(num_frames))
    if num_frames >= size:
        assert max(held) == num_frames - 1  # none reaches past the end
        assert all(b - a == step for a, b in itertools.pairwise(starts[:-1]))
        assert len(starts) == 1 + -(-(num_frames - size) // step)  # and there is none too many
    else:
        assert starts == [0]


def test_starts_by_hand() -> None:
    assert window_starts(64, 32, 16) == [0, 16, 32]
    assert window_starts(65, 32, 16) == [0, 16, 32, 33]
    assert window_starts(32, 32, 8) == [0]
    assert window_starts(3, 1, 1) == [0, 1, 2]


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 3), st.data())
def test_an_average_is_the_mean_of_what_windows_say(
    num_frames: int, size: int, num_labels: int, data: st.DataObject
) -> None:
    starts = window_starts(num_frames, size, data.draw(st.integers(1, size)))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    logits = generator.normal(size=(len(starts), size, num_labels)).astype(np.float32)
    found = average_windows(logits, starts, num_frames)
    assert found.shape == (num_frames, num_labels) and found.dtype == np.float64
    for frame in range(num_frames):
        said = [
            window[frame - start]
            for window, start in zip(logits, starts, strict=True)
            if start <= frame < start + size
        ]
        assert found[frame] == pytest.approx(np.mean(said, axis=0, dtype=np.float64))


@given(st.integers(1, 30), st.integers(1, 8))
def test_windows_of_one_sequence_average_to_it(num_frames: int, size: int) -> None:
    whole = np.arange(2.0 * num_frames).reshape(num_frames, 2)
    starts = window_starts(num_frames, size, max(1, size // 2))
    padded = np.concatenate([whole, np.full((size, 2), np.nan)])  # padding must not be read
    windows = np.stack([padded[start : start + size] for start in starts])
    assert average_windows(windows, starts, num_frames) == pytest.approx(whole)


def test_accuracy_with_and_without_background() -> None:
    labels = np.array([0, 0, 0, 1, 2])
    predicted = np.array([0, 0, 1, 1, 0])
    assert frame_accuracy(predicted, labels) == 3 / 5
    assert frame_accuracy(predicted, labels, background=0) == 1 / 2
    assert frame_accuracy(np.zeros(5, int), labels) == 3 / 5  # nothing but background
    assert frame_accuracy(np.zeros(5, int), labels, background=0) == 0


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="0 frames"):
        window_starts(0, 4, 2)
    for step in (0, 5):
        with pytest.raises(DataError, match="1 to 4"):
            window_starts(9, 4, step)
    with pytest.raises(DataError, match="2 starts"):
        average_windows(np.zeros((1, 4, 2)), [0, 2], 6)
    with pytest.raises(DataError, match="frame 6"):
        average_windows(np.zeros((2, 4, 2)), [0, 6], 6)
    with pytest.raises(DataError, match="frame 4 is in no window"):
        average_windows(np.zeros((1, 4, 2)), [0], 6)
    with pytest.raises(DataError, match="both"):
        frame_accuracy(np.zeros(3, int), np.zeros(4, int))
    with pytest.raises(DataError, match="background, label 0"):
        frame_accuracy(np.zeros(3, int), np.zeros(3, int), background=0)
    with pytest.raises(DataError, match="none is left;"):
        frame_accuracy(np.zeros(0, int), np.zeros(0, int))
