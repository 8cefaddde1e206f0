"""Lines of an OpenAI batch file: the request is the `body` of an envelope with a `custom_id`.

A field of the body is supported, has no effect, or has a value without effect. Any other field
makes the row a Failure; nothing that would change a completion is dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from packhorse.openai_format.prompt_fields import PROMPT_FIELDS
from packhorse.openai_format.request_fields import (
    LOG_PROB_FIELDS,
    NEUTRAL_VALUES,
    OPTION_FIELDS,
    is_neutral,
)
from packhorse.openai_format.row_errors import RowError, format_value

ID_FIELD = "custom_id"
_CONTENT_FIELD = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}

_HUB_ID_WITH_REVISION = re.compile(r"(\w[\w.-]*/\w[\w.-]*)@\w[\w./-]*")
_HUB_CACHE_FOLDER = re.compile(r"models--([\w.-]+)--([\w.-]+)")


def model_names(model: str, others: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the names that requests may use for a model: the model as given comes first.

    Args:
        model: The model of a job or a server: a catalog name, a hub id, a folder or a GGUF file.
            A hub id is also known without its revision and without its organisation, a folder or
            file by its own name, a GGUF file without its suffix, a snapshot in the hub's cache by
            the hub id.
        others: Further names that the user allows.
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

    None is a request without a model, which is allowed. Case is ignored, as in catalog names.

    Raises:
        RowError: `model_not_found` for another model, `bad_option` for a value that is not text.
    """
    if name is None:
        return
    if not isinstance(name, str):
        raise RowError("bad_option", f"model must be text, got {format_value(name)}")
    if name.casefold() not in {known.casefold() for known in names}:
        raise RowError(
            "model_not_found",
            f"model must be {format_value(names[0])}, the model that runs here, got "
            f"{format_value(name)}; to run such requests on it, add --served-model-name "
            f"{format_value(name)}",
        )


def is_batch_line(fields: Mapping[str, Any]) -> bool:
    return ID_FIELD in fields and ("url" in fields or "body" in fields)


def read_body(
    line: Mapping[str, Any], models: Sequence[str] = (), endpoint: str | None = None
) -> dict[str, Any]:
    """Return the content field and the option fields of one line's request, not yet validated.

    Args:
        line: The envelope: `body`, and optionally `url` and `method`.
        models: Names of the model that runs (see `model_names`); () allows every name.
        endpoint: The only `url` allowed, and that of a line without one; None allows every known
            one.

    Raises:
        RowError: `bad_body`, `missing_prompt`, `model_not_found`, `unsupported_url` or
            `unsupported_option`.
    """
    if line.get("method") not in (None, "POST"):
        raise RowError(
            "unsupported_option", f"method must be POST, got {format_value(line['method'])}"
        )
    body = line.get("body")
    if not isinstance(body, dict):
        raise RowError("bad_body", f"body must be an object, the request, got {format_value(body)}")
    url = line.get("url")
    if endpoint is not None and url not in (None, endpoint):
        raise RowError(
            "unsupported_url",
            f"url must be {endpoint}, the endpoint of the batch, got {format_value(url)}",
        )
    content_field = _content_field(endpoint or url, body)
    if body.get(content_field) is None:
        raise RowError("missing_prompt", f"the body has no {content_field}; add one")
    if models:
        check_model(body.get("model"), models)
    supported = {content_field} | OPTION_FIELDS | LOG_PROB_FIELDS
    if content_field == "messages":
        supported |= PROMPT_FIELDS
    for name, value in body.items():
        if name not in supported and not is_neutral(name, value):
            raise RowError("unsupported_option", _unsupported(name, value))
    return {name: value for name, value in body.items() if name in supported}


def _content_field(url: Any, body: Mapping[str, Any]) -> str:
    if url is None:
        return "prompt" if "prompt" in body else "messages"
    if not isinstance(url, str) or url not in _CONTENT_FIELD:
        raise RowError(
            "unsupported_url", f"url must be {' or '.join(_CONTENT_FIELD)}, got {format_value(url)}"
        )
    return _CONTENT_FIELD[url]


def _unsupported(name: str, value: Any) -> str:
    neutral = NEUTRAL_VALUES.get(name)
    if not neutral:
        return f"{format_value(name)} is not supported, got {format_value(value)}; leave it out"
    allowed = " or ".join(json.dumps(each) for each in neutral)
    return (
        f"{format_value(name)} must be {allowed}, got {format_value(value)}; "
        "other values are not supported"
    )
