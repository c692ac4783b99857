"""A BERT that the user has: transformers' own model is the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForPreTraining, BertModel

from core.errors import DataError
from core.seeds import seeded_globals
from tests.unit.workloads.video.vlm.models import SIZES, small_model, some_tokens
from workloads.video.text import SPECIAL, Vocabulary
from workloads.video.vlm.model import VideoLanguageModel, load_bert

MOST_POSITIONS = SIZES.max_video + SIZES.max_text + 40


def saved_bert(
    folder: Path,
    *,
    width: int = SIZES.width,
    kind: type[Any] = BertForPreTraining,
    positions: int = MOST_POSITIONS,
) -> Any:
    """A small BERT with weights of its own, saved as users have it."""
    config = BertConfig(
        vocab_size=SIZES.num_words,
        hidden_size=width,
        num_hidden_layers=SIZES.layers,
        num_attention_heads=SIZES.heads,
        intermediate_size=SIZES.feedforward,
        max_position_embeddings=positions,
    )
    with seeded_globals(3):
        bert = kind(config)
        for parameter in bert.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    bert.save_pretrained(folder)
    bert.train(False)
    return bert


def test_words_are_told_as_by_the_bert_that_was_loaded(tmp_path: Path) -> None:
    bert, model = saved_bert(tmp_path), small_model()
    load_bert(model, tmp_path)
    tokens = some_tokens()
    with torch.no_grad():
        ours = model.word_logits(model.text_states(tokens.words, tokens.text_valid))
        theirs = bert(
            input_ids=tokens.words,
            attention_mask=tokens.text_valid.long(),
            token_type_ids=torch.ones_like(tokens.words),
            position_ids=SIZES.max_video + 2 + torch.arange(tokens.words.shape[1]).unsqueeze(0),
        ).prediction_logits
    torch.testing.assert_close(
        ours[tokens.text_valid], theirs[tokens.text_valid], rtol=1e-4, atol=1e-4
    )


def test_a_bert_of_other_sizes_is_refused_with_the_keys_to_change(tmp_path: Path) -> None:
    saved_bert(tmp_path, width=SIZES.width * 2)
    with pytest.raises(DataError, match=r"vlm\.width"):
        load_bert(small_model(), tmp_path)


def test_a_bert_without_its_head_is_refused_where_a_task_tells_words(tmp_path: Path) -> None:
    """Else transformers would draw the head."""
    bert = saved_bert(tmp_path, kind=BertModel)
    with pytest.raises(DataError, match=r"lacks 5 tensors .* such as cls\.predictions\.bias"):
        load_bert(small_model(), tmp_path)
    with seeded_globals(0):
        bare = VideoLanguageModel(SIZES, cls=2, sep=3, predicts=False)
    load_bert(bare, tmp_path)
    name = "encoder.layer.0.attention.self.query.weight"
    assert torch.equal(bare.encoder.state_dict()[name], bert.state_dict()[name])


def test_weights_that_the_file_lacks_are_refused_and_not_drawn(tmp_path: Path) -> None:
    saved_bert(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    missing = next(name for name in tensors if "layer.1.output.dense.weight" in name)
    save_file({n: v for n, v in tensors.items() if n != missing}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=f"lacks 1 tensors .* such as {missing}"):
        load_bert(small_model(), tmp_path)
    # Another kind of model has all of its tensors by other names.
    theirs = {name.replace("bert.", "roberta."): value for name, value in tensors.items()}
    save_file(theirs, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"such as bert\.embeddings"):
        load_bert(small_model(), tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_attention_heads", 4), ("hidden_act", "relu"), ("layer_norm_eps", 1e-3)],
)
def test_a_bert_that_computes_something_else_is_refused(
    key: str, value: object, tmp_path: Path
) -> None:
    """Shapes do not tell: its weights would load."""
    config = saved_bert(tmp_path).config
    config.update({key: value})
    config.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=f"its {key} is {value}, and here it is"):
        load_bert(small_model(), tmp_path)


def test_a_bert_of_too_few_positions_is_refused_with_the_keys_to_change(tmp_path: Path) -> None:
    saved_bert(tmp_path, positions=8)
    with pytest.raises(DataError, match=r"8 positions, and vlm\.max-video, vlm\.max-text"):
        load_bert(small_model(), tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"no tensors"),
        ("pytorch_model.bin", b"no tensors"),
        ("config.json", b"{"),
        ("config.json", b"[]"),
    ],
)
def test_a_damaged_bert_is_refused(file: str, content: bytes, tmp_path: Path) -> None:
    saved_bert(tmp_path)
    if file == "pytorch_model.bin":
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=r"vlm\.bert=.*: its weights do not load"):
        load_bert(small_model(), tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer.json", b"[]"),
        ("vocab.txt", b"\xff\xfe"),
        ("vocab.txt", b"a\nb\n"),
    ],
)
def test_a_damaged_vocabulary_is_refused(file: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match="vocabulary"):
        Vocabulary.of_folder(tmp_path)


@pytest.mark.parametrize(("told", "ids"), [({}, [6, 5]), ({"do_lower_case": False}, [7, 5])])
def test_a_vocabulary_that_knows_capitals_keeps_them(
    told: dict[str, bool], ids: list[int], tmp_path: Path
) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "square", "red", "Red"]) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    assert Vocabulary.of_folder(tmp_path).ids("Red square") == ids


def test_a_folder_without_a_bert_is_refused_and_nothing_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="BERT was saved to"):
        load_bert(small_model(), tmp_path)


def test_its_vocabulary_comes_with_it(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "a", "red", "square", "##s"]) + "\n")
    vocabulary = Vocabulary.of_folder(tmp_path)
    assert vocabulary.num_tokens == len(SPECIAL) + 4
    assert vocabulary.ids("A red squares") == [5, 6, 7, 8]
    assert vocabulary.text([5, 6, 7, 8, vocabulary.sep]) == "a red squares"


def test_heads_that_no_task_needs_are_left_out() -> None:
    with seeded_globals(0):
        bare = VideoLanguageModel(SIZES, cls=2, sep=3, predicts=False)
        unbiased = VideoLanguageModel(SIZES, cls=2, sep=3, biased=False)
    assert not [name for name in bare.state_dict() if name.startswith(("lm.", "heads."))]
    assert unbiased.vocabulary_bias is None
    assert "lm.transform.dense.weight" in unbiased.state_dict()
