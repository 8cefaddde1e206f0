"""Requests drawn from our own OpenAPI document, right and wrong: none is answered with 5xx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis.core.result import Ok

from servers import FAKE, Served, served
from tiny_encoders import tiny_encoder

PROPER = hypothesis.settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_request_is_the_servers_fault(fake_server: Served, method: str) -> None:
    assert requests_answered(fake_server, method) >= 3 - (method == "POST")


@pytest.mark.slow
def test_no_request_for_embeddings_is_the_servers_fault(tmp_path: Path) -> None:
    encoder = tiny_encoder(tmp_path / "tiny-encoder")
    with served(*FAKE, "--embeddings", str(encoder)) as server:
        assert requests_answered(server, "POST", "/v1/embeddings") == 1


@pytest.mark.slow
def test_no_request_for_files_and_batches_is_the_servers_fault(tmp_path: Path) -> None:
    with served(*FAKE, "--state", str(tmp_path)) as server:
        for path, method, least in [
            ("/v1/files", "GET", 3),
            ("/v1/files", "DELETE", 1),
            ("/v1/batches", "GET", 2),
            ("/v1/batches", "POST", 2),
        ]:
            assert requests_answered(server, method, path) == least


def requests_answered(server: Served, method: str, path: str = "") -> int:
    """Sends requests of each operation of a method, or of one path; the number of operations."""
    schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
    seen = 0
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        if operation.method.upper() != method or path not in operation.path:
            continue

        @PROPER
        @hypothesis.given(case=operation.as_strategy())
        def answered(case: Any) -> None:
            answer = case.call()
            assert answer.status_code < 500, answer.text
            if answer.status_code >= 400:
                assert set(answer.json()) == {"error"}

        answered()
        seen += 1
    return seen
