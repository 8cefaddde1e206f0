"""Tokenizers that come as something else than tokenizer.json."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from packhorse.errors import ModelError, model_errors
from packhorse.tokenization import HuggingFaceCodec, errors

Tiny = Callable[[str], Path]
PIECES = ["▁", "h", "e", "l", "o", "he", "ll", "hell", "hello", "▁hello"]
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def chunk(field: int, data: bytes) -> bytes:
    """A protobuf field of bytes."""
    return varint(field << 3 | 2) + varint(len(data)) + data


def flag(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def piece(text: str, score: float, kind: int) -> bytes:
    scored = varint(2 << 3 | 5) + struct.pack("<f", score)
    return chunk(1, chunk(1, text.encode()) + scored + flag(3, kind))


def sentencepiece_model() -> bytes:
    """A ModelProto of SentencePiece: byte pairs with a fallback to bytes."""
    model = piece("<unk>", 0, UNKNOWN) + piece("<s>", 0, CONTROL) + piece("</s>", 0, CONTROL)
    model += b"".join(piece(f"<0x{byte:02X}>", 0, BYTE) for byte in range(256))
    model += b"".join(piece(text, -float(place), NORMAL) for place, text in enumerate(PIECES))
    model += chunk(2, flag(3, 2) + flag(35, 1))
    return model + chunk(3, chunk(1, b"identity") + flag(3, 1) + flag(4, 1) + flag(5, 1))


@pytest.fixture
def alone(tiny: Tiny) -> Path:
    """A folder whose tokenizer is a SentencePiece file alone."""
    folder = tiny("llama")
    for name in ("tokenizer.json", "chat_template.jinja"):
        (folder / name).unlink()
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    config = {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "legacy": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_sentencepiece_file_gives_the_ids_of_sentencepiece(alone: Path) -> None:
    library = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    expected = library.SentencePieceProcessor(model_file=str(alone / "tokenizer.model"))
    codec = HuggingFaceCodec(alone)
    for text in ("hello", "hello hell", "Zürich, hello"):
        assert list(codec.encode_fragment(text)) == expected.encode(text)
        assert codec.decode(codec.encode_fragment(text)) == text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.model", sentencepiece_model(), "a SentencePiece file, which needs sentencep"),
        ("tokenizer.tiktoken", b"IQ== 0\n", "a tiktoken file, which needs tiktoken"),
        ("tekken.json", b'{"vocab": []}', "in Mistral's own format"),
    ],
)
def test_a_package_that_is_not_installed(
    alone: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, message: str
) -> None:
    (alone / "tokenizer.model").unlink()
    (alone / name).write_bytes(content)
    monkeypatch.setattr(errors, "find_spec", lambda module: None)
    with (
        pytest.raises(ModelError, match=message) as caught,
        errors.tokenizer_errors(alone),
    ):
        raise ImportError("`tiktoken` is required to read a `tiktoken` file")
    assert "pip install" in caught.value.hint


def test_what_a_library_raises_becomes_one_line() -> None:
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
    for error, message in (
        (ValueError("first\nsecond"), "no: first$"),
        (ValueError("in a field:\n    it is 5"), "no: in a field: it is 5$"),
        (ValueError("a" * 5000), r"no: a{300}\.\.\.$"),
        (KeyError("name"), r"no: 'name' is not known \(KeyError\)$"),
        (RecursionError("maximum recursion depth"), "no: it is nested too deeply$"),
        (MemoryError(), "no: it does not fit into memory$"),
        (RuntimeError("mmap: Cannot allocate memory (12)"), r"no: it does not fit into .*\(mmap: "),
        (panic("called unwrap on None"), "no: called unwrap on None$"),
    ):
        with pytest.raises(ModelError, match=message), model_errors("no", "hint"):
            raise error
    for passed in (KeyboardInterrupt, SystemExit):
        with pytest.raises(passed), model_errors("no", "hint"):
            raise passed
