from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.config import DataConfig
from core.errors import DataError
from data.dataset import LabelledImages
from data.splits import Source, complete, equal_share, hold_out, labelled

NAMES = ("ant", "bee", "cat")


def numbered(counts: list[int]) -> LabelledImages:
    """Images of one pixel that holds their position, classes interleaved."""
    labels = np.concatenate([np.full(n, label) for label, n in enumerate(counts)])
    labels = np.random.default_rng(0).permutation(labels)
    pixels = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    return labelled(pixels, labels, "here")


def positions(images: LabelledImages) -> list[int]:
    return [int(pixel) for pixel in images.images.flatten()]


@given(
    counts=st.lists(st.integers(2, 60), min_size=3, max_size=3),
    fraction=st.floats(0.01, 0.89),
)
def test_hold_out_divides_each_class(counts: list[int], fraction: float) -> None:
    images = numbered(counts)
    kept, held = hold_out(images, NAMES, fraction, "test")
    assert sorted(positions(kept) + positions(held)) == list(range(len(images)))
    assert positions(kept) == sorted(positions(kept)) and positions(held) == sorted(positions(held))
    for label, count in enumerate(counts):
        taken = int((held.labels == label).sum())
        assert 1 <= taken <= count - 1
        assert abs(taken - fraction * count) <= 1


def test_hold_out_draws_by_split_and_nothing_else() -> None:
    images = numbered([50, 50, 50])
    first = positions(hold_out(images, NAMES, 0.3, "test")[1])
    assert first == positions(hold_out(images, NAMES, 0.3, "test")[1])
    assert first != positions(hold_out(images, NAMES, 0.3, "validation")[1])


def test_hold_out_refuses_a_class_of_one() -> None:
    with pytest.raises(DataError, match="'bee' is left with 1 of the 2 images needed"):
        hold_out(numbered([5, 1, 5]), NAMES, 0.2, "test")


@given(num_examples=st.integers(3, 60), seed=st.integers(0, 2**31 - 1))
def test_equal_share_is_equal(num_examples: int, seed: int) -> None:
    images = numbered([20, 30, 25])
    drawn = equal_share(images, NAMES, num_examples, seed)
    counts = torch.bincount(drawn.labels, minlength=3)
    assert len(drawn) == num_examples and int(counts.max() - counts.min()) <= 1
    assert positions(drawn) == sorted(set(positions(drawn)))
    assert positions(drawn) == positions(equal_share(images, NAMES, num_examples, seed))


def test_equal_share_draws_by_seed() -> None:
    images = numbered([20, 20, 20])
    assert positions(equal_share(images, NAMES, 9, 0)) != positions(
        equal_share(images, NAMES, 9, 1)
    )


@pytest.mark.parametrize(
    ("num_examples", "message"),
    [(2, "at least 3, one per class"), (63, "of class 'ant', which has 20; use at most 60")],
)
def test_equal_share_refuses(num_examples: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        equal_share(numbered([20, 30, 25]), NAMES, num_examples, 0)


def test_complete_keeps_the_splits_a_source_has() -> None:
    train, own = numbered([20, 20, 20]), numbered([1, 1, 1])
    source = Source(NAMES, (0.5,), (0.25,), train, validation=own, test=own)
    dataset = complete(source, DataConfig())
    assert dataset.train is train and dataset.validation is own and dataset.test is own


def test_complete_holds_test_out_before_validation() -> None:
    train = numbered([40, 40, 40])
    config = DataConfig(test_fraction=0.25, validation_fraction=0.1)
    dataset = complete(Source(NAMES, (0.5,), (0.25,), train), config)
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [81, 9, 30]
    parts = [dataset.train, dataset.validation, dataset.test]
    found = [position for part in parts for position in positions(part)]
    assert sorted(found) == list(range(120))


ONE = numbered([2, 2, 2])
WIDE = LabelledImages(torch.zeros(3, 1, 1, 2, dtype=torch.uint8), torch.tensor([0, 1, 2]))
EMPTY = ONE.take(torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source(NAMES, (0.5,), (0.25,), EMPTY), "no training image"),
        (Source(NAMES, (0.5,), (0.25,), ONE, test=EMPTY), "no test image"),
        (Source(NAMES, (0.5,), (0.25,), ONE, validation=WIDE), "validation images are 1x1x2"),
        (Source(NAMES[:2], (0.5,), (0.25,), ONE), "training image has label 2; labels must be 0"),
        (
            Source(NAMES, (0.5,), (0.25,), ONE, test=LabelledImages(ONE.images, ONE.labels - 1)),
            "test image has label -1",
        ),
        (Source((*NAMES, "dog"), (0.5,), (0.25,), ONE), "class 'dog' has no training image"),
        (Source(NAMES, (0.5,) * 3, (0.25,) * 3, ONE), "1 channels; mean"),
        (Source(NAMES, (0.5,), (0.0,), ONE), "std above 0"),
    ],
)
def test_complete_refuses_a_source_that_contradicts_itself(source: Source, message: str) -> None:
    with pytest.raises(DataError, match=message):
        complete(source, DataConfig())


def test_labelled_needs_a_label_per_image() -> None:
    with pytest.raises(DataError, match="here holds 6 images and 5 labels"):
        labelled(ONE.images, [0, 1, 2, 0, 1], "here")
