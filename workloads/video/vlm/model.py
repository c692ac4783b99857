"""The encoder: video tokens through an MLP and words through an embedding into one BERT."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from core.errors import DataError
from workloads.video.vlm.attention import Attention, additive, may_attend


@dataclass(frozen=True, slots=True)
class Tokens:
    """A batch of clips with text, as the encoder reads them.

    Attributes:
        features: Frozen features of each second of video (f), float32, shape (B, V, D).
        video_valid: Which of them are there, bool, shape (B, V).
        words: Ids of the text segment, its ``[SEP]`` included, int64, shape (B, T).
        text_valid: Which of them are there, bool, shape (B, T).
    """

    features: torch.Tensor
    video_valid: torch.Tensor
    words: torch.Tensor
    text_valid: torch.Tensor


@dataclass(frozen=True, slots=True)
class EncoderSizes:
    """Sizes of the encoder.

    Attributes:
        num_words: Size of the vocabulary (|D|).
        feature_width: Width of a frozen feature (D).
        width: Width of a hidden state (d).
        layers: Transformer blocks.
        heads: Attention heads of each.
        feedforward: Hidden units of each block's feed-forward part.
        dropout: Of hidden states and attention.
        max_video: Most video tokens of a sequence.
        max_text: Most tokens of a text, without its ``[SEP]``.
    """

    num_words: int
    feature_width: int
    width: int
    layers: int
    heads: int
    feedforward: int
    dropout: float
    max_video: int
    max_text: int


class VideoLanguageModel(nn.Module):
    """BERT over video and text (equations 1 to 4), with the heads of the tasks that need one.

    ``video`` is the MLP of equation 1, ``encoder`` BERT, ``lm`` the head of equation 4 that both
    modalities share, tied to BERT's word embeddings. A text's positions start behind the longest
    video, however long the video before it is.
    """

    def __init__(
        self,
        sizes: EncoderSizes,
        *,
        cls: int,
        sep: int,
        predicts: bool = True,
        biased: bool = True,
        segments: int = 0,
    ) -> None:
        """Draw all weights from torch's global generator.

        Args:
            sizes: Of the encoder.
            cls: Id of ``[CLS]`` in the vocabulary.
            sep: Id of ``[SEP]``.
            predicts: Whether a task predicts tokens; else the head of equation 4 is left out.
            biased: Whether one of them has a bias for each word; else that is left out.
            segments: Labels of action segmentation; 0 leaves its classifier out.
        """
        super().__init__()
        from transformers import BertConfig, BertModel
        from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

        self.sizes, self._cls, self._sep = sizes, cls, sep
        config = BertConfig(
            vocab_size=sizes.num_words,
            hidden_size=sizes.width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            intermediate_size=sizes.feedforward,
            hidden_dropout_prob=sizes.dropout,
            attention_probs_dropout_prob=sizes.dropout,
            max_position_embeddings=sizes.max_video + sizes.max_text + 3,
            type_vocab_size=2,
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.video = nn.Sequential(
            nn.Linear(sizes.feature_width, sizes.width),
            nn.GELU(),
            nn.LayerNorm(sizes.width),
            nn.Linear(sizes.width, sizes.width),
        )
        transform = BertPredictionHeadTransform(config)  # type: ignore[no-untyped-call]
        self.lm = nn.ModuleDict({"transform": transform} if predicts else {})
        bias = nn.Parameter(torch.zeros(sizes.num_words)) if predicts and biased else None
        self.lm.register_parameter("bias", bias)
        heads = {"segmentation": nn.Linear(sizes.width, segments)} if segments else {}
        self.heads = nn.ModuleDict(heads)

    @property
    def words(self) -> torch.Tensor:
        """Embeddings of all words (D), shape (|D|, d)."""
        return self.encoder.embeddings.word_embeddings.weight

    @property
    def vocabulary_bias(self) -> torch.Tensor | None:
        """Bias of each word's logit, shape (|D|,), where a task has one."""
        return cast("torch.Tensor | None", self.lm.bias)

    def video_tokens(self, features: torch.Tensor) -> torch.Tensor:
        """Video tokens (x_v, equation 1), shape (..., d), of features, shape (..., D)."""
        return cast(torch.Tensor, self.video(features))

    def states(
        self, tokens: Tokens, kind: Attention, *, seen: Tokens | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states of the last layer (h, equation 3).

        Args:
            tokens: What is told apart as video and text.
            kind: The attention mask.
            seen: What the encoder sees in its place, where tokens are masked; of the same form.

        Returns:
            Those of the video and its ``[SEP]``, shape (B, V + 1, d), and those of the text
            segment, shape (B, T, d).
        """
        shown = tokens if seen is None else seen
        allowed = may_attend(kind, tokens.video_valid, tokens.text_valid)
        num_video, num_text = tokens.features.shape[1], tokens.words.shape[1]
        embedded = self._sequence(shown)
        hidden = self._encode(
            embedded, allowed, self._positions(num_video, num_text), num_video + 2
        )
        return hidden[:, 1 : num_video + 2], hidden[:, num_video + 2 :]

    def video_states(self, features: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Hidden states of videos alone, each with its ``[SEP]``, shape (B, V + 1, d).

        They equal those of `states` with isolated attention, whatever the text.
        """
        count, num_video = valid.shape
        sep = self._special(self._sep, count)
        embedded = torch.cat([self.video_tokens(features), sep], 1)
        seen = torch.cat([valid, valid.new_ones(count, 1)], 1)
        positions = self._positions(num_video, 0)[1:]
        return self._encode(embedded, _own(seen), positions, num_video + 1)

    def text_states(self, words: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Hidden states of texts alone, shape (B, T, d); likewise."""
        embedded = nn.functional.embedding(words, self.words)
        positions = self._positions(0, words.shape[1])[2:]
        return self._encode(embedded, _own(valid), positions, 0)

    def predictions(self, hidden: torch.Tensor) -> torch.Tensor:
        """Predicted embeddings (e, equation 4) of hidden states, both of shape (..., d)."""
        return cast(torch.Tensor, self.lm["transform"](hidden))

    def word_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits over the vocabulary, shape (..., |D|)."""
        return nn.functional.linear(self.predictions(hidden), self.words, self.vocabulary_bias)

    def _special(self, word: int, count: int) -> torch.Tensor:
        return self.words[word].expand(count, 1, -1)

    def _sequence(self, tokens: Tokens) -> torch.Tensor:
        count = len(tokens.words)
        return torch.cat(
            [
                self._special(self._cls, count),
                self.video_tokens(tokens.features),
                self._special(self._sep, count),
                nn.functional.embedding(tokens.words, self.words),
            ],
            1,
        )

    def _positions(self, num_video: int, num_text: int) -> torch.Tensor:
        """``[CLS]`` 0, the video from 1, its ``[SEP]`` max_video + 1 and the text behind it."""
        sizes = self.sizes
        assert num_video <= sizes.max_video and num_text <= sizes.max_text + 1
        behind = torch.arange(num_text + 1) + sizes.max_video + 1
        return torch.cat([torch.arange(num_video + 1), behind]).to(self.words.device)

    def _encode(
        self,
        embedded: torch.Tensor,
        allowed: torch.Tensor,
        positions: torch.Tensor,
        first_text: int,
    ) -> torch.Tensor:
        count, length = embedded.shape[:2]
        types = (torch.arange(length, device=embedded.device) >= first_text).long()
        found = self.encoder(
            inputs_embeds=embedded,
            attention_mask=additive(allowed, embedded.dtype),
            position_ids=positions.expand(count, -1),
            token_type_ids=types.expand(count, -1),
        )
        return cast(torch.Tensor, found.last_hidden_state)


def _own(valid: torch.Tensor) -> torch.Tensor:
    """Valid tokens see valid tokens; padding sees itself; shape (B, L, L)."""
    eye = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    return (valid.unsqueeze(2) & valid.unsqueeze(1)) | eye


def mean_states(hidden: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean over valid tokens, shape (B, d), of states of shape (B, L, d)."""
    weights = valid.to(hidden.dtype).unsqueeze(2)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def with_sep(valid: torch.Tensor) -> torch.Tensor:
    """`valid` of videos, shape (B, V), with their ``[SEP]`` behind, shape (B, V + 1)."""
    return torch.cat([valid, valid.new_ones(len(valid), 1)], 1)


FILLED_BY_BERT = ("encoder", "lm")
"""Parts of the model that `load_bert` fills."""


_NOT_IN_SHAPES = ("num_attention_heads", "hidden_act", "layer_norm_eps")
"""What else of a BERT's configuration changes what its weights compute."""


def load_bert(model: VideoLanguageModel, folder: Path) -> None:
    """Load BERT's weights and prediction head from a folder that the user has; nothing is fetched.

    Raises:
        DataError: There are none, or they are damaged, lack what the model needs, or have another
            form.
    """
    from transformers import BertForPreTraining

    # Its annotations do not tell that it gives a report, too.
    load: Callable[..., tuple[Any, Mapping[str, Any]]] = BertForPreTraining.from_pretrained  # type: ignore[assignment]
    try:
        found, report = load(folder, local_files_only=True, output_loading_info=True)
        _refuse_other_bert(model, found.config, report["missing_keys"])
        theirs = found.state_dict()
        state = {
            name.removeprefix("bert."): value
            for name, value in theirs.items()
            if name.startswith("bert.") and not name.startswith(_POOLER)
        }
        positions = "embeddings.position_embeddings.weight"
        state[positions] = state[positions][: len(model.encoder.state_dict()[positions])]
        model.encoder.load_state_dict(state)
        transform = {
            n.removeprefix(_TRANSFORM): v for n, v in theirs.items() if n.startswith(_TRANSFORM)
        }
        for head in model.lm.values():
            head.load_state_dict(transform)
        if model.vocabulary_bias is not None:
            with torch.no_grad():
                model.vocabulary_bias.copy_(theirs[_BIAS])
    except Exception as error:  # of a damaged file, readers of three formats raise what they meet
        raise DataError(
            f"vlm.bert={folder}: its weights do not load: {error}; give a folder that BERT was "
            "saved to, and the sizes it has as vlm.width, vlm.layers, vlm.heads, vlm.feedforward"
        ) from error


_POOLER, _TRANSFORM, _BIAS = "bert.pooler.", "cls.predictions.transform.", "cls.predictions.bias"


def _refuse_other_bert(model: VideoLanguageModel, config: Any, missing: Collection[str]) -> None:
    """Refuse weights that transformers would draw, or that would compute something else here.

    Raises:
        ValueError: Says what is missing or differs.
    """
    needed = [
        name
        for name in sorted(missing)
        if (name.startswith("bert.") and not name.startswith(_POOLER))
        or (name.startswith(_TRANSFORM) and len(model.lm))
        or (name == _BIAS and model.vocabulary_bias is not None)
    ]
    if needed:
        raise ValueError(
            f"the file lacks {len(needed)} tensors that are needed, such as {needed[0]}"
        )
    for name in _NOT_IN_SHAPES:
        has, wanted = getattr(config, name), getattr(model.encoder.config, name)
        if has != wanted:
            raise ValueError(f"its {name} is {has}, and here it is {wanted}")
    has, wanted = config.max_position_embeddings, model.encoder.config.max_position_embeddings
    if has < wanted:
        raise ValueError(
            f"it has {has} positions, and vlm.max-video, vlm.max-text and three special tokens "
            f"take {wanted}"
        )


def padded(rows: Sequence[torch.Tensor], *, fill: float = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences of tensors, shape (n_i, ...), as one of shape (B, max n_i, ...), and what is valid.

    At least one column is given, so that no length is zero.
    """
    longest = max([1, *(len(row) for row in rows)])
    out = rows[0].new_full((len(rows), longest, *rows[0].shape[1:]), fill)
    valid = torch.zeros(len(rows), longest, dtype=torch.bool, device=rows[0].device)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
        valid[i, : len(row)] = True
    return out, valid
