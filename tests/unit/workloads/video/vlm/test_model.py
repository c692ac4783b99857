"""A BERT that the user has: transformers' own model is the oracle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForPreTraining

from core.errors import DataError
from core.seeds import seeded_globals
from tests.unit.workloads.video.vlm.models import SIZES, small_model, some_tokens
from workloads.video.text import SPECIAL, Vocabulary
from workloads.video.vlm.model import VideoLanguageModel, load_bert

MOST_POSITIONS = SIZES.max_video + SIZES.max_text + 40


def saved_bert(folder: Path, *, width: int = SIZES.width) -> BertForPreTraining:
    """A small BERT with weights of its own, saved as users have it."""
    config = BertConfig(
        vocab_size=SIZES.num_words,
        hidden_size=width,
        num_hidden_layers=SIZES.layers,
        num_attention_heads=SIZES.heads,
        intermediate_size=SIZES.feedforward,
        max_position_embeddings=MOST_POSITIONS,
    )
    with seeded_globals(3):
        bert = BertForPreTraining(config)
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
