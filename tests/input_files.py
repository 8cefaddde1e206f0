"""Inputs written for tests of sources, and rows in short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from packhorse.config import InputConfig
from packhorse.data import Failure, Request
from packhorse.inputs import read_rows

Row = Request | Failure


def read_content(folder: Path, name: str, content: bytes | str, **config: Any) -> list[Row]:
    """Reads `content` as a file named `name`; config is InputConfig's."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_rows(path, InputConfig(**config)))


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def batch_line(body: Any, url: Any = "/v1/chat/completions", **others: Any) -> dict[str, Any]:
    return {"custom_id": "a", "method": "POST", "url": url, "body": body, **others}


def chat(content: Any = "hi", **options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **options}


def summary(row: Row) -> tuple[Any, ...]:
    return (row.id, row.line, row.content if isinstance(row, Request) else row.code)
