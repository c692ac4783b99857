"""Windows hold every frame, averages are means, accuracy is a share."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from workloads.video.metrics.segmentation import frame_accuracy, window_starts


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
    with pytest.raises(DataError, match="both"):
        frame_accuracy(np.zeros(3, int), np.zeros(4, int))
    with pytest.raises(DataError, match="background, label 0"):
        frame_accuracy(np.zeros(3, int), np.zeros(3, int), background=0)
    with pytest.raises(DataError, match="none is left;"):
        frame_accuracy(np.zeros(0, int), np.zeros(0, int))
