"""Write and read a comparison's reports.

report.json   everything including raw values (strict JSON: NaN and infinity are null)
report.csv    one line per trial
report.md     for a pull request or a wiki
report.html   one page that opens offline
"""

from __future__ import annotations

from pathlib import Path

from packhorse.compare.csv_table import csv_text
from packhorse.compare.document import FORMAT, Comparison
from packhorse.compare.markdown import markdown_text
from packhorse.reports.documents import json_text, read_document, write_documents


def write_reports(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the four reports into `folder`; see `write_documents`."""
    from packhorse.compare.html.page import html_text

    return write_documents(
        folder,
        {
            "report.json": lambda: json_text(comparison),
            "report.csv": lambda: csv_text(comparison),
            "report.md": lambda: markdown_text(comparison),
            "report.html": lambda: html_text(comparison),
        },
    )


def read_report(path: Path) -> Comparison:
    """Read a comparison from its report.json; see `read_document`."""
    return read_document(path, Comparison, FORMAT, "compare")
