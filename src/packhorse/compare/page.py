"""A comparison as one page that needs nothing else: no network, no fonts, no other file.

The drawings are SVG with positions computed here; `html/` holds template, style and script. All
text is escaped by the template engine. The page's own policy forbids it any request, any script
but its own (by digest) and any inline style.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from packhorse.compare.document import Comparison
from packhorse.compare.figures import headline, limits_line, plain, recommendation_title, visible
from packhorse.compare.html import details, views
from packhorse.compare.html.scatter import COLOURS, NARROW, RING, WIDE, scatters
from packhorse.compare.html.strips import latency_strips


def html_text(comparison: Comparison) -> str:
    """The page. Everything in it can be read without its script, which only sorts and copies."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.globals |= {"colours": COLOURS, "ring": RING}
    style, script = _resource("report.css"), _resource("report.js")
    wide, narrow = scatters(comparison, WIDE), scatters(comparison, NARROW)
    strips = latency_strips(comparison, narrow=False), latency_strips(comparison, narrow=True)
    return environment.get_template("report.html").render(
        style=style,
        script=script,
        policy=_policy(style, script),
        comparison=comparison,
        headline=headline(comparison),
        limits=limits_line(comparison),
        title=recommendation_title(comparison),
        tiles=views.tiles(comparison),
        legend=views.legend(comparison),
        sizes=views.size_legend(comparison),
        scatters=list(zip(wide, narrow, strict=True)),
        strips=[drawing for drawing in strips if drawing],
        trials=views.trial_table(comparison),
        accuracy=views.accuracy_table(comparison),
        effects=details.effects(comparison),
        worst=details.worst_rows(comparison),
        repeats=details.repeats(comparison),
        meanings=details.meanings(comparison),
        facts=_facts(comparison),
        tick=_tick,
    )


def _resource(name: str) -> str:
    return (files("packhorse.compare") / "html" / name).read_text(encoding="utf-8")


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


def _facts(comparison: Comparison) -> list[tuple[str, list[tuple[str, str]]]]:
    sections = {
        "Machine": comparison.machine,
        "Versions": comparison.versions,
        "Sample": comparison.sample,
        "Reference": comparison.reference,
    }
    return [
        (title, [plain(name, value) for name, value in facts.items()])
        for title, facts in sections.items()
        if facts
    ]


def _tick(value: float) -> str:
    """0.2, 1, 50, 1,000."""
    return f"{value:,.0f}" if value >= 100 else f"{value:g}"
