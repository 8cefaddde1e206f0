"""Lines of an OpenAI batch file: the request is the `body` of an envelope with a `custom_id`.

What would change the answer and cannot be honoured is refused row by row, never dropped: a field
of the body is honoured, known to change nothing, at its neutral value, or the row is a Failure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from packhorse.data import MOST_LOG_PROBS
from packhorse.openai_format.request_options import NEUTRAL_VALUES, OPTION_FIELDS, is_neutral
from packhorse.openai_format.row_errors import RowError, shown

ID_FIELD = "custom_id"
_CONTENT_FIELD = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}
_LOG_PROBS = ("logprobs", "top_logprobs")
_TOP_OF_TEXT = "top_logprobs is only valid for chats; use logprobs for text completions"
TOP_LOG_PROBS = "top_log_probs"


_HUB_ID_WITH_REVISION = re.compile(r"(\w[\w.-]*/\w[\w.-]*)@\w[\w./-]*")
_HUB_CACHE_FOLDER = re.compile(r"models--([\w.-]+)--([\w.-]+)")


def model_names(model: str, others: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the names by which a request may call a model: the model as given comes first.

    Args:
        model: the model of a job or a server: a catalog name, a hub id, a folder or a GGUF file.
            A hub id is also known without its revision and without its organisation, a folder or
            file by its own name, a GGUF file without its ending, a snapshot in the hub's cache by
            the hub id.
        others: further names that the user allows.
    """
    hub_id = _HUB_ID_WITH_REVISION.fullmatch(model)
    path = Path(hub_id[1] if hub_id else model)
    names = [model, *others, *([hub_id[1]] if hub_id else []), path.name or path.resolve().name]
    if path.suffix.lower() == ".gguf":
        names.append(path.stem)
    for part in path.parts:
        if cached := _HUB_CACHE_FOLDER.fullmatch(part):
            names += [f"{cached[1]}/{cached[2]}", cached[2]]
    return tuple(dict.fromkeys(filter(None, names)))


def check_model(name: Any, names: Sequence[str]) -> None:
    """Check the `model` of a request against `names`, the result of `model_names`.

    None is a request that names no model, which is allowed. Case is ignored, as it is for catalog
    names.

    Raises:
        RowError: `model_not_found` for another model, `bad_option` for a value that is not text.
    """
    if name is None:
        return
    if not isinstance(name, str):
        raise RowError("bad_option", f"model must be text, got {shown(name)}")
    if name.casefold() not in {known.casefold() for known in names}:
        raise RowError(
            "model_not_found",
            f"model must be {shown(names[0])}, the model that runs here, got {shown(name)}; "
            f"to run such requests on it, add --served-model-name {shown(name)}",
        )


def is_batch_line(fields: Mapping[str, Any]) -> bool:
    return ID_FIELD in fields and ("url" in fields or "body" in fields)


def unwrap(
    line: Mapping[str, Any], models: Sequence[str] = (), endpoint: str | None = None
) -> dict[str, Any]:
    """The content and options of one line's request, under the names JSONL rows have, and
    TOP_LOG_PROBS, which those do not have.

    models: names of the model that runs (see `model_names`); () allows every name. endpoint: the
    only url allowed, and that of a line without one; None allows each that is known.

    Raises RowError: bad_body, missing_prompt, model_not_found, unsupported_url, unsupported_option.
    """
    if line.get("method") not in (None, "POST"):
        raise RowError("unsupported_option", f"method must be POST, got {shown(line['method'])}")
    body = line.get("body")
    if not isinstance(body, dict):
        raise RowError("bad_body", f"body must be an object, the request, got {shown(body)}")
    url = line.get("url")
    if endpoint is not None and url not in (None, endpoint):
        raise RowError(
            "unsupported_url",
            f"url must be {endpoint}, the endpoint of the batch, got {shown(url)}",
        )
    content_field = _content_field(endpoint or url, body)
    if body.get(content_field) is None:
        raise RowError("missing_prompt", f"the body has no {content_field}; give it some")
    if models:
        check_model(body.get("model"), models)
    known = {content_field, "model", *OPTION_FIELDS, *_LOG_PROBS}
    for name, value in body.items():
        if name not in known and not is_neutral(name, value):
            raise RowError("unsupported_option", _unsupported(name, value))
    kept = {name: body[name] for name in body if name == content_field or name in OPTION_FIELDS}
    top = _top_log_probs(body, is_chat=content_field == "messages")
    return kept if top is None else {**kept, TOP_LOG_PROBS: top}


def _top_log_probs(body: Mapping[str, Any], *, is_chat: bool) -> int | None:
    """SamplingParams.top_log_probs, which chats and texts ask for in different ways. Raises
    RowError."""
    asked, top = body.get("logprobs"), body.get("top_logprobs")
    if not is_chat:
        if top is not None:
            raise RowError("bad_option", _TOP_OF_TEXT)
        return _count("logprobs", asked) if asked is not None and asked is not False else None
    if not isinstance(asked, bool | None):
        raise RowError("bad_option", f"logprobs must be true or false, got {shown(asked)}")
    count = 0 if top is None else _count("top_logprobs", top)
    if count and not asked:
        raise RowError("bad_option", "top_logprobs needs logprobs: true")
    return count if asked else None


def _count(name: str, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_LOG_PROBS:
        return value
    raise RowError(
        "bad_option", f"{name} must be an integer from 0 to {MOST_LOG_PROBS}, got {shown(value)}"
    )


def _content_field(url: Any, body: Mapping[str, Any]) -> str:
    if url is None:
        return "prompt" if "prompt" in body else "messages"
    if not isinstance(url, str) or url not in _CONTENT_FIELD:
        raise RowError(
            "unsupported_url", f"url must be {' or '.join(_CONTENT_FIELD)}, got {shown(url)}"
        )
    return _CONTENT_FIELD[url]


def _unsupported(name: str, value: Any) -> str:
    neutral = NEUTRAL_VALUES.get(name)
    if not neutral:
        return f"{shown(name)} is not supported, got {shown(value)}; leave it out"
    allowed = " or ".join(json.dumps(each) for each in neutral)
    return f"{shown(name)} must be {allowed}, got {shown(value)}; other values are not supported"
