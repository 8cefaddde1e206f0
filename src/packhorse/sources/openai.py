"""Lines of an OpenAI batch file: the request is the `body` of an envelope with a `custom_id`.

What would change the answer and cannot be honoured is refused row by row, never dropped: a field
of the body is honoured, known to change nothing, at its neutral value, or the row is a Failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packhorse.data import MOST_LOG_PROBS
from packhorse.sources.faults import RowError, shown
from packhorse.sources.options import OPTION_FIELDS, is_neutral
from packhorse.sources.rows import Layout

_CONTENT_FIELD = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}
_LOG_PROBS = ("logprobs", "top_logprobs")
TOP_LOG_PROBS = "top_log_probs"


def is_batch_line(fields: Mapping[str, Any]) -> bool:
    return "custom_id" in fields and ("url" in fields or "body" in fields)


def unwrap(line: Mapping[str, Any]) -> dict[str, Any]:
    """The content and options of one line's request, under the names JSONL rows have, and
    TOP_LOG_PROBS, which those do not have.

    Raises RowError: bad_body, missing_prompt, unsupported_url, unsupported_option.
    """
    if line.get("method") not in (None, "POST"):
        raise RowError("unsupported_option", f"method is {shown(line['method'])}; it is POST")
    body = line.get("body")
    if not isinstance(body, dict):
        raise RowError("bad_body", f"body is {shown(body)}; it is an object, the request")
    content_field = _content_field(line.get("url"), body)
    if body.get(content_field) is None:
        raise RowError("missing_prompt", f"the body has no {content_field}; give it some")
    known = {content_field, *OPTION_FIELDS, *_LOG_PROBS}
    for name, value in body.items():
        if name not in known and not is_neutral(name, value):
            raise RowError(
                "unsupported_option",
                f"{shown(name)} is {shown(value)}, which cannot be honoured; leave it out",
            )
    kept = {name: body[name] for name in body if name == content_field or name in OPTION_FIELDS}
    top = _top_log_probs(body, is_chat=content_field == "messages")
    return kept if top is None else {**kept, TOP_LOG_PROBS: top}


def _top_log_probs(body: Mapping[str, Any], *, is_chat: bool) -> int | None:
    """Decoding.top_log_probs, which chats and texts ask for in different ways. Raises RowError."""
    asked, top = body.get("logprobs"), body.get("top_logprobs")
    if not is_chat:
        if top is not None:
            raise RowError("bad_option", "top_logprobs belongs to chats; here it is logprobs")
        return _count("logprobs", asked) if asked is not None and asked is not False else None
    if not isinstance(asked, bool | None):
        raise RowError("bad_option", f"logprobs is {shown(asked)}; it is true or false")
    count = 0 if top is None else _count("top_logprobs", top)
    if count and not asked:
        raise RowError("bad_option", "top_logprobs needs logprobs: true")
    return count if asked else None


def _count(name: str, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_LOG_PROBS:
        return value
    wanted = f"a whole number from 0 to {MOST_LOG_PROBS}"
    raise RowError("bad_option", f"{name} is {shown(value)}; it is {wanted}")


def _content_field(url: Any, body: Mapping[str, Any]) -> str:
    if url is None:
        return "prompt" if "prompt" in body else "messages"
    if not isinstance(url, str) or url not in _CONTENT_FIELD:
        raise RowError(
            "unsupported_url", f"url is {shown(url)}; it is {' or '.join(_CONTENT_FIELD)}"
        )
    return _CONTENT_FIELD[url]


LAYOUT = Layout(
    id_field="custom_id",
    unwrap=unwrap,
    bare=True,
    unwrapped_options=(TOP_LOG_PROBS,),
)
