r"""JSONL, OpenAI batch lines and text: files of one row per line.

Bytes are split at b"\n" and nowhere else, so U+2028, U+0085, form feeds or a lone "\r" inside a row
never split it. One "\r" before the line end is dropped, and so is a byte order mark at the start.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from packhorse.config import InputConfig
from packhorse.data import NumberId, id_decoder
from packhorse.errors import ConfigError
from packhorse.inputs.columns import find_prompt_column
from packhorse.inputs.foreign_content import input_name
from packhorse.inputs.rows import Record, Report, RowLayout
from packhorse.inputs.template import Template
from packhorse.openai_format import batch_lines
from packhorse.openai_format.row_errors import RowError, format_value
from packhorse.storage.compressed_files import open_content

MAX_LINE_BYTES = 64 * 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
TEXT_FIELDS = ("prompt", "text")

_CHUNK_BYTES = 2**20


def open_jsonl(
    path: Path, template: Template | None, config: InputConfig, report: Report
) -> tuple[RowLayout, Iterator[Record]]:
    """Return the layout of JSONL rows, which name their own fields, and the records."""
    id_field = config.id_column or "id"
    layout = RowLayout(
        template, config.prompt_column, id_field=id_field, messages_format=config.messages_format
    )
    return layout, read_objects(path, id_field)


def open_batch_lines(
    path: Path, template: Template | None, config: InputConfig, report: Report
) -> tuple[RowLayout, Iterator[Record]]:
    """Return the layout of OpenAI batch lines and the records.

    Raises:
        ConfigError: For a template, a prompt column or an id column.
    """
    if template is not None or config.prompt_column is not None:
        raise ConfigError(
            f"{input_name(path)} contains OpenAI batch lines, which have their own prompts",
            "leave the template and the prompt column out",
        )
    if config.id_column is not None:
        raise ConfigError(
            f"{input_name(path)} contains OpenAI batch lines, whose ids are in custom_id",
            "leave the id column out",
        )
    read_envelope = partial(
        batch_lines.read_body, models=config.served_model_name, endpoint=config.batch_endpoint
    )
    layout = RowLayout(id_field=batch_lines.ID_FIELD, read_envelope=read_envelope, bare=True)
    return layout, read_objects(path, batch_lines.ID_FIELD)


def open_text(
    path: Path, template: Template | None, config: InputConfig, report: Report
) -> tuple[RowLayout, Iterator[Record]]:
    """Return the layout of text lines, each a prompt named as in TEXT_FIELDS, and the records.

    Raises:
        InputError: For a template or a prompt column with another name.
        ConfigError: For an id column.
    """
    if config.id_column is not None:
        raise ConfigError(
            f"{input_name(path)} is text, whose lines have no ids", "leave the id column out"
        )
    layout = find_prompt_column(path, TEXT_FIELDS, template, config.prompt_column, has_header=False)
    return replace(layout, columns=layout.prompt_names or ("prompt",)), _read(path, _parse_text)


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank.

    Attributes:
        number: 1-based, blank lines counted.
        raw: Its bytes without the line end; if it is too long, a digest of them.
        too_long: Whether it has more than MAX_LINE_BYTES.
    """

    number: int
    raw: bytes
    too_long: bool = False


def iterate_lines(file: BinaryIO) -> Iterator[Line]:
    """Yield the lines of `file` that are not blank, at most MAX_LINE_BYTES of one in memory."""
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            yield Line(number, _digest_of_rest(file, raw), too_long=True)
            continue
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        if number == 1:
            raw = raw.removeprefix(BYTE_ORDER_MARK)
        if raw.strip():
            yield Line(number, raw)


def read_objects(path: Path, id_field: str = "id") -> Iterator[Record]:
    """Yield a record per JSON object; the number in `id_field` keeps its exact digits."""
    return _read(path, partial(_parse_object, id_field))


def _read(path: Path, parse: Callable[[bytes], Mapping[str, Any]]) -> Iterator[Record]:
    with open_content(path, _CHUNK_BYTES) as file:
        for line in iterate_lines(file):
            read = _refuse_too_long if line.too_long else partial(parse, line.raw)
            yield Record(line.number, f"line-{line.number}", read, line.raw)


def _parse_text(raw: bytes) -> Mapping[str, Any]:
    return dict.fromkeys(TEXT_FIELDS, _decode(raw))


def _parse_object(id_field: str, raw: bytes) -> Mapping[str, Any]:
    text = _decode(raw)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RowError(
            "malformed_json",
            f"malformed JSON at column {error.pos + 1}: {error.msg}; correct or remove the line",
        ) from None
    except RecursionError:
        raise RowError(
            "malformed_json", "malformed JSON: it is nested too deeply; flatten it"
        ) from None
    except ValueError:  # Python's limit of digits of an integer
        raise RowError(
            "malformed_json", "malformed JSON: a number has thousands of digits; shorten it"
        ) from None
    if not isinstance(value, dict):
        raise RowError(
            "not_an_object",
            f'the line must be an object such as {{"prompt": "..."}}, got {format_value(value)}',
        )
    row_id = value.get(id_field)
    # Most ids are text or integers, whose digits are exact already.
    if isinstance(row_id, float) or (row_id == 0 and not isinstance(row_id, (str, bool))):
        value[id_field] = _exact(text, id_field, row_id)
    return value


def _exact(text: str, name: str, number: float) -> Any:
    """Return a number of an object with its exact digits; NaN and infinity, not JSON, unchanged."""
    exact = id_decoder.decode(text)[name]
    return exact if isinstance(exact, (NumberId, int)) else number


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError(
            "invalid_utf8",
            f"byte {error.start + 1} of the line (0x{raw[error.start]:02x}) is not UTF-8; "
            "convert the file to UTF-8",
        ) from None


def _refuse_too_long() -> Mapping[str, Any]:
    raise line_too_long_error()


def line_too_long_error() -> RowError:
    return RowError(
        "line_too_long",
        f"the line has more than {MAX_LINE_BYTES:,} bytes; split or shorten it",
    )


def _digest_of_rest(file: BinaryIO, start: bytes) -> bytes:
    digest = blake2b(start, digest_size=16)
    while chunk := file.readline(_CHUNK_BYTES):
        digest.update(chunk)
        if chunk.endswith(b"\n"):
            break
    return digest.digest()
