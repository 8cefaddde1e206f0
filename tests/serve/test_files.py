"""Files that clients send: what is kept, how much of it, and what goes while it is asked for."""

from __future__ import annotations

import asyncio
import io
import shutil
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from in_process import local
from packhorse.errors import ConfigError
from packhorse.serve.config import RequestLimits
from packhorse.serve.errors import APIError
from packhorse.serve.files import FileStore
from packhorse.serve.state_folder import claimed_state_folder
from servers import FAKE, Served, served, wait_until

FIELDS = {"purpose": "batch"}


class Broken(io.BytesIO):
    """Gives some bytes, then fails as a disk does."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= 10:
            raise OSError("the disk is broken")
        return super().read(10)


def test_what_cannot_be_kept_leaves_nothing(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    with pytest.raises(OSError, match="broken"):
        store.add(Broken(b"x" * 100), "rows.jsonl", "batch")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_server_left_is_removed(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    kept = store.add(io.BytesIO(b"abc"), "rows.jsonl", "batch")
    half = tmp_path / f".file-{'0' * 24}"
    half.mkdir()
    (half / "content.jsonl").write_bytes(b"x")
    store.recover()
    assert [each.name for each in tmp_path.iterdir()] == [kept["id"]]
    assert store.content(kept["id"]).read_bytes() == b"abc"


def test_a_file_that_is_removed_can_be_read_to_its_end(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    file = store.add(io.BytesIO(b"abc"), "rows.jsonl", "batch")["id"]
    with store.open(file) as opened:
        store.remove(file)
        assert opened.read() == b"abc"
    for call in (store.open, store.remove, store.content):
        with pytest.raises(APIError) as raised:
            call(file)
        assert raised.value.status == 404


def test_a_file_is_removed_once_however_many_ask(tmp_path: Path) -> None:
    """Whoever comes too late is told so, and listing goes on beside it."""
    store = FileStore(tmp_path)

    def remove(file: str) -> int:
        try:
            store.remove(file)
        except APIError as problem:
            return problem.status
        return 200

    with ThreadPoolExecutor(4) as pool:
        for _ in range(50):
            file = store.add(io.BytesIO(b"abc"), "rows.jsonl", "batch")["id"]
            listings = [pool.submit(store.documents) for _ in range(2)]
            found = sorted(pool.map(remove, [file] * 4))
            assert found == [200, 404, 404, 404]
            for listing in listings:
                listing.result()


@pytest.mark.parametrize(
    ("stored_bytes", "reserved_disk_bytes", "code"),
    [(10, 0, "storage_full"), (None, 1 << 60, "no_space")],
)
def test_uploads_are_bounded_in_all(
    tmp_path: Path, stored_bytes: int | None, reserved_disk_bytes: int, code: str
) -> None:
    store = FileStore(tmp_path / "files", stored_bytes, reserved_disk_bytes)

    async def test() -> None:
        async with local(tmp_path, store).client() as client:
            answer = await client.post("/v1/files", files={"file": b"x" * 20}, data=FIELDS)
            assert (answer.status_code, answer.json()["error"]["code"]) == (507, code)
            assert (await client.get("/v1/files")).json()["data"] == []

    asyncio.run(test())


def test_the_bound_of_all_uploads_counts_what_is_there(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "files", 1000)

    async def test() -> None:
        async with local(tmp_path, store).client() as client:
            statuses = []
            for _ in range(2):
                answer = await client.post("/v1/files", files={"file": b"x" * 500}, data=FIELDS)
                statuses.append(answer.status_code)
            assert statuses == [200, 507]
            (document,) = (await client.get("/v1/files")).json()["data"]
            await client.delete(f"/v1/files/{document['id']}")
            answer = await client.post("/v1/files", files={"file": b"x" * 500}, data=FIELDS)
            assert answer.status_code == 200

    asyncio.run(test())


def multipart(content: bytes) -> tuple[dict[str, str], bytes]:
    """Headers and body of an upload."""
    parts = [
        b'--cut\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n',
        b'--cut\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n',
        content + b"\r\n--cut--\r\n",
    ]
    return {"content-type": "multipart/form-data; boundary=cut"}, b"".join(parts)


def test_uploads_at_once_are_few(tmp_path: Path) -> None:
    """With one place, a second upload waits until the first is there."""
    headers, body = multipart(b"x" * 100)

    async def test() -> None:
        server = local(tmp_path, limits=RequestLimits(uploads=1))
        may_end = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield body[:50]
            await may_end.wait()
            yield body[50:]

        async with server.client() as client:

            async def upload(content: Any) -> int:
                answer = await client.post("/v1/files", content=content, headers=headers)
                return answer.status_code

            first = asyncio.create_task(upload(slow()))
            await asyncio.sleep(0.1)
            second = asyncio.create_task(upload(body))
            await asyncio.sleep(0.3)
            assert not second.done()
            may_end.set()
            assert [await first, await second] == [200, 200]

    asyncio.run(asyncio.wait_for(test(), 20))


def test_an_upload_that_the_disk_refuses(tmp_path: Path) -> None:
    """The place for files is a file: nothing can be kept there."""

    async def test() -> None:
        server = local(tmp_path)
        async with server.client() as client:
            (tmp_path / "files").write_bytes(b"")
            answer = await client.post("/v1/files", files={"file": b"x"}, data=FIELDS)
            assert (answer.status_code, answer.json()["error"]["code"]) == (
                507,
                "storage_unavailable",
            )
            assert str(tmp_path) not in answer.text
            assert any("an upload cannot be kept" in line for line in server.lines)

    asyncio.run(test())


@pytest.mark.parametrize("wanted", ["x", "bytes=0-1", "bytes=999-1000", "bytes=5-1"])
def test_a_range_is_not_looked_at(tmp_path: Path, wanted: str) -> None:
    async def test() -> None:
        server = local(tmp_path)
        file = server.batches.files.add(io.BytesIO(b"abcdef"), "rows.jsonl", "batch")["id"]
        async with server.client() as client:
            answer = await client.get(f"/v1/files/{file}/content", headers={"range": wanted})
            assert (answer.status_code, answer.content) == (200, b"abcdef")
            assert answer.headers["content-length"] == "6"
            shutil.rmtree(tmp_path / "files" / file)
            answer = await client.get(f"/v1/files/{file}/content")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")

    asyncio.run(test())


def test_the_folder_for_files_is_one_server_s(tmp_path: Path) -> None:
    """What goes wrong while it is held is not taken for its own fault."""
    state = tmp_path / "state"
    twice = pytest.raises(ConfigError, match="another server uses")
    with claimed_state_folder(state), twice, claimed_state_folder(state):
        pass
    with pytest.raises(OSError, match="of the server"), claimed_state_folder(state):
        raise OSError("of the server")
    with claimed_state_folder(state):
        pass
    state.with_name("file").write_bytes(b"")
    with (
        pytest.raises(ConfigError, match="cannot be used"),
        claimed_state_folder(tmp_path / "file"),
    ):
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with served(*FAKE, "--state", str(tmp_path_factory.mktemp("state"))) as running:
        yield running


def test_a_client_that_leaves_during_an_upload_is_no_error_of_the_server(server: Served) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = (
            "POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n"
            "content-type: multipart/form-data; boundary=cut\r\n\r\n"
        )
        connection.sendall(head.encode() + multipart(b"x" * 1000)[1][:500])
    metric = 'packhorse_http_responses_total{path="/v1/files",status="%d"}'
    wait_until(lambda: server.metric(metric % 400) == 1)
    assert server.metric(metric % 500) == 0
    assert not any("Traceback" in line for line in server.lines)
