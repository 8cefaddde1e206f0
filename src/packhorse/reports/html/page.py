"""Render a report as one self-contained page: no network, fonts or other files.

Charts are SVG with positions computed in Python. The template engine escapes all text. The page's
Content-Security-Policy forbids requests, scripts other than its own (by digest) and inline styles.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from packhorse.reports.text import plain, visible

COLOURS = 6
RING = 5.0
_SHARED = "packhorse.reports"


def page_text(
    package: str, *, verb: str, subject: str, headline: str, sections: Sequence[tuple[str, str]],
    **values: Any,
) -> str:  # fmt: skip
    """Return the page `report.html` of a package's folder html/, which extends base.html.

    The page is readable without its script, which only sorts and copies.

    Args:
        sections: (id, title) of each.
        values: further values of the template.
    """
    import jinja2

    def found(name: str) -> str | None:
        for index in (package, _SHARED):
            resource = files(index) / "html" / name
            if resource.is_file():
                return resource.read_text(encoding="utf-8")
        return None

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(found),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.globals |= {"colours": COLOURS, "ring": RING, "tick": tick}
    style, script = found("report.css") or "", found("report.js") or ""
    return environment.get_template("report.html").render(
        verb=verb,
        subject=subject,
        headline=headline,
        sections=sections,
        style=style,
        script=script,
        policy=_policy(style, script),
        **values,
    )


def facts(
    sections: Mapping[str, Mapping[str, object]],
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return free-form facts in words under their titles, without empty groups."""
    return [
        (title, [plain(name, value) for name, value in known.items()])
        for title, known in sections.items()
        if known
    ]


def tick(value: float) -> str:
    """Format a tick: 0.2, 1, 50, 1,000."""
    return f"{value:,.0f}" if value >= 100 else f"{value:g}"


def _policy(style: str, script: str) -> str:
    """Return the Content-Security-Policy: no requests, no scripts but the page's own."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _printable(value: Any) -> Any:
    """Replace control characters in plain text; HTML would drop or change them."""
    return visible(value) if type(value) is str else value
