"""Reject files that are no input (an archive, a workbook, a web page) with a hint for conversion.

The content is recognised by its first bytes, whatever the name of the file.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

from packhorse.errors import InputError
from packhorse.storage.compressed_files import (
    COMPRESSIONS,
    Compression,
    compression_named,
    content_suffix,
    open_content,
)

STDIN_SUFFIX = ".stdin"
_HEAD_BYTES = 4096
_TAIL_BYTES = 65_536
_DOCUMENT_BYTES = 2**20
_LINES_CHECKED = 100
_PIPED = ("", ".jsonl", ".ndjson", ".json", ".txt")


_LZ4 = Compression("lz4", (".lz4",), b"\x04\x22\x4d\x18", "lz4cat")
_PICKLE = ("a Python pickle", "write the rows as JSONL or Parquet; packhorse loads no pickle")
_MODEL = ("a model, not rows", "the order is: packhorse run MODEL INPUT -o OUTPUT")
_IMAGE = ("an image, not rows", "give rows of text")
_ARROW = (
    "an Arrow (Feather) file",
    "convert it, for example with: python -c 'import sys, pyarrow.feather as f, "
    "pyarrow.parquet as p; p.write_table(f.read_table(sys.argv[1]), sys.argv[2])' {file} "
    "rows.parquet",
)
_OFFICE = ("an old Excel or Word file (.xls, .doc)", "save it as CSV UTF-8 and give that")
_UNPACK = "unpack it and give the file inside: {command} {{file}}"
# (offset, bytes at the offset, what the file is, what to do)
_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (257, b"ustar", "a tar archive", _UNPACK.format(command="tar -xf")),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK.format(command="7z x")),
    (0, b"Rar!\x1a\x07", "a RAR archive", _UNPACK.format(command="unrar x")),
    (
        0,
        b"SQLite format 3\0",
        "an SQLite database",
        "export the table, for example with: sqlite3 -csv -header {file} 'SELECT * FROM NAME' "
        "> rows.csv",
    ),
    (
        8,
        b"DUCK",
        "a DuckDB database",
        "export the table as Parquet: COPY NAME TO 'rows.parquet'",
    ),
    (0, b"ARROW1\0\0", *_ARROW),
    (0, b"FEA1", *_ARROW),
    (
        0,
        b"\xff\xff\xff\xff",
        "an Arrow stream, as datasets keeps it",
        "write it as Parquet, for example with: datasets.Dataset.from_file(FILE).to_parquet"
        "('rows.parquet')",
    ),
    *((0, b"\x80" + bytes([protocol]), *_PICKLE) for protocol in range(2, 6)),
    (0, b"\x93NUMPY", "a NumPy array", "write the rows as JSONL or Parquet"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "write the rows as JSONL or Parquet"),
    (0, b"Obj\x01", "an Avro file", "write the rows as JSONL or Parquet"),
    (0, b"ORC\n", "an ORC file", "write the rows as Parquet"),
    (0, b"ORC\x08", "an ORC file", "write the rows as Parquet"),
    (0, b"GGUF\x02\0\0\0", *_MODEL),
    (0, b"GGUF\x03\0\0\0", *_MODEL),
    (0, b"%PDF-", "a PDF file", "extract its text first, for example with: pdftotext"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", *_OFFICE),
    (0, b"\x89PNG\r\n\x1a\n", *_IMAGE),
    (0, b"\xff\xd8\xff", *_IMAGE),
    (
        0,
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, which only stands for the file",
        "fetch the file itself with: git lfs pull",
    ),
)
# Names in the list of members at the end of a ZIP file.
_ZIP_MEMBERS = (
    (b"xl/workbook", "an Excel workbook", "save it as CSV UTF-8 and give that"),
    (b"word/document", "a Word document", "save it as plain text (UTF-8) and give that"),
    (b"META-INF/manifest.xml", "an OpenDocument file", "save it as CSV (UTF-8) and give that"),
    (b"/data.pkl", "a PyTorch file, a pickle", _PICKLE[1]),
    (b".npy", "a NumPy archive", "write the rows as JSONL or Parquet"),
)
# First line of a pretty-printed document -> possible first characters of the next one.
_INSIDE = {"{": '"', "[": '{["', "[{": '"'}
_UTF32_LITTLE = b"\xff\xfe\0\0"
_UTF16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")


def input_name(path: Path) -> str:
    """Return the name of an input in messages."""
    return "standard input" if path.suffix.lower() == STDIN_SUFFIX else str(path)


def reject_foreign_content(path: Path) -> None:
    """Check the first bytes of a file.

    Raises:
        InputError: If the file is empty or has a known format that is no input format.
    """
    head, tail = _ends(path)
    if not head:
        raise InputError(f"{input_name(path)} is empty", "is it the right file?")
    what, advice = _known(path, head, tail) or ("", "")
    if what:
        file_word = "FILE" if path.suffix.lower() == STDIN_SUFFIX else shlex.quote(str(path))
        raise InputError(f"{input_name(path)} is {what}", advice.replace("{file}", file_word))


def _ends(path: Path) -> tuple[bytes, bytes]:
    """Return the first and the last bytes of the content; none of the last of a compressed file."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        tail = file.read(_TAIL_BYTES)
    compression = compression_named(path)
    if compression is None or not head:
        return head, tail
    if not compression.begins(head):
        raise InputError(
            f"{path} is not compressed with {compression.name}, as its name says",
            "rename it, or copy or download it again",
        )
    with open_content(path) as content:
        return content.read(_HEAD_BYTES), b""


