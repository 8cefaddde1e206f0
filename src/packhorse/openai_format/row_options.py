"""Options in plain rows: which fields of a row are options, and which are data.

The rule is the same for JSONL, CSV, TSV and Parquet. A field with the name of an option (of
packhorse, OpenAI or vLLM) is an option if all fields of its row are known. Beside unknown fields it
may be data, so the row is rejected until `--row-options` decides, unless its value is the usual
one. Fields of which the prompt is
made are always data. An option that is not supported is rejected unless it has no effect.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from packhorse.config import RowOptions
from packhorse.openai_format.prompt_fields import PROMPT_FIELDS, has_effect, read_prompt_options
from packhorse.openai_format.request_fields import (
    IGNORED_FIELDS,
    OPTION_FIELDS,
    is_default,
    is_neutral,
    is_option,
    read_options,
)
from packhorse.openai_format.row_errors import RowError, format_value


def unknown_names(names: Collection[str]) -> list[str]:
    """Return those of `names` that no request has."""
    return [name for name in names if not is_option(name) and name not in IGNORED_FIELDS]


def read_row_options(
    fields: Mapping[str, Any], unknown: Collection[str], row_options: RowOptions
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of a row: fields of SamplingParams, and fields of PromptOptions.

    Args:
        fields: Fields that are part of neither the prompt nor the id.
        unknown: Names of the row's fields that are no options.
        row_options: Whether fields with the name of an option are options; see `InputConfig`.

    Raises:
        RowError: `ambiguous_option` for options that may be data, `unsupported_option` for one that
            is not supported, `bad_option` as `read_options` and `read_prompt_options`.
    """
    if row_options == "no":
        return {}, {}
    options = {
        name: value for name, value in fields.items() if is_option(name) and _is_given(name, value)
    }
    if unknown and row_options == "auto":
        options = {name: value for name, value in options.items() if not is_default(name, value)}
    if not options:
        return {}, {}
    if unknown and row_options == "auto":
        raise RowError("ambiguous_option", "; ".join(describe_ambiguity(options, unknown)))
    for name, value in options.items():
        if name not in OPTION_FIELDS and name not in PROMPT_FIELDS:
            raise RowError(
                "unsupported_option",
                f"{name} is {format_value(value)}, which is not supported; leave it out, or say "
                "that such fields are data with --row-options no",
            )
    return read_options(options), read_prompt_options(options)


def _is_given(name: str, value: Any) -> bool:
    """Return whether an option has a value that may change a completion."""
    if name in PROMPT_FIELDS:
        return has_effect(name, value)
    return value is not None if name in OPTION_FIELDS else not is_neutral(name, value)


def describe_ambiguity(options: Collection[str], unknown: Collection[str]) -> tuple[str, str]:
    """Return what is wrong with options beside unknown fields, and what to do."""
    named, others = (", ".join(map(format_value, list(names)[:4])) for names in (options, unknown))
    return (
        f"{named} may be an option or data, since {others} is no option",
        "say which with --row-options yes or --row-options no",
    )


def parse_text_option(name: str, text: str) -> Any:
    """Return the value of an option in a CSV cell: JSON if it is, except for `stop`.

    `stop` is text, and so are `bad_words` unless they are a list.
    """
    if not text:
        return None
    if name == "stop" or (name == "bad_words" and not text.startswith("[")):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
