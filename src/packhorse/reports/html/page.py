"""A report as one page that needs nothing else: no network, no fonts, no other file.

Drawings are SVG with positions computed in Python. All text is escaped by the template engine. The
page's own policy forbids it any request, any script but its own (by digest) and any inline style.
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
_ROOM = "packhorse.reports"


def page_text(
    room: str, *, verb: str, subject: str, headline: str, sections: Sequence[tuple[str, str]],
    **values: Any,
) -> str:  # fmt: skip
    """The page `report.html` of a room's folder html/, which extends base.html.

    It can be read without its script, which only sorts and copies. sections: (id, title) of each.
    values: what the template needs besides.
    """
    import jinja2

    def found(name: str) -> str | None:
        for place in (room, _ROOM):
            resource = files(place) / "html" / name
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
    """Free-form facts in words under their titles; empty ones are left out."""
    return [
        (title, [plain(name, value) for name, value in known.items()])
        for title, known in sections.items()
        if known
    ]


def tick(value: float) -> str:
    """0.2, 1, 50, 1,000."""
    return f"{value:,.0f}" if value >= 100 else f"{value:g}"


def _policy(style: str, script: str) -> str:
    """The Content-Security-Policy: nothing is fetched, nothing runs but what is written here."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _printable(value: Any) -> Any:
    """Plain text without control characters; HTML would drop or change them."""
    return visible(value) if type(value) is str else value
