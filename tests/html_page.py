"""Reads a page that a report wrote, and checks what must hold for every such page."""

from __future__ import annotations

import base64
import hashlib
from html.parser import HTMLParser

VOID = {"meta", "link", "input", "br", "wbr", "hr", "img"}
SVG_LEAVES = {"path", "rect", "circle"}
FETCHING = {"src", "srcset", "href", "action", "formaction", "poster", "background", "data", "cite"}
HOSTILE = "</script></style><img src=x onerror=alert(1)>\"'&lt;{{7*7}}{% raw %}\x00\x1b\u2028\ud800"

SHOWN = "</script></style><img src=x onerror=alert(1)>\"'&lt;{{7*7}}{% raw %}␀␛\ufffd\ufffd"
"""HOSTILE as a page shows it."""


class Page(HTMLParser):
    """Checks nesting while it reads; keeps tags, attributes, and text outside of style."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.raw: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice"
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in SVG_LEAVES, f"{tag} cannot close itself"
        self.tags.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "script"):
            self.raw[self.open[-1]] = self.raw.get(self.open[-1], "") + data
        else:
            self.words.append(data)

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def check_self_contained(text: str) -> None:
    """It refers to nothing outside, and allows no style and script but its own."""
    page = Page(text)
    for place in ("http://", "https://", "src=", "@import", "url(", "fetch(", "XMLHttp"):
        assert place not in text
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert name not in FETCHING or value.startswith(("#", "data:"))
            assert name != "style", tag
            assert not name.startswith("on"), tag
    policy = next(
        meta["content"]
        for meta in page.named("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    )
    digests = {
        tag: base64.b64encode(hashlib.sha256(page.raw[tag].encode()).digest()).decode()
        for tag in ("style", "script")
    }
    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src data:",
        f"style-src 'sha256-{digests['style']}'",
        f"script-src 'sha256-{digests['script']}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def check_links(text: str) -> None:
    """Links and labels lead somewhere inside the page."""
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in page.named("a"):
        assert link["href"][1:] in ids
    for label in page.named("label"):
        assert label["for"] in ids


def check_inert(text: str, harmless: str) -> None:
    """A page of hostile data has the scripts and styles of a harmless one, and no further tags."""
    found, page = Page(text), Page(harmless)
    assert found.raw == page.raw
    assert found.named("img") == []
    assert len(found.named("script")) == len(found.named("style")) == 1
    assert not any(name.startswith("on") for _, each in found.tags for name in each)
