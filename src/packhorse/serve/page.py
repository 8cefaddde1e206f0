"""The page at `/` and the document it watches."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from packhorse.profiling.run_metrics import quantile
from packhorse.serve import schemas
from packhorse.serve.service import Service


def page_routes(service: Service) -> APIRouter:
    """The page holds no data and needs no key; what it shows comes from `/status`, which does."""
    router = APIRouter(responses=schemas.ERRORS)
    html = files("packhorse.serve").joinpath("page.html").read_text(encoding="utf-8")
    headers = {"content-security-policy": content_security_policy(html)}

    @router.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    @router.get("/status")
    async def status() -> dict[str, Any]:
        return status_document(service)

    return router


def content_security_policy(html: str) -> str:
    """Allows the page's own style and script by their hashes, requests to its own server, nothing
    else. Bars of a chart get their height through the script, which needs no exception."""

    def hashes(tag: str) -> str:
        contents = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests = (b64encode(sha256(each.encode()).digest()).decode() for each in contents)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def status_document(service: Service) -> dict[str, Any]:
    """What the server does now; latencies are of the last rows that ended (seconds)."""
    supervisor, recent = service.supervisor, service.supervisor.metrics.recent
    loaded = supervisor.loaded
    return {
        "model": service.name,
        "state": supervisor.state,
        "engine": loaded.description if loaded else "",
        "waiting_rows": len(supervisor.waiting),
        "waiting_tokens": supervisor.waiting.tokens,
        "running_rows": supervisor.rows_running,
        "generated_tokens": recent.generated_tokens,
        "batch_rows": list(recent.batch_rows),
        "first_seconds": _quantiles(list(recent.first_seconds)),
        "row_seconds": _quantiles(list(recent.row_seconds)),
    }


def _quantiles(values: list[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    return {"p50": quantile(ordered, 0.5), "p95": quantile(ordered, 0.95)}
