"""API keys own files and batches; what a batch may hold."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from in_process import Local, batch_line, local, running
from packhorse.serve.app import application
from packhorse.serve.config import ServeConfig

KEYS = ("key-one", "key-two")


def client_of(server: Local, key: str) -> httpx.AsyncClient:
    config = ServeConfig("fake", api_keys=KEYS)
    app = application(config, server.batches.service, server.metrics, server.batches, None)
    transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
    headers = {"authorization": f"Bearer {key}"}
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)


async def ids(client: httpx.AsyncClient, path: str) -> list[str]:
    return [each["id"] for each in (await client.get(path)).json()["data"]]


async def upload(client: httpx.AsyncClient, *lines: dict[str, Any]) -> str:
    content = "\n".join(map(json.dumps, lines)).encode()
    files = {"file": ("rows.jsonl", content)}
    answer = await client.post("/v1/files", files=files, data={"purpose": "batch"})
    assert "owner" not in answer.json()
    return str(answer.json()["id"])


def asked(file: str, endpoint: str = "/v1/completions") -> dict[str, str]:
    return {"input_file_id": file, "endpoint": endpoint, "completion_window": "24h"}


@pytest.mark.slow
def test_files_and_batches_belong_to_a_key(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as server:
            one, two = (client_of(server, key) for key in KEYS)
            async with one, two:
                file = await upload(one, batch_line(1, prompt="a"))
                batch = (await one.post("/v1/batches", json=asked(file))).json()
                ended = await server.ended(batch["id"])
                output = ended["output_file_id"]
                assert sorted(await ids(one, "/v1/files")) == sorted([file, output])
                assert await ids(one, "/v1/batches") == [batch["id"]]
                assert (await one.get(f"/v1/files/{output}/content")).status_code == 200
                for listing in ("/v1/files", "/v1/batches"):
                    assert await ids(two, listing) == []
                for method, path in (
                    ("GET", f"/v1/files/{file}"),
                    ("GET", f"/v1/files/{output}/content"),
                    ("DELETE", f"/v1/files/{file}"),
                    ("GET", f"/v1/batches/{batch['id']}"),
                    ("POST", f"/v1/batches/{batch['id']}/cancel"),
                ):
                    answer = await two.request(method, path)
                    assert answer.status_code == 404, (method, path)
                assert (await two.post("/v1/batches", json=asked(file))).status_code == 404
            async with server.client() as everybody:  # of a server that asks for no key
                assert len(await ids(everybody, "/v1/files")) == 2
                assert await ids(everybody, "/v1/batches") == [batch["id"]]
                assert "owner" not in (await everybody.get(f"/v1/batches/{batch['id']}")).json()
        documents = [path.read_text() for path in tmp_path.rglob("*.json")]
        assert documents
        assert not any(key in document for key in KEYS for document in documents)

    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_running_batch_is_hidden_from_other_keys(tmp_path: Path) -> None:
    async def test() -> None:
        server = local(tmp_path)
        one, two = (client_of(server, key) for key in KEYS)
        async with one, two:
            file = await upload(one, batch_line(1, prompt="a"))
            batch = (await one.post("/v1/batches", json=asked(file))).json()["id"]
            assert (await one.get(f"/v1/batches/{batch}")).json()["status"] == "validating"
            assert (await two.get(f"/v1/batches/{batch}")).status_code == 404
            assert (await two.delete(f"/v1/files/{file}")).status_code == 404
            assert (await one.delete(f"/v1/files/{file}")).status_code == 409

    asyncio.run(asyncio.wait_for(test(), 60))


def test_documents_without_an_owner_are_everybodys(tmp_path: Path) -> None:
    async def test() -> None:
        server = local(tmp_path)
        async with server.client() as client:
            file = await upload(client, batch_line(1, prompt="a"))
        async with client_of(server, KEYS[1]) as keyed:
            assert await ids(keyed, "/v1/files") == [file]
            assert (await keyed.delete(f"/v1/files/{file}")).status_code == 200

    asyncio.run(test())


@pytest.mark.parametrize(
    "line",
    [
        {"id": 1, "prompt": "a plain row"},
        {"prompt": "a", "url": "/v1/completions"},
        ["a", "list"],
        {"custom_id": "1"},
    ],
)
def test_a_file_that_is_no_batch_is_refused(tmp_path: Path, line: Any) -> None:
    async def test() -> None:
        server = local(tmp_path)
        async with server.client() as client:
            file = await upload(client, line)
            answer = await client.post("/v1/batches", json=asked(file))
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, "input_file_id")
            assert (
                f"{file} is no batch: a line must be an object with custom_id" in error["message"]
            )
            assert await ids(client, "/v1/batches") == []

    asyncio.run(test())


def test_lines_of_another_endpoint_or_model_fail_alone(tmp_path: Path) -> None:
    """As the same body is refused when it comes live."""
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]}
    lines = [
        batch_line(0, prompt="a", max_tokens=2),
        batch_line(1, "/v1/chat/completions", **chat),
        batch_line(2, prompt="a", model="another"),
        batch_line(3, prompt="a", model="FAKE"),
        {key: value for key, value in batch_line(4, prompt="a").items() if key != "url"},
        batch_line(5, "/v1/embeddings", input="a"),
        batch_line(6, prompt="a", model=7),
        {key: value for key, value in batch_line(7, **chat).items() if key != "url"},
    ]

    async def test() -> None:
        async with running(tmp_path) as server, server.client() as client:
            file = await upload(client, *lines)
            batch = (await client.post("/v1/batches", json=asked(file))).json()
            ended = await server.ended(batch["id"])
            completed = server.rows_of(ended["output_file_id"])
            assert [row["custom_id"] for row in completed] == ["0", "3", "4"]
            failed = {
                row["custom_id"]: row["error"] for row in server.rows_of(ended["error_file_id"])
            }
            assert {key: error["code"] for key, error in failed.items()} == {
                "1": "unsupported_url",
                "2": "model_not_found",
                "5": "unsupported_url",
                "6": "bad_option",
                "7": "missing_prompt",
            }
            assert "the endpoint of the batch" in failed["1"]["message"]

    asyncio.run(asyncio.wait_for(test(), 60))
