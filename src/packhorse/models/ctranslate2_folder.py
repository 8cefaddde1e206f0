"""Read the variables, vocabulary and tokenizer of a CTranslate2 folder without loading the model.

model.bin (versions 5 and 6), little-endian: u32 version, text name, u32 revision, u32 count, then
variables: text name, u8 rank, u32 dimensions, u8 type, u32 bytes, data. A text is u16 length and
bytes ending in NUL. (ctranslate2/specs/model_spec.py, ModelSpec._serialize)
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from packhorse.errors import ModelError
from packhorse.models.checkpoint import VOCABULARIES, tokenizer_files
from packhorse.models.recognize import DECODER_ONLY, require_tokenizer_content
from packhorse.storage.json_files import decode, read_json, read_object

TOKENIZER = "tokenizer"
NOTE = "quantization.json"
"""File that names the method by which a model was prepared for int8."""
DECODER = "TransformerDecoderSpec"
_TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
_TYPE_CODES = {"int8": "b", "int16": "<h", "int32": "<i", "float32": "<f"}
_OUTSIDE = ("decoder/embeddings/", "decoder/position_encodings/", "decoder/projection/")
_VERSIONS = (5, 6)
_SMALL_BYTES = 8
_AGAIN = "copy, fetch or convert it again"


@dataclass(frozen=True, slots=True)
class Variable:
    """A weight or setting; `value` is that of a scalar, None for larger variables."""

    shape: tuple[int, ...]
    dtype: str
    value: int | float | None


def read_variables(folder: Path) -> Mapping[str, Variable]:
    """Return the variables of a decoder's model.bin by name, without their data.

    Raises:
        ModelError: The file is truncated, has another format, or holds no decoder.
    """
    path = folder / "model.bin"
    with path.open("rb") as file:
        try:
            (version,) = _read(file, "<I")
            name = _text(file) if version in _VERSIONS else ""
            if version not in _VERSIONS:
                raise ModelError(
                    f"{path} has format {version}, and packhorse reads {_VERSIONS[-1]}",
                    "convert the model again, or give its Hugging Face folder",
                )
            if name != DECODER:
                raise ModelError(
                    f"{folder} holds a {name}, not a language model that continues text",
                    DECODER_ONLY,
                )
            _revision, count = _read(file, "<II")
            variables = dict(_variable(file) for _ in range(count))
            (aliases,) = _read(file, "<I")
            for _ in range(aliases):
                alias, original = _text(file), _text(file)
                variables[alias] = variables[original]
        except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
            raise ModelError(f"{path} is truncated or damaged", _AGAIN) from error
    return variables


def stored_quantization(variables: Mapping[str, Variable]) -> str:
    """Return the quantization of the weights, by CTranslate2's names."""
    matrices = {v.dtype for name, v in variables.items() if name.endswith("/weight")}
    rest = {v.dtype for name, v in variables.items() if name.endswith(("/gamma", "/bias"))}
    if "int8" in matrices:
        others = (rest & {"float16", "bfloat16"}) or {"float32"}
        return f"int8_{others.pop()}"
    for dtype in ("int16", "float16", "bfloat16", "float32"):
        if dtype in matrices:
            return dtype
    return "as stored"


def tokenizer_folder(folder: Path) -> Path:
    """Return the folder of the tokenizer: `tokenizer/` or the folder itself; ModelError if none."""
    for candidate in (folder / TOKENIZER, folder):
        if VOCABULARIES & set(tokenizer_files(candidate)):
            return candidate
    raise ModelError(
        f"{folder} has no tokenizer, only CTranslate2's weights and vocabulary",
        "copy tokenizer.json, tokenizer_config.json, generation_config.json, chat_template.jinja "
        "and config.json (as hf_config.json) of the original model into it",
    )


def deciding_files(folder: Path) -> list[str]:
    """Return all files that affect results, relative to the folder, sorted."""
    own = ["model.bin", "config.json", "hf_config.json", "generation_config.json", NOTE]
    own += [path.name for path in folder.glob("vocabulary.*")]
    where = tokenizer_folder(folder)
    names = {folder / name for name in own} | {where / name for name in tokenizer_files(where)}
    if where != folder:
        names |= {where / "config.json", where / "generation_config.json"}
    return sorted(path.relative_to(folder).as_posix() for path in names if path.is_file())


def vocabulary(folder: Path) -> list[str]:
    """Return tokens by id, from vocabulary.json or vocabulary.txt."""
    listed = folder / "vocabulary.json"
    if listed.is_file():
        try:
            tokens: list[str] = decode(list[str], read_json(listed), "the vocabulary")
        except ValueError as error:
            raise ModelError(f"{listed} is damaged: {error}", _AGAIN) from error
        return tokens
    try:
        return (folder / "vocabulary.txt").read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ModelError(f"{folder / 'vocabulary.txt'} is not UTF-8", _AGAIN) from error


def require_readable(folder: Path) -> None:
    """Raise ModelError if the config, vocabulary or tokenizer is invalid."""
    vocabulary(folder)
    where = tokenizer_folder(folder)
    for path in (folder / "config.json", folder / "hf_config.json", where / "config.json"):
        if path.is_file():  # a tokenizer reads the config beside it
            read_object(path)
    for name in tokenizer_files(where):
        require_tokenizer_content(where / name)


def smallest_window(variables: Mapping[str, Variable]) -> int:
    """Return the smallest attention window of any layer (tokens), 0 if all are unlimited."""
    held = [each.value for name, each in variables.items() if name.endswith("/sliding_window")]
    return min((int(value) for value in held if value and value > 0), default=0)


def layer_elements(variables: Mapping[str, Variable]) -> int:
    """Return the number of elements in all weights but embeddings, positions and head."""
    return sum(
        math.prod(each.shape)
        for name, each in variables.items()
        if each.shape and not name.startswith(_OUTSIDE) and not name.endswith("_scale")
    )


def layer_count(variables: Mapping[str, Variable]) -> int:
    numbers = {match[1] for name in variables if (match := re.match(r"decoder/layer_(\d+)/", name))}
    return len(numbers)


def _variable(file: BinaryIO) -> tuple[str, Variable]:
    name = _text(file)
    (rank,) = _read(file, "B")
    shape = _read(file, f"<{rank}I")
    kind, size = _read(file, "<BI")
    dtype = _TYPES[kind]
    data = file.read(size) if size <= _SMALL_BYTES else _skip(file, size)
    value = None
    if not shape and dtype in _TYPE_CODES:
        (value,) = struct.unpack(_TYPE_CODES[dtype], data)
    return name, Variable(shape, dtype, value)


def _skip(file: BinaryIO, size: int) -> bytes:
    """Skip data; its last byte is read, so that truncation is noticed."""
    file.seek(size - 1, 1)
    if not file.read(1):
        raise struct.error("the file ends in a variable")
    return b""


def _text(file: BinaryIO) -> str:
    (length,) = _read(file, "<H")
    data = file.read(length)
    if len(data) != length or not data.endswith(b"\0"):
        raise struct.error("the file ends in a text")
    return data[:-1].decode()


def _read(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))
