"""Whether what a message says stands in a rendered prompt, as far as templates may change it."""

from __future__ import annotations

import html
import json
import re

HIDDEN = "\U0010fffd"
"""Begins a stand-in for text that looks like a special token; see `packhorse.tokenization`."""

# What templates take out on purpose: places of images, switches that models read in a text, and
# tags around an answer.
_MARKERS = re.compile(
    r"<[^<>\s]{0,32}(?:image|img|audio|video)[^<>\s]{0,32}>|\[(?:IMG|AUDIO)\]"
    r"|/(?:no_)?think\b|/system_override\b|</?(?:answer|response)>",
    re.IGNORECASE,
)
# The end of an assistant's reasoning, which most templates leave out of earlier turns.
_END_OF_REASONING = re.compile(
    r".*(?:</[\w:]*(?:think|thought|reason)\w*>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>)",
    re.DOTALL | re.IGNORECASE,
)


def stands_in(text: str, rendered: str, *, is_assistant: bool = False) -> bool:
    """Whether `text` is a part of `rendered`.

    Templates may strip it, change its white space, escape it for JSON or HTML, take out the places
    of images, and leave out the reasoning of an assistant's turn.
    """
    if text in rendered or text.strip() in rendered:
        return True
    if any(variant in rendered for variant in _escaped(text.strip())):
        return True
    if is_assistant and (reasoning := _END_OF_REASONING.match(text)):
        return stands_in(text[reasoning.end() :], rendered)
    return _squeezed(text) in _squeezed(rendered)


def _escaped(text: str) -> list[str]:
    once = json.dumps(text, ensure_ascii=False)[1:-1]
    by_jinja = html.escape(text, quote=False).replace('"', "&#34;").replace("'", "&#39;")
    variants = [once, json.dumps(once, ensure_ascii=False)[1:-1], html.escape(text), by_jinja]
    if HIDDEN not in text:  # escaped, a stand-in could not be found again
        variants.append(json.dumps(text)[1:-1])
    return variants


def _squeezed(text: str) -> str:
    """The text without white space and without what templates take out on purpose."""
    return "".join(_MARKERS.sub("", text).split())
