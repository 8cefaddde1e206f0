"""Layouts of tiny folders, pooling by hand, and the real MiniLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from packhorse.embeddings import SentenceEncoder, embed, read_layout
from packhorse.errors import ModelError
from tiny_encoders import MODULES, WORDS, tiny_encoder, write_modules


def states(folder: Path, ids: list[int]) -> npt.NDArray[np.float32]:
    """The model's last hidden states of one unpadded text, (tokens, d)."""
    import torch
    from transformers import BertModel

    with torch.inference_mode():
        output = BertModel.from_pretrained(folder)(torch.tensor([ids]))
    return np.asarray(output.last_hidden_state[0])


@pytest.mark.parametrize(
    ("pooling", "mode"),
    [
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_pooling_by_hand(tmp_path: Path, pooling: dict[str, Any], mode: str) -> None:
    folder = tiny_encoder(tmp_path / "model", **pooling)
    vector = embed(["the horse carries"], folder)[0]
    hidden = states(folder, [1, 3, 4, 5, 2])
    expected = hidden.mean(axis=0) if mode == "mean" else hidden[0]
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)


def test_a_vector_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    encoder = SentenceEncoder(tiny_encoder(tmp_path / "model"))
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(0, 20))) for _ in range(70)]
    together = encoder.embed(texts)
    assert together.dtype == np.float32
    assert together.shape == (70, 32)
    alone = np.concatenate([encoder.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)


def test_no_texts_and_empty_texts(tmp_path: Path) -> None:
    encoder = SentenceEncoder(tiny_encoder(tmp_path / "model"))
    assert encoder.embed([]).shape == (0, 32)
    assert np.isfinite(encoder.embed(["", " \n", "the"])).all()


def test_texts_are_cut_at_the_limit_of_the_folder(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "model")
    long = "the horse carries a load " * 20
    encoder = SentenceEncoder(folder)
    assert encoder.max_tokens == 16
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')
    shorter = SentenceEncoder(folder)
    assert shorter.max_tokens == 5
    np.testing.assert_allclose(shorter.embed([long]), shorter.embed(["the horse carries"]))
    assert not np.allclose(encoder.embed([long]), shorter.embed([long]), atol=1e-3)


def test_prompt_and_lower_case_of_the_folder(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "model")
    plain = embed(["a the horse"], folder)
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    (folder / "config_sentence_transformers.json").write_text(
        '{"prompts": {"query": "a ", "other": "b "}, "default_prompt_name": "query"}'
    )
    np.testing.assert_allclose(embed(["THE horse"], folder), plain, atol=1e-6)


@pytest.mark.parametrize(
    ("kinds", "pooling", "said"),
    [
        (("Transformer", "Pooling", "Dense", "Normalize"), {}, "Dense"),
        (("WordEmbeddings", "Pooling"), {}, "WordEmbeddings"),
        (("Transformer",), {}, "Transformer"),
        (MODULES, {"pooling_mode_max_tokens": True}, "max"),
        (MODULES, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "mean"),
        (MODULES, {"pooling_mode": "lasttoken"}, "lasttoken"),
        (MODULES, {"word_embedding_dimension": 8}, "nothing"),
    ],
)
def test_other_layouts_are_refused(
    tmp_path: Path, kinds: tuple[str, ...], pooling: dict[str, Any], said: str
) -> None:
    write_modules(tmp_path, kinds, **pooling)
    with pytest.raises(ModelError, match=said) as raised:
        read_layout(tmp_path)
    assert raised.value.hint


@pytest.mark.parametrize("text", [None, "no json", '{"type": "Transformer"}', "[1, 2]"])
def test_a_folder_of_another_kind_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "modules.json").write_text(text)
    with pytest.raises(ModelError, match=r"modules\.json"):
        embed(["a"], tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("modules.json", "[" * 100_000, "nested more than 64"),
        ("modules.json", '[{"type": 5}]', r"modules\.json\[0\]\.type must be a text"),
        (
            "modules.json",
            '[{"type": "a.Transformer"}, {"type": "a.Pooling", "path": "../x"}]',
            "names a folder outside its own",
        ),
        ("sentence_bert_config.json", "[]", "must be an object"),
        ("sentence_bert_config.json", '{"max_seq_length": "long"}', "must be a whole number"),
        ("sentence_bert_config.json", '{"max_seq_length": -5}', "cuts texts at -5 tokens"),
        ("config_sentence_transformers.json", '{"prompts": ["query: "]}', "must be an object"),
        ("1_Pooling/config.json", "[1]", "must be an object"),
        ("config.json", '{"model_type": ["bert"]}', "model_type must be a text"),
        ("config.json", '{"num_hidden_layers": 1000000000}', "num_hidden_layers must be"),
        ("config.json", "{", "is not JSON"),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        ("tokenizer.json", "{}", "cannot load the sentence model"),
        ("model.safetensors", "<!doctype html>", "is a web page"),
    ],
)
def test_files_that_lie(tmp_path: Path, name: str, text: str, message: str) -> None:
    folder = tiny_encoder(tmp_path / "model")
    (folder / name).write_text(text)
    with pytest.raises(ModelError, match=message) as raised:
        SentenceEncoder(folder)
    assert "\n" not in str(raised.value)
    assert raised.value.hint


def test_broken_weights_are_one_line(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="is truncated or no safetensors file") as raised:
        SentenceEncoder(folder)
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def minilm() -> SentenceEncoder:
    from packhorse.models import prepare_embedding_model

    return SentenceEncoder(prepare_embedding_model("all-minilm-l6-v2"))


@pytest.mark.parametrize(
    ("left", "right", "low", "high"),
    [
        ("The cat sat on the mat.", "A cat was sitting on the mat.", 0.8, 1.0),
        ("Paris is the capital of France.", "The capital of France is Paris.", 0.8, 1.0),
        ("The cat sat on the mat.", "Interest rates rose by half a percent.", -0.3, 0.3),
        ("How do I reset my password?", "Jupiter has dozens of moons.", -0.3, 0.3),
    ],
)
def test_minilm_knows_meaning(
    minilm: SentenceEncoder, left: str, right: str, low: float, high: float
) -> None:
    one, other = minilm.embed([left, right])
    assert one.shape == (384,)
    assert low < float(one @ other) <= high
