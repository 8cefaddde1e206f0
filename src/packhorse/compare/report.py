"""A comparison on disk: report.json, which can be read back, and what is drawn from it.

report.json   everything, raw values included (strict JSON: what is not a number is null)
report.csv    a line a trial
report.md     for a pull request or a wiki
report.html   for a team: one page that opens offline
"""

from __future__ import annotations

from pathlib import Path

from packhorse.compare.csv_table import csv_text
from packhorse.compare.document import FORMAT, Comparison
from packhorse.compare.markdown import markdown_text
from packhorse.reports.documents import json_text, read_document, write_documents


def write_reports(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes the four reports into `folder`; see `write_documents`."""
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
    """A comparison from its report.json; see `read_document`."""
    return read_document(path, Comparison, FORMAT, "compare")