def _known(path: Path, head: bytes, tail: bytes) -> tuple[str, str] | None:
    suffix = content_suffix(path)
    for compression in (*COMPRESSIONS, _LZ4):
        if compression.begins(head):
            return f"compressed with {compression.name}", _unpacking(path, compression)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        for member, what, advice in _ZIP_MEMBERS:
            if member in tail:
                return what, advice
        return "a ZIP archive", _UNPACK.format(command="unzip")
    for offset, magic, what, advice in _SIGNATURES:
        if head.startswith(magic, offset):
            return what, advice
    if suffix != ".parquet" and head.startswith(b"PAR1") and tail.endswith(b"PAR1"):
        return (
            "a Parquet file, but its name does not end in .parquet",
            "rename it to end in .parquet",
        )
    utf16 = "UTF-32" if head.startswith((_UTF32_LITTLE, _UTF16_OR_32[2])) else "UTF-16"
    if head.startswith(_UTF16_OR_32):
        return f"{utf16}, not UTF-8", f"convert it with: iconv -f {utf16} -t UTF-8 {{file}} > OUT"
    for first, name in ((0, "UTF-16BE"), (1, "UTF-16LE")):
        letters = head[1 - first : 64 : 2]
        is_wide = not head[first:64:2].strip(b"\0") and letters.isascii() and b"\0" not in letters
        if suffix != ".parquet" and len(head) >= 8 and is_wide:
            advice = f"convert it with: iconv -f {name} -t UTF-8 {{file}} > OUT"
            return "UTF-16 without a byte order mark, not UTF-8", advice
    return _markup(suffix, head)


def _markup(suffix: str, head: bytes) -> tuple[str, str] | None:
    """Recognise a web page or XML, which a server may have sent in place of the file.

    In a text file, a whole page on the first line is a prompt.
    """
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    is_text = suffix in (".txt", STDIN_SUFFIX)
    if is_text and (b"</" in start.split(b"\n", 1)[0] or b"\n" not in start):
        return None
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page (HTML), not rows", "was an error page saved in place of the file?"
    if start.startswith(b"<?xml"):
        return "XML, not rows", "was an error page saved in place of the file? Else write JSONL"
    return None


def _unpacking(path: Path, compression: Compression) -> str:
    if path.suffix.lower() == STDIN_SUFFIX:
        return f"unpack it: {compression.command} FILE | packhorse run MODEL - -o OUTPUT"
    file = shlex.quote(str(path))
    is_named_so = path.suffix.lower() in compression.suffixes
    inner = Path(path.stem) if is_named_so else Path(path.name)
    if path.suffix.lower() in (".tgz", ".tbz2", ".txz") or inner.suffix.lower() == ".tar":
        return f"unpack it and give the file inside: tar -xf {file}"
    target = inner.name if is_named_so else f"unpacked{inner.suffix}"
    command = f"{compression.command} {file}"
    is_piped = inner.suffix.lower() in _PIPED
    piped = f" (or pipe it: {command} | packhorse run MODEL - -o OUTPUT)" if is_piped else ""
    return f"unpack it: {command} > {shlex.quote(target)}{piped}"


def reject_json_document(path: Path) -> None:
    """Reject a file whose first line is not an object because it is JSON, but not JSONL.

    Raises:
        InputError: For one JSON document over many lines, several of them, or one array.
    """
    with open_content(path) as file:
        content = file.read(_DOCUMENT_BYTES)
    start = content.decode("utf-8-sig", "replace").lstrip()
    if not start.startswith(("{", "[")):
        return
    kind = "one JSON array" if start[0] == "[" else "a JSON object over many lines"
    chosen = ".[]" if start[0] == "[" else "."
    try:
        value, end = json.JSONDecoder().raw_decode(start)
    except (ValueError, RecursionError):
        first, _, rest = start.partition("\n")
        next_character = rest.lstrip()[:1]
        if (
            next_character
            and next_character in _INSIDE.get(first.strip(), "")
            and not _has_object_line(content)
        ):
            raise _document_error(path, kind, chosen) from None
        return
    has_more = bool(start[end:].strip())
    if "\n" not in start[:end]:
        is_document = _is_rows(value) and not has_more
    else:
        is_document = not has_more or not _has_object_line(content)
    if is_document:
        if isinstance(value, dict):
            names = [name for name, each in value.items() if _is_rows(each)]
            chosen = f".[{json.dumps(names[0])}][]" if len(names) == 1 else "."
        raise _document_error(path, kind, chosen)


def _document_error(path: Path, kind: str, chosen: str) -> InputError:
    command = f"jq -c {shlex.quote(chosen)} {shlex.quote(str(path))} > rows.jsonl"
    if path.suffix.lower() == STDIN_SUFFIX:
        command = f"jq -c {shlex.quote(chosen)} FILE | packhorse run MODEL - -o OUTPUT"
    return InputError(
        f"{input_name(path)} is {kind}, not one object per line",
        f"turn it into lines with: {command}",
    )


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _has_object_line(content: bytes) -> bool:
    """Return whether one of the first lines is a whole object: the file is JSONL with errors."""
    for line in content.split(b"\n", _LINES_CHECKED)[:_LINES_CHECKED]:
        try:
            if isinstance(json.loads(line), dict):
                return True
        except (ValueError, RecursionError):
            continue
    return False
