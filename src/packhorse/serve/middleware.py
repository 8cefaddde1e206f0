"""What a request must be before anything looks at it: from an allowed host and origin, with a key
where keys are asked for, of a bounded size, sent in bounded time."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from packhorse.jobs.host_names import address_named, host_name
from packhorse.serve.config import RequestLimits
from packhorse.serve.documents import Owner
from packhorse.serve.errors import APIError
from packhorse.serve.prometheus import ServerMetrics

Scope = dict[str, Any]
Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/", "/health", "/health/live", "/health/ready"})
"""What needs no key: the page holds no data."""
UPLOADS = "/v1/files"
_DISCARDED_BYTES = 64 << 20
_DISCARDING_SECONDS = 1.0
_OWNER_CHARACTERS = 32


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """host: what the server listens on. keys: digests of the API keys, none where all may come.
    origins: of pages that may use the server beside its own, in lower case; "*" is every page."""

    host: str
    allowed_hosts: frozenset[str]
    keys: tuple[bytes, ...]
    limits: RequestLimits
    origins: frozenset[str] = frozenset()

    def problem(self, scope: Scope) -> APIError | None:
        """Why a request is refused by its headers alone."""
        headers = dict(scope["headers"])
        sizes = (len(name) + len(value) + 4 for name, value in scope["headers"])
        if (
            len(scope["raw_path"]) + len(scope["query_string"]) + sum(sizes)
            > self.limits.header_bytes
        ):
            return APIError(431, "headers_too_large", "the headers have too many bytes")
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._is_allowed_host(host):
            return _wrong_host(host)
        origin = headers.get(b"origin", b"").decode("latin-1")
        is_own = origin in ("", f"http://{host}", f"https://{host}")
        if not is_own and not self.cross_origin(scope):
            message = "pages of other sites may not use this server without --allow-origin"
            return APIError(403, "wrong_origin", message)
        if is_preflight(scope) and self.cross_origin(scope):
            return None
        if scope["path"] not in OPEN_PATHS and not self._has_key(headers):
            return APIError(401, "invalid_api_key", "an API key is needed: Authorization: Bearer …")
        return self._body_problem(scope, headers)

    def cross_origin(self, scope: Scope) -> str:
        """The allowed origin of another site's page that sends a request, "" for all others."""
        origin = dict(scope["headers"]).get(b"origin", b"").decode("latin-1")
        is_allowed = origin.lower() in self.origins or "*" in self.origins
        return origin if origin and is_allowed else ""

    def most_bytes(self, scope: Scope) -> int:
        return self.limits.upload_bytes if _is_upload(scope) else self.limits.body_bytes

    def _is_allowed_host(self, host: str) -> bool:
        """A page that has its own name resolve to this machine (DNS rebinding) sends its own name;
        an address cannot be taken over like that."""
        name = host_name(host)
        if name in self.allowed_hosts or name in ("localhost", self.host.lower()):
            return True
        return address_named(name) is not None

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        scheme, given = _authorization(headers)
        matches = [hmac.compare_digest(given, key) for key in self.keys]
        return not self.keys or (scheme == b"bearer" and any(matches))

    def owner(self, scope: Scope) -> Owner:
        """To whom files and batches of a request that was let in belong; None for everybody."""
        if not self.keys:
            return None
        _, given = _authorization(dict(scope["headers"]))
        return sha256(b"owner of files and batches:" + given).hexdigest()[:_OWNER_CHARACTERS]

    def _body_problem(self, scope: Scope, headers: dict[bytes, bytes]) -> APIError | None:
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return None
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self.most_bytes(scope):
            return _too_large(self.most_bytes(scope))
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        wanted = b"multipart/form-data" if _is_upload(scope) else b"application/json"
        has_body = length not in (b"", b"0") or b"transfer-encoding" in headers
        if has_body and kind != wanted:
            return APIError(415, "unsupported_media_type", f"send the body as {wanted.decode()}")
        return None


class AccessMiddleware:
    """ASGI middleware around an application; it counts responses too."""

    def __init__(
        self, application: Application, policy: AccessPolicy, metrics: ServerMetrics
    ) -> None:
        self._application, self._policy, self._metrics = application, policy, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        counted = self._counting(scope, send)
        scope.setdefault("state", {})["owner"] = self._policy.owner(scope)
        problem = self._policy.problem(scope)
        try:
            if problem is not None:
                raise problem
            if is_preflight(scope) and self._policy.cross_origin(scope):
                await _respond_preflight(scope, counted)
                return
            if _is_upload(scope):
                upload = Upload(receive, counted, self._policy.limits)
                await self._application(scope, upload.receive, upload.send)
                return
            whole = await self._read_whole(scope, receive)
        except APIError as refusal:
            if refusal.status == 413:
                await _discard(receive)
            await respond(refusal, counted)
            return
        await self._application(scope, whole, counted)

    async def _read_whole(self, scope: Scope, receive: Receive) -> Receive:
        """What the application receives: a body that is read already, within limits."""
        most = self._policy.most_bytes(scope)
        try:
            async with asyncio.timeout(self._policy.limits.body_seconds):
                body = await _read(receive, most)
        except TimeoutError:
            raise _too_slow() from None
        unread = [body]

        async def replay() -> Event:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            return await receive()

        return replay

    def _counting(self, scope: Scope, send: Send) -> Send:
        async def counted(event: Event) -> None:
            if event["type"] == "http.response.start":
                route = scope.get("route")
                path = getattr(route, "path", "unknown")
                self._metrics.responses.labels(path, str(event["status"])).inc()
                origin = self._policy.cross_origin(scope)
                shared = _cors_headers(origin) if origin else []
                event["headers"] = [*event.get("headers", []), *_ALWAYS, *shared]
            await send(event)

        return counted


