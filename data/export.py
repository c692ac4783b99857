"""Deals a data set into files, one per client, as clients of a network bring their own images."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from core.records import write_whole
from data.dataset import ImageDataset, LabelledImages


def write_shares(
    dataset: ImageDataset, clients: Sequence[npt.NDArray[np.int64]], folder: Path
) -> list[Path]:
    """Write ``folder/client-K/train.parquet`` for every client; images stay in their order.

    Args:
        dataset: Its training images are dealt.
        clients: By partition id, indices of training images.
        folder: Made where it is missing.

    Returns:
        The files, by partition id.
    """
    written = []
    for k, indices in enumerate(clients):
        path = folder / f"client-{k}" / "train.parquet"
        own = dataset.train.take(torch.from_numpy(indices))
        write_whole(path, parquet_of(own, dataset.class_names))
        written.append(path)
    return written


def parquet_of(images: LabelledImages, class_names: Sequence[str]) -> bytes:
    """A parquet file in the Hugging Face hub's layout: PNG images, labels, and their names."""
    feature = {
        "img": {"_type": "Image"},
        "label": {"names": list(class_names), "_type": "ClassLabel"},
    }
    encoded = [{"bytes": _png(image.numpy()), "path": None} for image in images.images]
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("img", image_type), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": feature}})},
    )
    table = pa.table({"img": encoded, "label": images.labels.numpy()}, schema=schema)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _png(image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    """Of uint8 (C, H, W), C = 1 or 3."""
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()
