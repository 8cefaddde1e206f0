"""What a client is told when it gets no answer, in the shape OpenAI's clients know."""

from __future__ import annotations

from typing import Any

from packhorse.data import Failure

_OF_FAILURES = {
    "prompt_too_long": (400, "context_length_exceeded"),
    "empty_prompt": (400, "empty_prompt"),
    "out_of_memory": (503, "out_of_memory"),
    "engine_restarted": (503, "engine_restarted"),
    "engine_unavailable": (503, "engine_unavailable"),
    "shutting_down": (503, "shutting_down"),
}
_BY_THE_CLIENT = frozenset({"bad_option", "no_chat_template", "chat_template"})


class APIError(Exception):
    """An answer of 4xx or 5xx.

    code: a short stable word. param: the field of the request that is wrong. retry_after: seconds
    after which trying again may help.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(_encodable(message))
        self.status = status
        self.code = code
        self.param = param if param is None else _encodable(param)
        self.retry_after = retry_after

    def to_json(self) -> dict[str, Any]:
        kind = "invalid_request_error"
        if self.status in (401, 403):
            kind = "authentication_error" if self.status == 401 else "permission_error"
        elif self.status == 429:
            kind = "rate_limit_error"
        elif self.status >= 500:
            kind = "server_error"
        return {
            "error": {
                "message": str(self),
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """Headers beside the body. What cannot be waited for closes the connection."""
        headers = {"cache-control": "no-store"}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.status in (408, 413):
            headers["connection"] = "close"
        return headers


def _encodable(text: str) -> str:
    """Text with half surrogate pairs escaped: a client's may hold some, UTF-8 has none."""
    return text.encode("utf-8", "backslashreplace").decode()


def of_failure(failure: Failure, retry_after: int = 1) -> APIError:
    """What becomes of a row that got no completion."""
    usual = (400, failure.code) if failure.code in _BY_THE_CLIENT else (500, "engine_error")
    status, code = _OF_FAILURES.get(failure.code, usual)
    message = failure.message
    if code == "engine_error":
        message = "the engine failed on this request"
    return APIError(status, code, message, retry_after=retry_after if status == 503 else None)
