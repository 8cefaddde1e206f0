"""HTTP client of the load test: send requests when they are due and record the results."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from packhorse.data import Request, as_messages
from packhorse.errors import ConfigError, InputError
from packhorse.jobs.host_names import is_this_machine
from packhorse.openai_format.prompt_fields import write_prompt_options
from packhorse.openai_format.request_fields import write_options

_CHATS, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_IDLE_SECONDS = 2.0
"""Idle time after which a connection is not reused. Servers close idle connections after about 5 s,
and a request sent at that moment would be lost."""
_DONE = object()


@dataclass(frozen=True, slots=True)
class RequestResult:
    """Result of one request. Times are in seconds since the start of the trial.

    Attributes:
        due: when it was scheduled.
        sent: when it was sent.
        first_token: when the first text arrived; None if none did.
        finished: when the response ended; None if the request failed.
        tokens: generated tokens as counted by the server; None if it does not report them.
        error: error code or kind of failure; "" if there was none.
    """

    due: float
    sent: float
    first_token: float | None
    finished: float | None
    tokens: int | None
    error: str


def poisson_arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Return `count` arrival times of a Poisson process of `rate` per second, from 0 (seconds)."""
    if math.isinf(rate):
        return [0.0] * count
    chance = random.Random(seed)  # noqa: S311 - repeatable arrivals, not secrecy
    gaps = [chance.expovariate(rate) for _ in range(count - 1)]
    return list(accumulate(gaps, initial=0.0))


def request_body(
    request: Request,
    model: str,
    max_new_tokens: int | None,
    *,
    system: str | None = None,
    has_chat_template: bool = True,
) -> tuple[str, dict[str, Any]]:
    """Return the path and body of the request that matches a row of `packhorse run`.

    Args:
        request: the row.
        model: the name of the model on the server.
        max_new_tokens: for rows that set none; None leaves it to the server.
        system: message put before chats that have no system message.
        has_chat_template: whether the model has one. If so, a plain prompt is sent as a chat, else
            as text to complete.
    """
    content = request.content
    is_plain_chat = isinstance(content, str) and has_chat_template and not request.bare
    is_chat = request.is_chat or is_plain_chat
    options = write_options(request.options, is_chat=is_chat)
    if max_new_tokens is not None:
        options.setdefault("max_tokens", max_new_tokens)
    shared = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    if not is_chat:
        return _COMPLETIONS, {**options, **shared, "prompt": content}
    options |= write_prompt_options(request.prompt_options)
    messages = [dict(each) for each in as_messages(content)]
    if system is not None and messages[0].get("role") not in ("system", "developer"):
        messages.insert(0, {"role": "system", "content": system})
    return _CHATS, {**options, **shared, "messages": messages}


def client_for(url: str, api_key: str | None, timeout_seconds: float) -> httpx.AsyncClient:
    """Return a client of the server at `url`.

    Proxies from the environment are used, but never for this machine itself.

    Raises:
        InputError: `url` is invalid.
        ConfigError: the proxy cannot be used.
    """
    host = host_of(url)
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx.Limits(
        max_connections=None, max_keepalive_connections=64, keepalive_expiry=_IDLE_SECONDS
    )
    try:
        return httpx.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=timeout_seconds,
            limits=limits,
            trust_env=not is_this_machine(host),
        )
    except (ImportError, ValueError) as error:  # of a proxy of the environment
        needs = " needs the package socksio" if isinstance(error, ImportError) else f": {error}"
        raise ConfigError(
            f"the proxy {proxy_for(url) or 'of the environment'} cannot be used{needs}",
            f"pip install 'httpx[socks]', correct the variable, or set NO_PROXY={host}",
        ) from error


def host_of(url: str) -> str:
    """Return the host of a server's URL. Raises InputError if the URL is invalid."""
    try:
        httpx.URL(url)
        return urlsplit(url).hostname or ""
    except (ValueError, httpx.InvalidURL) as error:
        raise InputError(
            f"{url!r} is no address of a server: {error}", "give one such as http://127.0.0.1:8000"
        ) from error


