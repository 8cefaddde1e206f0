"""Arrow types of JSON values, found by reading all of them once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

_EXACT_IN_FLOAT = 2**53
_MAX_FIELDS = 1000
"""An object with more names than this is a map, for which Arrow's structs are no form."""


class JsonType:
    """What the values seen so far have in common.

    null fits every type; whole numbers fit float64 if all of them are exact in it; lists and
    objects fit if their items and fields do, and a field may be missing.
    """

    def __init__(self) -> None:
        self._kinds: set[type] = set()
        self._least = self._most = 0
        self._items: JsonType | None = None
        self._fields: dict[str, JsonType] = {}

    def add(self, value: Any) -> None:
        """Include a value."""
        kind = type(value)
        if kind is str or value is None:
            if value is not None:
                self._kinds.add(str)
            return
        self._kinds.add(kind)
        if kind is int:
            self._least, self._most = min(self._least, value), max(self._most, value)
        elif kind is list:
            self._items = self._items or JsonType()
            for item in value:
                self._items.add(item)
        elif kind is dict and len(self._fields) <= _MAX_FIELDS:
            for name, item in value.items():
                self._fields.setdefault(name, JsonType()).add(item)

    def arrow(self) -> pa.DataType | None:
        """Return the type that holds all values; None if there is none, and JSON must do."""
        import pyarrow as pa

        match sorted(kind.__name__ for kind in self._kinds):
            case [] | ["str"]:
                return pa.string()
            case ["bool"]:
                return pa.bool_()
            case ["float"]:
                return pa.float64()
            case ["int"]:
                return self._whole()
            case ["float", "int"]:
                is_exact = max(-self._least, self._most) <= _EXACT_IN_FLOAT
                return pa.float64() if is_exact else None
            case ["list"]:
                item = self._items.arrow() if self._items else None
                return None if item is None else pa.list_(item)
            case ["dict"]:
                return self._struct()
        return None

    def _whole(self) -> pa.DataType | None:
        import pyarrow as pa

        if self._least >= -(2**63) and self._most < 2**63:
            return pa.int64()
        return pa.uint64() if self._least == 0 and self._most < 2**64 else None

    def _struct(self) -> pa.DataType | None:
        import pyarrow as pa

        fields = {name: each.arrow() for name, each in self._fields.items()}
        if not fields or len(fields) > _MAX_FIELDS or None in fields.values():
            return None
        return pa.struct(list(fields.items()))


class JsonTypes:
    """The types of all fields of JSON rows, in order of their first appearance."""

    def __init__(self) -> None:
        self._fields: dict[str, JsonType] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Include a row."""
        for name, value in row.items():
            self._fields.setdefault(name, JsonType()).add(value)

    def arrow(self) -> dict[str, pa.DataType | None]:
        """Return the type of each field, None for one that must be written as JSON."""
        return {name: each.arrow() for name, each in self._fields.items()}
