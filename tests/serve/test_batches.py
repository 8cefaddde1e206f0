"""Files and batches through OpenAI's own client; the journal behind them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import packhorse
from packhorse import EngineConfig
from packhorse.serve.batch_rows import MAX_ATTEMPTS
from servers import FAKE, Served, served, wait_until


def line(number: int, **body: Any) -> dict[str, Any]:
    url = "/v1/completions"
    request = {"model": "fake", "prompt": f"row {number}", "max_tokens": 20, **body}
    return {"custom_id": f"id-{number}", "method": "POST", "url": url, "body": request}


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, lines)).encode()


def client_of(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)


def begun(client: openai.OpenAI, lines: list[dict[str, Any]]) -> str:
    file = client.files.create(file=("rows.jsonl", jsonl(lines)), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    ).id


def ended(client: openai.OpenAI, batch: str) -> Any:
    found: list[Any] = []

    def has_ended() -> bool:
        found.append(client.batches.retrieve(batch))
        return found[-1].status in ("completed", "failed", "cancelled")

    wait_until(has_ended, seconds=60)
    return found[-1]


def counts(client: openai.OpenAI, batch: str) -> Any:
    return client.batches.retrieve(batch).request_counts


def rows_of(client: openai.OpenAI, file: str | None) -> list[dict[str, Any]]:
    assert file is not None
    return [json.loads(each) for each in client.files.content(file).text.splitlines()]


def assert_counts_agree(client: openai.OpenAI, batch: Any) -> None:
    """The files hold what was counted: completed rows the one, failed rows the other."""
    files = ((batch.output_file_id, "completed"), (batch.error_file_id, "failed"))
    for file, name in files:
        count = getattr(batch.request_counts, name)
        assert (file is not None) == (count > 0)
        if file is not None:
            assert len(rows_of(client, file)) == count


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(*FAKE, "--state", str(tmp_path_factory.mktemp("state"))) as running:
        yield running


def test_a_batch_has_every_row_once_in_order(server: Served) -> None:
    client = client_of(server)
    lines = [*(line(number) for number in range(80)), line(80, tools=[{"type": "function"}])]
    batch = ended(client, begun(client, lines))
    assert (batch.status, batch.request_counts.total) == ("completed", 81)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (80, 1)
    assert_counts_agree(client, batch)
    rows = rows_of(client, batch.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"id-{number}" for number in range(80)]
    assert {row["error"] for row in rows} == {None}
    with packhorse.load("fake", engine=EngineConfig(engine="fake")) as model:
        prompts = [f"row {number}" for number in range(80)]
        texts = {
            answer.index: answer.text
            for answer in model.generate(prompts, max_new_tokens=20)
            if isinstance(answer, packhorse.Completion)
        }
    got = [row["response"]["body"]["choices"][0]["text"] for row in rows[:80]]
    assert got == [texts[number] for number in range(80)]
    (failed,) = rows_of(client, batch.error_file_id)
    assert (failed["custom_id"], failed["response"]) == ("id-80", None)
    assert failed["error"]["code"] == "unsupported_option"
    assert "tools" in failed["error"]["message"]
    name = client.files.retrieve(batch.error_file_id or "").filename
    assert name == f"{batch.id}_error.jsonl"


def test_a_batch_without_a_failure_or_without_an_answer(server: Served) -> None:
    client = client_of(server)
    fine = ended(client, begun(client, [line(1), line(2)]))
    assert (fine.status, fine.error_file_id) == ("completed", None)
    too_long = [line(number, max_tokens=100_000) for number in range(3)]
    wrong = ended(client, begun(client, [*too_long, line(3, logprobs=99)]))
    assert (wrong.status, wrong.output_file_id) == ("completed", None)
    codes = [row["error"]["code"] for row in rows_of(client, wrong.error_file_id)]
    assert codes == ["bad_option"] * 4
    for batch in (fine, wrong):
        assert_counts_agree(client, batch)
        assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at


def test_log_probs_of_a_batch(server: Served) -> None:
    client = client_of(server)
    batch = ended(client, begun(client, [line(1, logprobs=2), line(2)]))
    bodies = [row["response"]["body"] for row in rows_of(client, batch.output_file_id)]
    live = client.completions.create(model="fake", prompt="row 1", max_tokens=20, logprobs=2)
    told = live.choices[0].logprobs
    assert told is not None
    assert bodies[0]["choices"][0]["logprobs"] == told.to_dict()
    assert bodies[1]["choices"][0]["logprobs"] is None


def test_files_can_be_listed_and_removed(server: Served) -> None:
    client = client_of(server)
    file = client.files.create(file=("../../x.jsonl", b"{}\n"), purpose="batch")
    assert (file.bytes, file.filename) == (3, "../../x.jsonl")
    assert client.files.content(file.id).read() == b"{}\n"
    assert file.id in [each.id for each in client.files.list()]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/files/absent", 404),
        ("/v1/files/..%2F..%2Flock/content", 404),
        ("/v1/files/file-000000000000000000000000", 404),
        ("/v1/batches/batch_0", 404),
    ],
)
def test_names_that_are_not_there(server: Served, path: str, status: int) -> None:
    with server.client() as client:
        answer = client.get(path)
    assert (answer.status_code, "error" in answer.json()) == (status, True)


def test_bad_uploads_and_batches(server: Served, fake_server: Served) -> None:
    with server.client() as client:
        assert client.post("/v1/files", files={"other": b"x"}).status_code == 400
        for purpose in ("fine-tune", ""):
            fields = {"purpose": purpose}
            answer = client.post("/v1/files", files={"file": b"x"}, data=fields)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "purpose")
        assert client.post("/v1/files", json={}).status_code == 415
        body = {"input_file_id": "file-0", "endpoint": "/v1/completions"}
        assert client.post("/v1/batches", json=body).status_code == 400
        whole = {**body, "completion_window": "24h"}
        assert client.post("/v1/batches", json=whole).status_code == 404
    with fake_server.client() as client:
        assert client.get("/v1/files").status_code == 404
        assert client.post("/v1/batches", json={}).status_code == 404


def test_a_file_that_is_no_input_fails_its_batch(server: Served) -> None:
    client = client_of(server)
    batch = ended(client, begun(client, [line(1), line(1)]))
    assert batch.status == "failed"
    assert "same id" in batch.errors.data[0].message


@pytest.mark.slow
def test_a_batch_can_be_cancelled_and_outlives_its_server(tmp_path: Path) -> None:
    state = ("--state", str(tmp_path))
    lines = [line(number) for number in range(150)]
    with served(*FAKE, *state, seconds_per_token=0.02) as server:
        client = client_of(server)
        interrupted = begun(client, lines)
        wait_until(lambda: counts(client, interrupted).completed >= 10)
        server.process.kill()
        server.process.wait()
    time.sleep(0.1)
    with served(*FAKE, *state) as server:
        client = client_of(server)
        batch = ended(client, interrupted)
        assert (batch.status, batch.request_counts.completed) == ("completed", 150)
        ids = [row["custom_id"] for row in rows_of(client, batch.output_file_id)]
        assert ids == [each["custom_id"] for each in lines]
    with served(*FAKE, *state, seconds_per_token=0.02) as server:
        client = client_of(server)
        cancelled = begun(client, lines)
        wait_until(lambda: counts(client, cancelled).total > 0)
        client.batches.cancel(cancelled)
        batch = ended(client, cancelled)
        assert batch.status == "cancelled"
        assert batch.request_counts.completed + batch.request_counts.failed < 150
        assert_counts_agree(client, batch)


@pytest.mark.slow
def test_a_row_that_ends_the_engine_fails_alone(tmp_path: Path) -> None:
    """It is tried beside others, then alone; those that were beside it are answered."""
    options = ("--state", str(tmp_path), "--stall-seconds", "0.5")
    with served(*FAKE, *options, hang_on="poison") as server:
        client = client_of(server)
        lines = [line(number) for number in range(12)]
        lines[5] = line(5, prompt="poison")
        batch = ended(client, begun(client, lines))
        assert (batch.status, batch.request_counts.completed) == ("completed", 11)
        (failed,) = rows_of(client, batch.error_file_id)
        assert (failed["custom_id"], failed["error"]["code"]) == ("id-5", "engine_restarted")
        assert server.metric("packhorse_engine_restarts_total") == MAX_ATTEMPTS