def proxy_for(url: str) -> str | None:
    """Return the proxy from the environment that applies to `url`, without its password."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_this_machine(host) or proxy_bypass(host):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return None if proxy is None else re.sub("//[^/@]*@", "//", proxy)


async def served_model(client: httpx.AsyncClient) -> str:
    """Return the name of the served model. Raises InputError if no server answers."""
    try:
        answer = await client.get("/v1/models")
        answer.raise_for_status()
        return str(answer.json()["data"][0]["id"])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
        url = str(client.base_url)
        what = str(error) or type(error).__name__
        if (proxy := proxy_for(url)) is not None:
            raise InputError(
                f"no server to be tested answers at {url} through the proxy {proxy}: {what}",
                f"check the proxy, or set NO_PROXY={host_of(url)} to do without it",
            ) from error
        raise InputError(
            f"no server to be tested answers at {url}: {what}",
            "start one with packhorse serve, and give its address, such as http://127.0.0.1:8000",
        ) from error


async def has_chat_template(client: httpx.AsyncClient, model: str) -> bool:
    """Return False if the server reports no chat template; sends a request for one token."""
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": model, "messages": messages, "max_tokens": 1}
    try:
        answer = await client.post(_CHATS, json=body)
    except httpx.HTTPError:
        return True
    return not _error_code(answer).endswith(" no_chat_template")


async def send_all(
    client: httpx.AsyncClient, bodies: Sequence[tuple[str, dict[str, Any]]], due: Sequence[float]
) -> list[RequestResult]:
    """Send one request per time in `due`, cycling through `bodies`; return results in order."""
    started = time.monotonic()

    async def at(number: int) -> RequestResult:
        await asyncio.sleep(due[number] - (time.monotonic() - started))
        path, body = bodies[number % len(bodies)]
        return await _send(client, path, body, due[number], started)

    return list(await asyncio.gather(*(at(number) for number in range(len(due)))))


async def _send(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], due: float, started: float
) -> RequestResult:
    def now() -> float:
        return time.monotonic() - started

    sent = now()
    first: float | None = None
    tokens: int | None = None
    try:
        async with client.stream("POST", path, json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                return RequestResult(due, sent, None, None, None, _error_code(answer))
            async for event in _events(answer):
                if event is _DONE:
                    return RequestResult(due, sent, first, now(), tokens, "")
                if "error" in event:
                    return RequestResult(
                        due, sent, first, None, tokens, str(event["error"]["code"])
                    )
                if first is None and _has_text(event):
                    first = now()
                if event.get("usage"):
                    tokens = _count(event["usage"]["completion_tokens"])
    except httpx.HTTPError as error:
        return RequestResult(due, sent, first, None, tokens, type(error).__name__)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return RequestResult(due, sent, first, None, tokens, "malformed_stream")
    return RequestResult(due, sent, first, None, tokens, "incomplete_stream")


async def _events(answer: httpx.Response) -> Any:
    """Documents of a stream of server-sent events, and _DONE at its orderly end."""
    async for line in answer.aiter_lines():
        if line == "data: [DONE]":
            yield _DONE
        elif line.startswith("data: "):
            yield json.loads(line[6:])


def _count(value: Any) -> int:
    """Raises TypeError, ValueError for what is no number of tokens."""
    if not isinstance(value, int):
        raise TypeError
    if value < 0:
        raise ValueError
    return value


def _has_text(event: dict[str, Any]) -> bool:
    for choice in event.get("choices", ()):
        if (
            choice.get("finish_reason")
            or choice.get("text")
            or choice.get("delta", {}).get("content")
        ):
            return True
    return False


def _error_code(answer: httpx.Response) -> str:
    try:
        return f"{answer.status_code} {answer.json()['error']['code']}"
    except (ValueError, LookupError, TypeError, RecursionError):
        return str(answer.status_code)
