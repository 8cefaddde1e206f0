"""What goes wrong around batches: disks, journals, inputs, and the server's own mistakes."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from in_process import Local, running, until
from packhorse.engines.fake import DELAY_VARIABLE
from packhorse.errors import OutputError
from packhorse.jobs.journal import Journal
from packhorse.serve import batches as batches_module
from packhorse.serve import documents as documents_module
from packhorse.serve.batch_documents import BatchDocuments
from packhorse.serve.errors import APIError
from packhorse.serve.files import FileStore

ROWS = [{"id": f"id-{number}", "prompt": f"row {number}"} for number in range(12)]
BAD = {"id": "bad", "prompt": 7}
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/secret/place/output.jsonl")


@dataclass(slots=True)
class FaultyStore(FileStore):
    """faults: what saving a file raises, call by call; None where it goes well."""

    faults: list[Exception | None] = field(default_factory=list)

    def add(
        self, content: BinaryIO, name: str, purpose: str, owner: str | None = None
    ) -> dict[str, Any]:
        fault = self.faults.pop(0) if self.faults and purpose == "batch_output" else None
        if fault is not None:
            raise fault
        return FileStore.add(self, content, name, purpose, owner)


def ran(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "INITIAL_RETRY_SECONDS", 0.1)


def error_of(document: dict[str, Any]) -> dict[str, Any]:
    (error,) = document["errors"]["data"]
    assert isinstance(error, dict)
    return error


def test_a_full_disk_delays_a_batch(tmp_path: Path) -> None:
    """The second of its two files cannot be kept at first: then it has each once."""
    store = FaultyStore(tmp_path / "files", faults=[None, FULL])

    async def test() -> None:
        async with running(tmp_path, store) as server:
            first = await server.begun([*ROWS, BAD], tmp_path)
            second = await server.begun(ROWS, tmp_path)
            for identifier in (first, second):
                assert (await server.ended(identifier))["status"] == "completed"
            document = server.document(first)
            assert len(server.rows_of(document["output_file_id"])) == 12
            assert [row["custom_id"] for row in server.rows_of(document["error_file_id"])] == [
                "bad"
            ]
            assert len(store.documents()) == 2 + 2 + 1
            assert any(f"{first} goes on in 0.1 s" in line for line in server.lines)
            waits = "packhorse_batch_interruptions_total"
            assert server.metrics.registry.get_sample_value(waits) == 1

    ran(test)


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "no_space"), (errno.EROFS, "storage_unavailable")]
)
def test_a_batch_is_refused_while_the_disk_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    """With the true reason, and nothing of it stays."""

    def fails(path: Path, document: Any) -> None:
        raise OutputError("it cannot be written") from OSError(number, os.strerror(number))

    async def test() -> None:
        async with running(tmp_path) as server, server.client() as client:
            fine = await server.begun(ROWS, tmp_path)
            file = server.document(fine)["input_file_id"]
            await server.ended(fine)
            asked = {"input_file_id": file, "endpoint": "/v1/completions"}
            asked["completion_window"] = "24h"
            with monkeypatch.context() as patched:
                patched.setattr(documents_module, "write_json", fails)
                answer = await client.post("/v1/batches", json=asked)
                assert (answer.status_code, answer.json()["error"]["code"]) == (507, code)
            assert len(list((tmp_path / "batches").iterdir())) == 1
            again = (await client.post("/v1/batches", json=asked)).json()["id"]
            assert (await server.ended(again))["status"] == "completed"

    ran(test)


def test_a_mistake_of_the_server_costs_one_batch_its_end(tmp_path: Path) -> None:
    store = FaultyStore(tmp_path / "files", faults=[RuntimeError("in /secret/place")])

    async def test() -> None:
        async with running(tmp_path, store) as server:
            first = await server.begun([*ROWS, BAD], tmp_path)
            second = await server.begun(ROWS, tmp_path)
            document = await server.ended(first)
            assert document["status"] == "failed"
            assert error_of(document)["code"] == "internal_error"
            assert "/" not in error_of(document)["message"]
            assert len(server.rows_of(document["output_file_id"])) == 12
            assert any("in /secret/place" in line for line in server.lines)
            assert (await server.ended(second))["status"] == "completed"

    ran(test)


def test_a_journal_that_cannot_be_read_ends_its_batch(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as server:
            first = await server.begun(ROWS, tmp_path)
            folder = server.batches.documents.folder_of(first) / "output.jsonl.packhorse"
            folder.mkdir()
            (folder / "journal.sqlite3").write_bytes(b"no database at all" * 100)
            second = await server.begun(ROWS, tmp_path)
            document = await server.ended(first)
            assert document["status"] == "failed"
            assert document["output_file_id"] is None
            assert str(tmp_path) not in str(document)
            assert error_of(document)["code"] == "internal_error"
            assert (await server.ended(second))["status"] == "completed"

    ran(test)


def test_the_message_about_an_input_has_no_path(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as server:
            with pytest.raises(APIError, match=r"file-[0-9a-f]{24} is empty$") as refused:
                await server.begun([], tmp_path)
            assert (refused.value.status, refused.value.code) == (400, "invalid_input")
            identifier = await server.begun(ROWS, tmp_path)
            file = server.document(identifier)["input_file_id"]
            server.batches.files.content(file).write_bytes(b"")
            document = await server.ended(identifier)
            assert document["status"] == "failed"
            assert error_of(document) == {"code": "invalid_input", "message": f"{file} is empty"}

    ran(test)


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DELAY_VARIABLE, "0.01")


async def interrupted(server: Local, folder: Path) -> str:
    """A batch that is left when some rows are answered."""
    rows = [{"id": f"id-{number}", "prompt": f"row {number}"} for number in range(150)]
    identifier = await server.begun(rows, folder)
    await until(lambda: server.document(identifier)["request_counts"]["completed"] >= 10)
    await asyncio.sleep(0.6)  # the journal is committed twice a second
    return identifier


@pytest.mark.slow
def test_a_server_with_another_format_does_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8 of this engine has the same fingerprint, and answers a third of the rows otherwise."""
    slow(monkeypatch)

    async def test() -> None:
        async with running(tmp_path, engine="float32") as server:
            identifier = await interrupted(server, tmp_path)
        monkeypatch.setenv(DELAY_VARIABLE, "0")
        async with running(tmp_path, engine="int8") as server:
            document = await server.ended(identifier)
            assert (document["status"], error_of(document)["code"]) == ("failed", "server_changed")
            assert "quantization was 'float32', is 'int8'" in error_of(document)["message"]
            completed = document["request_counts"]["completed"]
            assert 10 <= completed < 150
            answered = server.rows_of(document["output_file_id"])
            assert len(answered) == completed
            whole = await server.ended(await server.begun(ROWS, tmp_path))
            lossy = server.rows_of(whole["output_file_id"])
            assert lossy != answered[:12]

    ran(test)


