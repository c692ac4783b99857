"""Who may look at whom: the attention masks of one encoder for several tasks (sections 4.1, 4.5).

A sequence is ``[CLS] video [SEP] text``, the video padded to V tokens, the text segment to T tokens
of which the last valid one is a ``[SEP]`` of its own: L = 1 + V + 1 + T columns. Rows of a mask are
those who look, columns those who are looked at. Padding looks at itself alone and is never seen.
"""

from __future__ import annotations

from typing import Literal

import torch

Attention = Literal["joint", "isolated", "captioning"]


def segments(video_valid: torch.Tensor, text_valid: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Where ``[CLS]``, the video with its ``[SEP]``, and the text lie, padding left out.

    Args:
        video_valid: Bool, shape (B, V).
        text_valid: Bool, shape (B, T).

    Returns:
        Three bool tensors, shape (B, L).
    """
    count, num_video = video_valid.shape
    one = video_valid.new_ones(count, 1)
    cls = torch.cat([one, video_valid.new_zeros(count, num_video + 1 + text_valid.shape[1])], 1)
    video = torch.cat([~one, video_valid, one, torch.zeros_like(text_valid)], 1)
    text = torch.cat([video_valid.new_zeros(count, num_video + 2), text_valid], 1)
    return cls, video, text


def may_attend(
    kind: Attention, video_valid: torch.Tensor, text_valid: torch.Tensor
) -> torch.Tensor:
    """Which columns each row sees.

    ``joint``: every valid token sees every valid one. ``isolated``: ``[CLS]``, video and text see
    each their own kind alone. ``captioning``: ``[CLS]`` and video see themselves and each other,
    text sees them and of the text only what stands before it and itself.

    Args:
        kind: Which mask.
        video_valid: Bool, shape (B, V).
        text_valid: Bool, shape (B, T).

    Returns:
        Bool, shape (B, L, L).
    """
    cls, video, text = segments(video_valid, text_valid)
    if kind == "joint":
        allowed = _pairs(cls | video | text, cls | video | text)
    elif kind == "isolated":
        allowed = _pairs(cls, cls) | _pairs(video, video) | _pairs(text, text)
    else:
        length = cls.shape[1]
        before = torch.ones(length, length, dtype=torch.bool, device=cls.device).tril()
        allowed = _pairs(cls | video | text, cls | video) | (_pairs(text, text) & before)
    return allowed | torch.eye(allowed.shape[1], dtype=torch.bool, device=cls.device)


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask as BERT adds it to its scores: 0 or the least number, shape (B, 1, L, L)."""
    zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return zeros.masked_fill(~allowed, torch.finfo(dtype).min).unsqueeze(1)


def _pairs(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return rows.unsqueeze(2) & columns.unsqueeze(1)
