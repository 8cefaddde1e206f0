"""Tables of other libraries: read columns as Arrow, return the same kind with columns added.

None of the libraries is imported here unless the data is theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from packhorse.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 1000
_KINDS = (
    "a DataFrame of pandas or polars, a table of pyarrow, a Dataset of Hugging Face, or anything "
    "with __arrow_c_stream__ or __dataframe__"
)


class Frame(Protocol):
    """A table of one library."""

    @property
    def names(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...
    def arrow(self, names: Sequence[str]) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
        """Return the schema and the rows of some columns."""
        ...

    def extended(self, renamed: Mapping[str, str], added: pa.Table) -> Any:
        """Return the data with columns renamed and others added on the right."""
        ...


def frame_of(data: Any) -> Frame:
    """Return `data` as a Frame.

    Raises:
        InputError: For anything that is not a table.
    """
    if _is_a(data, "pandas", "DataFrame"):
        return _Pandas(data)
    if _is_a(data, "polars", "LazyFrame"):
        return _LazyPolars(data)
    if _is_a(data, "polars", "DataFrame"):
        return _Polars(data)
    if _is_a(data, "datasets", "Dataset"):
        return _Dataset(data)
    if _is_a(data, "datasets", "IterableDataset"):
        raise InputError(
            "an IterableDataset has no fixed number of rows and cannot get columns",
            "load it without streaming=True, or write it to a file and use packhorse.run",
        )
    if _is_a(data, "pandas", "Series") or _is_a(data, "polars", "Series"):
        raise InputError("a Series is one column, not a table", "call to_frame() on it")
    return _Arrow(_arrow_table(data))


def is_dataset_dict(data: Any) -> bool:
    """Return whether `data` is Hugging Face's dictionary of datasets by split."""
    return _is_a(data, "datasets", "DatasetDict")


def _is_a(data: Any, library: str, name: str) -> bool:
    """Return whether `data` is of a class of a library, or of a class derived from it."""
    return any(
        kind.__name__ == name and kind.__module__.partition(".")[0] == library
        for kind in type(data).__mro__
    )


def _arrow_table(data: Any) -> Any:
    """Return a Table or RecordBatch with what `data` holds."""
    import pyarrow as pa
    from pyarrow.interchange import from_dataframe

    if isinstance(data, (pa.Table, pa.RecordBatch)):
        return data
    try:
        if hasattr(data, "__arrow_c_stream__"):
            return pa.table(data)
        if hasattr(data, "__dataframe__"):
            return from_dataframe(data)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(
            f"a {type(data).__name__} cannot be read as a table: {error}", f"give {_KINDS}"
        ) from error
    raise InputError(
        f"the data must be a table, got a {type(data).__name__}",
        f"give {_KINDS}; for a list of prompts use Model.generate",
    )


class _Arrow:
    """A table or record batch of pyarrow, or what another library hands over as one."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self.names: Sequence[str] = table.schema.names

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def arrow(self, names: Sequence[str]) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
        return _batches(self._table.select(list(names)))

    def extended(self, renamed: Mapping[str, str], added: pa.Table) -> Any:
        table = self._table.rename_columns([renamed.get(name, name) for name in self.names])
        for field, column in zip(added.schema, added.columns, strict=True):
            is_table = hasattr(table, "combine_chunks")
            table = table.append_column(field, column if is_table else column.combine_chunks())
        return table


class _Pandas:
    """A DataFrame of pandas; its index stays, and whole numbers that may be missing are Int64."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self._labels = {str(label): label for label in data.columns}
        self.names: Sequence[str] = [str(label) for label in data.columns]

    def __len__(self) -> int:
        return len(self._data)

    def arrow(self, names: Sequence[str]) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
        import pyarrow as pa

        part = self._data[[self._labels[name] for name in names]]
        try:
            return _batches(pa.Table.from_pandas(part, preserve_index=False))
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise InputError(
                f"the columns {', '.join(names)} cannot be read: {error}",
                "give each one type, for example with astype(str)",
            ) from error

    def extended(self, renamed: Mapping[str, str], added: pa.Table) -> Any:
        import pandas as pd
        import pyarrow.types as types

        labels = {self._labels[name]: new for name, new in renamed.items()}
        columns: dict[str, Any] = {}
        for field, column in zip(added.schema, added.columns, strict=True):
            values = column.to_pylist()
            is_whole = types.is_integer(field.type)
            columns[field.name] = pd.array(values, dtype="Int64") if is_whole else values
        return self._data.rename(columns=labels).assign(**columns)


class _Polars:
    """A DataFrame of polars."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self.names: Sequence[str] = data.columns

    def __len__(self) -> int:
        return len(self._data)

    def arrow(self, names: Sequence[str]) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
        return _batches(self._data.select(list(names)).to_arrow())

    def extended(self, renamed: Mapping[str, str], added: pa.Table) -> Any:
        import polars as pl

        return self._data.rename(dict(renamed)).hstack(pl.from_arrow(added).get_columns())


class _LazyPolars(_Polars):
    """A LazyFrame of polars, computed once."""

    def __init__(self, data: Any) -> None:
        super().__init__(data.collect())

    def extended(self, renamed: Mapping[str, str], added: pa.Table) -> Any:
        return super().extended(renamed, added).lazy()


class _Dataset:
    """A Dataset of Hugging Face, which may be larger than memory and is read in parts."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self.names: Sequence[str] = data.column_names

    def __len__(self) -> int:
        return len(self._data)

    def arrow(self, names: Sequence[str]) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
        part = self._data.select_columns(list(names)).with_format("arrow")
        return part.features.arrow_schema, self._parts(part)

    def _parts(self, part: Any) -> Iterator[pa.RecordBatch]:
        for table in part.iter(BATCH_ROWS):
            yield from table.to_batches(BATCH_ROWS)

    def extended(self, renamed: Mapping[str, str], added: pa.Table) -> Any:
        import datasets

        new = datasets.Dataset(datasets.table.InMemoryTable(added))
        return datasets.concatenate_datasets(
            [self._data.rename_columns(dict(renamed)), new], axis=1
        )


def _batches(table: Any) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
    import pyarrow as pa

    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    return table.schema, table.to_batches(BATCH_ROWS)
