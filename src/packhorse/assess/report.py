"""Write and read an assessment's reports.

report.json   everything (strict JSON: NaN and infinity are null)
report.md     for a pull request or a wiki
report.html   one page that opens offline
"""

from __future__ import annotations

from pathlib import Path

from packhorse.assess.document import FORMAT, Assessment
from packhorse.reports.documents import json_text, read_document, write_documents


def write_reports(assessment: Assessment, folder: Path) -> list[Path]:
    """Write the three reports into `folder`; see `write_documents`."""
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
    """Read an assessment from its report.json; see `read_document`."""
    return read_document(path, Assessment, FORMAT, "assess")
