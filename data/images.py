"""Encoded images (PNG, JPEG, ...) to one uint8 tensor."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from core.errors import DataError
from data.splits import describe_shape

MEAN, STD = 0.5, 0.25
"""Normalisation of images whose statistics nobody published: constants, so that nothing leaks."""

_IMAGES_PER_TASK = 64
_THREADED_PIXELS = 128 * 128
"""Images of at least this size are decoded in threads; below, they only contend for the GIL."""

_GREY_MODES = frozenset({"1", "L", "LA"})
_COLOUR_MODES = frozenset({"RGB", "RGBA", "P", "CMYK", "YCbCr"})


def decode(items: Sequence[tuple[str, bytes | Path]]) -> torch.Tensor:
    """Decode images that agree in size and channels.

    Args:
        items: A name for error messages, and the encoded bytes or the file; at least one.

    Returns:
        uint8, shape (N, C, H, W); C is 1 for greyscale and 3 for all else, alpha dropped.

    Raises:
        DataError: Names the first image that is damaged, no image, of more than 8 bits, or unlike
            the first one.
    """
    shape = _decode_one(*items[0]).shape
    pixels = np.empty((len(items), *shape), dtype=np.uint8)

    def fill(start: int) -> None:
        for index, item in enumerate(items[start : start + _IMAGES_PER_TASK], start):
            image = _decode_one(*item)
            if image.shape != shape:
                raise DataError(
                    f"{item[0]} is {describe_shape(image.shape)} (channels, height, width) and "
                    f"{items[0][0]} is {describe_shape(shape)}; all images of a source must agree"
                )
            pixels[index] = image

    num_threads = os.cpu_count() if shape[1] * shape[2] >= _THREADED_PIXELS else 1
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in pool.map(fill, range(0, len(items), _IMAGES_PER_TASK)):
            pass
    return torch.from_numpy(pixels)


def _decode_one(name: str, content: bytes | Path) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            mode = image.mode
            if mode in _GREY_MODES:
                return np.asarray(image.convert("L"), dtype=np.uint8)[None]
            if mode in _COLOUR_MODES:
                return np.asarray(image.convert("RGB"), dtype=np.uint8).transpose(2, 0, 1)
    except Exception as error:  # Pillow's decoders raise whatever a damaged file provokes
        raise DataError(f"{name} is not an image that can be read: {error}") from error
    raise DataError(f"{name} has pixel mode {mode}; use images of 8 bits per channel")
