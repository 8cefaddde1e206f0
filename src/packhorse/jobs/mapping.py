"""`packhorse.map`: run a model over the rows of a table in memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packhorse.config import BatchingConfig, EngineConfig, InputConfig
from packhorse.data import Completion, Failure, Request
from packhorse.errors import ConfigError
from packhorse.inference.model import Model, load
from packhorse.inputs import read_arrow
from packhorse.jobs.data_frames import frame_of, is_dataset_dict
from packhorse.jobs.journal import Journal
from packhorse.jobs.workspace import Workspace
from packhorse.outputs.columns import TEXT, check_output_column, kept_name

if TYPE_CHECKING:
    import pyarrow as pa

Result = tuple[Any, ...]
"""Values of the added columns of a row."""
_TYPES = {
    TEXT: "string",
    "finish_reason": "string",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "error_code": "string",
    "error_message": "string",
}
"""The added columns, as `Completion`, `Failure` and `Record` name them, and their Arrow types."""


def map(  # noqa: A001 (what pandas, polars and datasets call it)
    data: Any,
    model: Model | str,
    *,
    prompt_column: str | None = None,
    template: str | None = None,
    output_column: str = TEXT,
    engine: EngineConfig | None = None,
    batching: BatchingConfig | None = None,
    journal: str | Path | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Any:
    """Return `data` with columns of what the model answers to each row; same kind, same order.

    The columns `text` (or `output_column`), `finish_reason`, `prompt_tokens`, `completion_tokens`,
    `error_code` and `error_message` are added. A row that fails has the last two, and no row is
    left out. A column of `data` with one of these names is renamed as `--keep` does it: `text`
    becomes `input_text`. All other columns are data, also if they are called like an option.

        >>> frame = pandas.DataFrame({"question": ["What is the capital of France?"]})
        >>> packhorse.map(frame, "smollm2-135m-instruct", prompt_column="question").text[0]

    Args:
        data: A DataFrame of pandas or polars, a Table or RecordBatch of pyarrow, a Dataset or
            DatasetDict of Hugging Face, or any object with `__arrow_c_stream__` or
            `__dataframe__`, of which the result is a pyarrow Table.
        model: A loaded model, or what `load` takes; then it is loaded for this call.
        prompt_column: Column of the prompts (texts or lists of messages); "prompt", "messages" or
            "text" by default.
        template: Builds the prompt from columns: "Summarise: {title}".
        output_column: Name of the column of the generated text.
        engine, batching: As for `load`; only if `model` is a name.
        journal: Keep finished rows in `JOURNAL.packhorse/`. After an interruption, call `map` again
            with the same arguments: only unfinished rows run. By default, an interruption loses
            all.
        progress: Show a progress bar. None: in a notebook, or if standard error is a terminal.
        options: What `Model.generate` takes: `system`, `on_too_long` and sampling parameters.

    Raises:
        InputError: `data` is not a table, or has no column for the prompt.
        ConfigError: An option is invalid.
        JobChangedError: `journal` has results of other arguments.
    """
    if options.get("top_log_probs") is not None:
        raise ConfigError(
            "log-probabilities have no column", "leave top_log_probs out, or use Model.generate"
        )
    check_output_column(output_column)
    if is_dataset_dict(data) and journal is not None:
        raise ConfigError("a journal is for one dataset", "map each split with one of its own")
    reading = InputConfig(prompt_column=prompt_column, template=template, row_options="no")
    with ExitStack() as stack:
        if isinstance(model, Model):
            if engine is not None or batching is not None:
                raise ConfigError(
                    "the model is loaded, so its engine and batching are chosen already",
                    "give them to packhorse.load",
                )
        else:
            _check(data, reading)
            model = stack.enter_context(load(model, engine=engine, batching=batching))
        if is_dataset_dict(data):
            parts = {
                name: _mapped(part, model, reading, output_column, None, progress, options)
                for name, part in data.items()
            }
            return type(data)(parts)
        return _mapped(data, model, reading, output_column, journal, progress, options)


def _check(data: Any, reading: InputConfig) -> None:
    """Raise the errors of the data before a model is loaded."""
    for part in data.values() if is_dataset_dict(data) else (data,):
        frame = frame_of(part)
        read_arrow(frame.names, frame.arrow, reading)


def _mapped(
    data: Any,
    model: Model,
    reading: InputConfig,
    output_column: str,
    journal: str | Path | None,
    progress: bool | None,
    options: dict[str, Any],
) -> Any:
    from tqdm.auto import tqdm

    frame = frame_of(data)
    rows = partial(read_arrow, frame.names, frame.arrow, reading)
    is_shown = _has_viewer() if progress is None else progress
    with tqdm(total=len(frame), unit="row", disable=not is_shown) as bar:
        if not len(frame):
            results = []
        elif journal is None:
            results = _answers(model, rows(), len(frame), bar.update, options)
        else:
            workspace = Workspace(Path(journal))
            results = _kept_answers(model, rows, workspace, bar.update, reading, options)
    names = [output_column if name == TEXT else name for name in _TYPES]
    renamed = {name: kept_name(name, names) for name in frame.names}
    changed = {name: new for name, new in renamed.items() if new != name}
    return frame.extended(changed, _table(results, names))


def _has_viewer() -> bool:
    """Return whether this process is a notebook's or its standard error is a terminal."""
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())


