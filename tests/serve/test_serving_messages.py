"""Messages that a chat template does not write: refused to the client, never left out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import chat_template_shapes as shapes
import tiny_models
from servers import Served, served

pytestmark = pytest.mark.slow  # its servers load a model

HI = {"role": "user", "content": "hi"}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tiny_models.tiny_llama(tmp_path_factory.mktemp("models") / "tiny")
    slow = (
        "{% if messages | length == 7 %}{% set x = 10 ** (10 ** (9 + messages | length)) %}"
        "{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(slow + shapes.KNOWN_ROLES_ONLY)
    state = str(folder.parent / "state")
    with served(
        str(folder), "--max-new-tokens", "2", "--name", "tiny", "--state", state
    ) as running:
        yield running


def asked(client: httpx.Client, *messages: dict[str, Any]) -> httpx.Response:
    body = {"model": "tiny", "messages": list(messages)}
    return client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ((HI, {"role": "tool", "content": "42"}), "message 2 has role 'tool'"),
        ((HI, {"role": "banana", "content": "a"}), "message 2 has role 'banana'"),
        (({"role": "System", "content": "x"}, HI), "did you mean system?"),
        ((HI, CALL, HI), "tool calls"),
        ((HI,) * 7, "seconds of processor time"),
    ],
)
def test_what_is_not_written_is_refused(
    server: Served, messages: tuple[dict[str, Any], ...], said: str
) -> None:
    with server.client() as client:
        answer = asked(client, *messages)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert said in error["message"]
        assert (error["code"], error["param"]) == ("chat_template", "messages")
        assert asked(client, HI).status_code == 200


def test_a_developer_speaks_as_the_system(server: Served) -> None:
    with server.client() as client:
        tokens = [
            asked(client, {"role": role, "content": "Be brief."}, HI).json()["usage"]
            for role in ("developer", "system")
        ]
    assert tokens[0]["prompt_tokens"] == tokens[1]["prompt_tokens"]


def test_lines_of_a_batch_are_refused_alike(server: Served) -> None:
    def line(name: str, *messages: dict[str, Any], **fields: Any) -> str:
        body = {"model": "tiny", "messages": list(messages), **fields}
        request = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
        return json.dumps(request) + "\n"

    lines = [
        line("good", HI),
        line("role", HI, {"role": "banana", "content": "a"}),
        line("option", HI, tool_choice="required"),
        line("neutral", HI, chat_template_kwargs={}, tools=[], response_format={"type": "text"}),
    ]
    with server.client() as client:
        upload = {"file": ("in.jsonl", "".join(lines))}
        file = client.post("/v1/files", files=upload, data={"purpose": "batch"}).json()["id"]
        body = {
            "input_file_id": file,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        batch = client.post("/v1/batches", json=body).json()
        deadline = time.monotonic() + 60
        while batch["status"] != "completed" and time.monotonic() < deadline:
            time.sleep(0.05)
            batch = client.get(f"/v1/batches/{batch['id']}").json()
        done = client.get(f"/v1/files/{batch['output_file_id']}/content").text
        failed = client.get(f"/v1/files/{batch['error_file_id']}/content").text
    assert {json.loads(each)["custom_id"] for each in done.splitlines()} == {"good", "neutral"}
    assert "message 2 has role 'banana'" in failed
    assert "tool_choice" in failed
