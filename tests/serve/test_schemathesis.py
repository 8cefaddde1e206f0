"""Requests drawn from our own OpenAPI document, right and wrong: none is answered with 5xx."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis.core.result import Ok

from servers import Served

PROPER = hypothesis.settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_request_is_the_servers_fault(fake_server: Served, method: str) -> None:
    schema = schemathesis.openapi.from_url(f"{fake_server.address}/openapi.json")
    seen = 0
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        if operation.method.upper() != method:
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
    assert seen >= 3