@pytest.mark.slow
def test_answers_outlive_their_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)

    async def test() -> None:
        async with running(tmp_path) as server:
            identifier = await interrupted(server, tmp_path)
            file = server.document(identifier)["input_file_id"]
        shutil.rmtree(tmp_path / "files" / file)
        async with running(tmp_path) as server:
            document = await server.ended(identifier)
            assert (document["status"], error_of(document)["code"]) == ("failed", "file_not_found")
            assert len(server.rows_of(document["output_file_id"])) >= 10

    ran(test)


def test_what_an_unfinished_batch_reads_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch)

    async def test() -> None:
        async with running(tmp_path) as server, server.client() as client:
            identifier = await interrupted(server, tmp_path)
            path = f"/v1/files/{server.document(identifier)['input_file_id']}"
            answer = await client.delete(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "file_in_use")
            assert (await client.get(path)).status_code == 200
            assert (await client.post(f"/v1/batches/{identifier}/cancel")).status_code == 200
            assert (await server.ended(identifier))["status"] == "cancelled"
            assert (await client.delete(path)).json()["deleted"]
            assert (await client.get(path)).status_code == 404

    ran(test)


def test_a_row_costs_no_look_at_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the journal is counted nor the document written for every row."""
    calls = {"counts": 0, "keep": 0}
    counts, keep = Journal.counts, BatchDocuments.save

    def counted(self: Journal) -> Any:
        calls["counts"] += 1
        return counts(self)

    async def kept(self: BatchDocuments, identifier: str) -> None:
        calls["keep"] += 1
        await keep(self, identifier)

    monkeypatch.setattr(Journal, "counts", counted)
    monkeypatch.setattr(BatchDocuments, "save", kept)

    async def test() -> None:
        async with running(tmp_path) as server:
            rows = [{"id": number, "prompt": f"row {number}"} for number in range(300)]
            loop = asyncio.get_running_loop()
            started = loop.time()
            document = await server.ended(await server.begun(rows, tmp_path))
            seconds = loop.time() - started
            assert document["request_counts"] == {"total": 300, "completed": 300, "failed": 0}
            assert calls["counts"] == 2
            assert calls["keep"] <= 5 + seconds

    ran(test)