class Upload:
    """A body that is passed on as it comes, within limits; the time that whoever takes it lets it
    wait does not count before its first part."""

    def __init__(self, receive: Receive, send: Send, limits: RequestLimits) -> None:
        self._receive, self._send, self._bounds = receive, send, limits
        self._taken, self._is_whole, self._has_begun = 0, False, False
        self._started = 0.0

    async def receive(self) -> Event:
        """Raises APIError for a body that is too large, that ends early, or that comes too slowly:
        with a pause, or in all."""
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout(self._seconds_left()):
                event = await self._receive()
        except TimeoutError:
            raise _too_slow() from None
        if event["type"] != "http.request":
            raise _incomplete()
        self._taken += len(event.get("body", b""))
        if self._taken > self._bounds.upload_bytes:
            raise _too_large(self._bounds.upload_bytes)
        self._is_whole = not event.get("more_body")
        return event

    async def send(self, event: Event) -> None:
        if event["type"] == "http.response.start" and not self._is_whole:
            await _discard(self._receive)
        await self._send(event)

    def _seconds_left(self) -> float:
        now = asyncio.get_running_loop().time()
        if not self._has_begun:
            self._has_begun, self._started = True, now
        limits = self._bounds
        in_all = limits.body_seconds + self._taken / limits.upload_bytes_per_second
        return min(limits.body_seconds, self._started + in_all - now)


async def respond(problem: APIError, send: Send) -> None:
    body = json.dumps(problem.to_json()).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **problem.headers(),
    }
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def is_origin(text: str) -> bool:
    """Whether a text is "*" or an origin as browsers send it: scheme, host and port."""
    return text == "*" or re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+", text, re.I) is not None


def is_preflight(scope: Scope) -> bool:
    """Whether a browser asks if a page may send a request (CORS)."""
    headers = dict(scope["headers"])
    return scope["method"] == "OPTIONS" and b"access-control-request-method" in headers


async def _respond_preflight(scope: Scope, send: Send) -> None:
    """Allow the headers that are asked for: a key is checked with the request itself."""
    asked = dict(scope["headers"]).get(b"access-control-request-headers", b"")
    headers = [
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        (b"access-control-allow-headers", asked),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _cors_headers(origin: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", b"retry-after"),
        (b"vary", b"origin"),
    ]


async def _read(receive: Receive, most: int) -> bytes:
    body = bytearray()
    while True:
        event = await receive()
        if event["type"] != "http.request":
            raise _incomplete()
        body += event.get("body", b"")
        if len(body) > most:
            raise _too_large(most)
        if not event.get("more_body"):
            return bytes(body)


async def _discard(receive: Receive) -> None:
    """Takes what is still coming, for a while: a connection that is closed on data that was not
    read loses the answer."""
    left = _DISCARDED_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARDING_SECONDS):
            while left > 0:
                event = await receive()
                left -= len(event.get("body", b""))
                if not event.get("more_body"):
                    return


def _is_upload(scope: Scope) -> bool:
    return bool(scope["path"] == UPLOADS and scope["method"] == "POST")


def _authorization(headers: dict[bytes, bytes]) -> tuple[bytes, bytes]:
    """The scheme, in lower case, and the digest of the key that a request brings."""
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    return scheme.lower(), sha256(given.strip()).digest()


def _wrong_host(host: str) -> APIError:
    """The name is shown as far as it is printable ASCII: it is the client's text."""
    name = "".join(each if "!" <= each <= "~" else "?" for each in host_name(host))
    if not name:
        return APIError(421, "wrong_host", "the request has no Host header; send one")
    message = (
        f"this server does not answer to the name {name:.128}; if it is to, start it with "
        f"--allow-host {name:.128}"
    )
    return APIError(421, "wrong_host", message)


def _incomplete() -> APIError:
    return APIError(400, "incomplete_body", "the request ended before its body")


def _too_large(most: int) -> APIError:
    return APIError(413, "body_too_large", f"the body has more than {most:,} bytes")


def _too_slow() -> APIError:
    return APIError(408, "request_timeout", "the body took too long")


_ALWAYS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