def _answers(
    model: Model,
    rows: Iterable[Request | Failure],
    number: int,
    advance: Callable[[int], object],
    options: dict[str, Any],
) -> list[Result]:
    """Return the results of `number` rows, in order."""
    results: list[Result] = [()] * number

    def record(row: Request | Failure, outcome: Completion | Failure) -> None:
        results[row.index] = _result(outcome)
        advance(1)

    def readable() -> Iterator[Request]:
        for row in rows:
            if isinstance(row, Failure):
                record(row, row)
            else:
                yield row

    _run(model, readable(), record, options)
    return results


def _kept_answers(
    model: Model,
    rows: Callable[[], Iterator[Request | Failure]],
    workspace: Workspace,
    advance: Callable[[int], object],
    reading: InputConfig,
    options: dict[str, Any],
) -> list[Result]:
    """Return the results of all rows, in order; those that finish are kept in a journal."""
    with workspace.held(), Journal(workspace.journal) as journal:
        known = journal.binding_settings() or {}
        date = datetime.fromisoformat(known["date"]) if "date" in known else model.now()
        journal.store_settings(
            {
                "model": model.prepared.fingerprint,
                "engine": model.prepared.engine,
                "quantization": model.capabilities.compute_type,
                "prompt_column": reading.prompt_column,
                "template": reading.template,
                "options": repr(sorted(options.items())),
                "date": date.isoformat(),
            }
        )
        journal.register_rows(rows(), "row")
        journal.discard_damaged()
        pending = set(journal.pending_positions())
        counts = journal.counts()
        advance(counts.completed + counts.failed)

        def record(row: Request, outcome: Completion | Failure) -> None:
            journal.record(replace(outcome, key=row.key))
            advance(1)

        left = (row for row in rows() if row.index in pending and isinstance(row, Request))
        before, model.date = model.date, date
        try:
            _run(model, left, record, options)
        finally:
            model.date = before
            journal.commit()
        return [tuple(getattr(each, name) for name in _TYPES) for each in journal.records()]


def _run(
    model: Model,
    rows: Iterable[Request],
    record: Callable[[Request, Completion | Failure], None],
    options: dict[str, Any],
) -> None:
    sent: dict[int, Request] = {}

    def prompts() -> Iterator[Any]:
        for place, row in enumerate(rows):
            sent[place] = row
            yield row.content

    for outcome in model.generate(prompts(), **options):
        record(sent.pop(outcome.index), outcome)


def _result(outcome: Completion | Failure) -> Result:
    if isinstance(outcome, Failure):
        return (None, None, None, None, outcome.code, outcome.message)
    counts = (outcome.prompt_tokens, outcome.completion_tokens)
    return (outcome.text, outcome.finish_reason, *counts, None, None)


def _table(results: list[Result], names: Sequence[str]) -> pa.Table:
    import pyarrow as pa

    columns = zip(*results, strict=True) if results else [()] * len(names)
    kinds = [pa.type_for_alias(kind) for kind in _TYPES.values()]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    return pa.table(arrays, names=list(names))
