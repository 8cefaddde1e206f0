"""Search a rendered prompt for the text of a message, as far as templates may change it."""

from __future__ import annotations

import html
import json
import re

HIDDEN = "\U0010fffd"
"""First character of a placeholder for a special token in a text; see `huggingface.py`."""

# What templates remove on purpose: placeholders of images, switches such as /no_think, and tags
# around an answer.
_MARKERS = re.compile(
    r"<[^<>\s]{0,32}(?:image|img|audio|video)[^<>\s]{0,32}>|\[(?:IMG|AUDIO)\]"
    r"|/(?:no_)?think\b|/system_override\b|</?(?:answer|response)>",
    re.IGNORECASE,
)
# End of an assistant's reasoning, which most templates leave out of earlier turns.
_END_OF_REASONING = re.compile(
    r".*(?:</[\w:]*(?:think|thought|reason)\w*>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>)",
    re.DOTALL | re.IGNORECASE,
)


def contains_text(text: str, rendered: str, *, is_assistant: bool = False) -> bool:
    """Return whether `text` is part of `rendered`.

    Templates may strip it, change its white space, escape it for JSON or HTML, remove placeholders
    of images, and leave out the reasoning of an assistant's turn.
    """
    if text in rendered or text.strip() in rendered:
        return True
    if any(variant in rendered for variant in _escaped(text.strip())):
        return True
    if is_assistant and (reasoning := _END_OF_REASONING.match(text)):
        return contains_text(text[reasoning.end() :], rendered)
    return _normalized(text) in _normalized(rendered)


def _escaped(text: str) -> list[str]:
    once = json.dumps(text, ensure_ascii=False)[1:-1]
    by_jinja = html.escape(text, quote=False).replace('"', "&#34;").replace("'", "&#39;")
    variants = [once, json.dumps(once, ensure_ascii=False)[1:-1], html.escape(text), by_jinja]
    if HIDDEN not in text:  # an escaped placeholder could not be found
        variants.append(json.dumps(text)[1:-1])
    return variants


def _normalized(text: str) -> str:
    """Return the text without white space and without what templates remove on purpose."""
    return "".join(_MARKERS.sub("", text).split())
