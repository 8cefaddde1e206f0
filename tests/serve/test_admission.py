"""Who may wait: what is refused for now, what for good, and which refusals are counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from servers import FAKE, Served, served, wait_until

MOST_ROWS, MOST_TOKENS = 2, 300
SECONDS_PER_TOKEN = 0.05


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Runs one row at a time and lets two wait."""
    state = str(tmp_path_factory.mktemp("state"))
    limits = ("--max-queue", str(MOST_ROWS), "--max-queue-tokens", str(MOST_TOKENS))
    options = (*limits, "--state", state, "--batching", "single", "--workers", "1")
    with served(*FAKE, *options, seconds_per_token=SECONDS_PER_TOKEN) as running:
        yield running


def asked(server: Served, **fields: Any) -> tuple[int, dict[str, Any]]:
    with server.client() as client:
        body = {"model": "fake", "prompt": "hello", "max_tokens": 2, **fields}
        answer = client.post("/v1/completions", json=body)
        return answer.status_code, answer.json()


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"n": 3, "temperature": 1.0}, "too_many_rows", "makes 3 rows"),
        ({"prompt": ["a", "b"], "n": 2, "temperature": 1.0}, "too_many_rows", "makes 4 rows"),
        ({"prompt": ["a", "b", "c"]}, "too_many_rows", "at most 2 may wait"),
        ({"prompt": ["a", "b"], "max_tokens": 150}, "too_many_tokens", "up to 302 tokens"),
    ],
    ids=str,
)
def test_what_could_never_wait_is_refused_for_good(
    server: Served, fields: dict[str, Any], code: str, said: str
) -> None:
    before = server.metric("packhorse_rows_refused_total")
    status, answer = asked(server, **fields)
    assert (status, answer["error"]["code"]) == (400, code)
    assert said in answer["error"]["message"]
    assert server.metric("packhorse_rows_refused_total") == before


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2, "temperature": 1.0},
        {"n": 8},
        {"prompt": ["a", "b"], "max_tokens": 149, "stop": list("aeiou ")},
        {"max_tokens": 400, "stop": list("aeiou ")},
    ],
    ids=str,
)
def test_what_just_fits_is_taken(server: Served, fields: dict[str, Any]) -> None:
    """Choices that cannot differ are one row; one row may have any number of tokens."""
    assert asked(server, **fields)[0] == 200


def test_rows_are_refused_to_clients_not_to_the_servers_own_batches(server: Served) -> None:
    refused = "packhorse_rows_refused_total"
    before = server.metric(refused)
    body = {"model": "fake", "prompt": "a text", "max_tokens": 20}
    line = {"method": "POST", "url": "/v1/completions", "body": body}
    rows = "\n".join(json.dumps({"custom_id": str(row), **line}) for row in range(12))
    with server.client() as client:
        upload = {"file": ("rows.jsonl", rows.encode())}
        file = client.post("/v1/files", data={"purpose": "batch"}, files=upload).json()["id"]
        asks = {"endpoint": "/v1/completions", "completion_window": "24h"}
        batch = client.post("/v1/batches", json={"input_file_id": file, **asks}).json()["id"]
        wait_until(lambda: server.metric("packhorse_waiting_rows") == MOST_ROWS)
        assert server.metric(refused) == before
        statuses = [asked(server, n=2, temperature=1.0)[0] for _ in range(3)]
        assert 429 in statuses
        assert server.metric(refused) == before + 2 * statuses.count(429)
        client.post(f"/v1/batches/{batch}/cancel")
