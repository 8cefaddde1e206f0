"""Names of the columns of an output: results, and columns of the input that it repeats."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from packhorse.errors import ConfigError
from packhorse.inputs.kept import KeptColumns

TEXT = "text"
ERROR = "error"
"""Field of a row of JSONL that failed."""
RESULTS = (
    "id",
    TEXT,
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "error_code",
    "error_message",
)
EXTRA_COLUMNS = {
    "reasoning": TEXT,
    "tool_calls": TEXT,
    "parsed": TEXT,
    "parsed_error": TEXT,
    "reasoning_tokens": "completion_tokens",
    "choices": "completion_tokens",
    "prompt_logprobs": "completion_tokens",
}
"""Columns that only some jobs have -> the column that they stand after."""
NOTE_COLUMNS = {
    "reasoning": ("reasoning",),
    "tool_calls": ("tool_calls",),
    "reasoning_tokens": ("reasoning_tokens",),
    "other_choices": ("choices",),
    "prompt_log_probs": ("prompt_logprobs",),
    "is_json": ("parsed", "parsed_error"),
}
"""Field of a row's note in the journal -> the columns that the output has because of it."""
_ATTRIBUTES = {"prompt_logprobs": "prompt_log_probs"}
_LABELS = ("id", "label", "confidence", "answered_by", "error_code", "error_message")
_VALUES = ("id", "error_code", "error_message")
_RENAMED = "input_"


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns of an output, in the order id, kept columns of the input, results.

    Attributes:
        results: Name of each column of the output, and the attribute of an OutputRow that it holds.
        kept: Columns of the input.
        taken: Names that a kept column must not have, the same in every format.
        properties: Name of each column of a table for a property of `OutputRow.parsed`, and the
            property and its type; tables then have no column `parsed`.
        are_values: Whether the properties are the results, also in JSONL, in place of text and
            tokens.
    """

    results: Mapping[str, str]
    kept: KeptColumns | None
    taken: Collection[str]
    properties: Mapping[str, tuple[str, str]]
    are_values: bool = False

    def name_of(self, name: str) -> str:
        """Return the name in the output of a column of the input."""
        return kept_name(name, self.taken)


def kept_name(name: str, taken: Collection[str]) -> str:
    """Return the name of a column of the input beside columns with the names `taken`.

    A column that has one of these names, or one behind any number of "input_", gets one more
    "input_". So the name depends on no other column of the input, and two never get the same one.
    """
    base = name
    while base not in taken and base.startswith(_RENAMED):
        base = base.removeprefix(_RENAMED)
    return f"{_RENAMED}{name}" if base in taken else name


def output_columns(
    labels: bool,
    output_column: str,
    kept: KeptColumns | None,
    extra: Collection[str] = (),
    properties: Mapping[str, str] | None = None,
    *,
    are_values: bool = False,
) -> Columns:
    """Return the columns of an output; the arguments are those of `write_output`."""
    names = list(_LABELS if labels else _VALUES if are_values else RESULTS)
    extra = () if are_values else extra
    for name in reversed([each for each in EXTRA_COLUMNS if each in extra]):
        names.insert(names.index(EXTRA_COLUMNS[name]) + 1, name)
    results = {
        output_column if name == TEXT else name: _ATTRIBUTES.get(name, name) for name in names
    }
    if labels:
        results["label"] = TEXT
    columns = _property_columns({*results, ERROR}, properties or {})
    return Columns(results, kept, {*results, *columns, ERROR}, columns, are_values)


def _property_columns(
    taken: Collection[str], properties: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """Return columns for properties: named as they are, after "parsed_" if the name is taken."""
    found: dict[str, tuple[str, str]] = {}
    for name, kind in properties.items():
        column = name
        while column in taken or column in found or (column != name and column in properties):
            column = f"parsed_{column}"
        found[column] = name, kind
    return found


def check_output_column(name: str) -> None:
    """Check the name of the column of the answers.

    Raises:
        ConfigError: If it is empty, not Unicode, or the name of another column of the output.
    """
    taken = [*(each for each in (*RESULTS, *EXTRA_COLUMNS) if each != TEXT), ERROR]
    base = name
    while base.startswith(_RENAMED):
        base = base.removeprefix(_RENAMED)
    if base in taken:
        raise ConfigError(
            f"the output column must not be called {name}: that is the name of another column",
            f"choose a name other than {', '.join(taken)}",
        )
    try:
        is_empty = not name.encode("utf-8").strip()
    except UnicodeEncodeError:
        is_empty = True
    if is_empty:
        raise ConfigError(f"the output column must have a name of text, got {name!r}", "name it")
