"""An assessment on disk: report.json, which can be read back, and what is drawn from it.

report.json   everything (strict JSON: what is not a number is null)
report.md     for a pull request or a wiki
report.html   for a team: one page that opens offline
"""

from __future__ import annotations

from pathlib import Path

from packhorse.assess.document import FORMAT, Assessment
from packhorse.reports.documents import json_text, read_document, write_documents


def write_reports(assessment: Assessment, folder: Path) -> list[Path]:
    """Writes the three reports into `folder`; see `write_documents`."""
    from packhorse.assess.html.page import html_text
    from packhorse.assess.markdown import markdown_text

    return write_documents(
        folder,
        {
            "report.json": lambda: json_text(assessment),
            "report.md": lambda: markdown_text(assessment),
            "report.html": lambda: html_text(assessment),
        },
    )


def read_report(path: Path) -> Assessment:
    """An assessment from its report.json; see `read_document`."""
    return read_document(path, Assessment, FORMAT, "assess")
