"""The folder for files and batches: whose it is, what is deleted in it, and damaged documents."""

from __future__ import annotations

import asyncio
import io
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from in_process import local, running
from packhorse.cli import main
from packhorse.errors import ConfigError
from packhorse.serve.documents import Documents
from packhorse.serve.errors import APIError
from packhorse.serve.files import FileStore
from packhorse.serve.state_folder import FORMAT, MARKER, claimed_state_folder

NAME = "a" * 24


def paths(folder: Path) -> set[str]:
    return {str(each.relative_to(folder)) for each in folder.rglob("*")}


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("precious")


@pytest.mark.parametrize("is_there", [False, True])
def test_a_new_or_empty_folder_is_claimed(tmp_path: Path, is_there: bool) -> None:
    state = tmp_path / "a" / "state"
    if is_there:
        (state / "lost+found").mkdir(parents=True)
    for _ in range(2):
        with claimed_state_folder(state):
            assert json.loads((state / MARKER).read_text())["format"] == FORMAT
    modes = {each: stat.S_IMODE((state / each).stat().st_mode) for each in ("files", "batches")}
    assert modes == {"files": 0o700, "batches": 0o700}
    if not is_there:
        assert stat.S_IMODE(state.stat().st_mode) == 0o700


STRANGERS = [
    ["files/photos/a.jpg", "files/thesis/b"],
    ["main.py"],
    ["files/file-0/content.jsonl"],
    [f"files/file-{NAME}0/content.jsonl"],
    [f"files/file-{NAME}"],
    [f"files/..file-{NAME}/content.jsonl"],
    [f"files/batch_{NAME}/batch.json"],
    [f"batches/batch_{NAME}/batch.json", "batches/notes.txt"],
    [f"files/file-{NAME}/content.jsonl", "lock.txt"],
]


@pytest.mark.parametrize("names", STRANGERS, ids=lambda names: names[-1])
def test_a_folder_of_others_is_refused_and_left_alone(
    tmp_path: Path, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path, *names)
    before = paths(tmp_path)
    arguments = ["serve", "fake", "--engine", "fake", "--port", "0", "--state", str(tmp_path)]
    assert main(arguments) == 2
    assert paths(tmp_path) == before
    said = capsys.readouterr().err
    assert "is not a state folder of packhorse" in said
    assert "name an empty folder" in said


def test_a_folder_of_an_older_version_is_taken_over(tmp_path: Path) -> None:
    """It had a lock, files and batches, and no marker."""
    file = FileStore(tmp_path / "files").add(io.BytesIO(b"abc"), "rows.jsonl", "batch")["id"]
    document = tmp_path / "files" / file / "file.json"
    fields = json.loads(document.read_text())
    del fields["owner"]
    document.write_text(json.dumps(fields))
    fill(tmp_path, "lock", f"files/.file-{NAME}/content.jsonl")
    (tmp_path / "batches" / f"batch_{NAME}").mkdir(parents=True)
    with claimed_state_folder(tmp_path):
        store = FileStore(tmp_path / "files")
        store.recover()
        assert [each["id"] for each in store.documents()] == [file]
        assert [each["id"] for each in store.documents("a key")] == [file]
        assert not (tmp_path / "files" / f".file-{NAME}").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"format": 2}', "format 2"),
        ('{"format": true}', "format True"),
        ("{}", "format None"),
        ("[1]", "must hold a JSON object"),
        ('{"format"', "is not JSON"),
        ("[" * 100_000, "levels deep"),
    ],
)
def test_a_marker_that_cannot_be_understood(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / MARKER).write_text(content)
    with pytest.raises(ConfigError, match=said), claimed_state_folder(tmp_path):
        pass


def test_what_came_into_a_claimed_folder_later_stays(tmp_path: Path) -> None:
    """Only names of our own form are deleted, of files and batches that come or go."""
    with claimed_state_folder(tmp_path):
        pass
    foreign = [
        "files/photos/a.jpg",
        "files/.cache/b",
        f"files/.file-{NAME}x/c",
        f"files/.file-{'A' * 24}/d",
        f"files/.batch_{NAME}/e",
        "files/readme",
    ]
    rubbish = [f"files/.file-{NAME}/content.jsonl", f"batches/.batch_{NAME}/batch.json"]
    fill(tmp_path, *foreign, *rubbish)
    outside = tmp_path / "outside"
    fill(outside, "f")
    (tmp_path / "files" / f".file-{'b' * 24}").symlink_to(outside)
    with claimed_state_folder(tmp_path):
        server = local(tmp_path)
    for name in foreign:
        assert (tmp_path / name).exists()
    for name in rubbish:
        assert not (tmp_path / name).parent.exists()
    assert (outside / "f").exists()
    assert server.lines == []


FILE: dict[str, Any] = {
    "id": f"file-{NAME}", "object": "file", "bytes": 3, "created_at": 5, "filename": "a",
    "purpose": "batch", "status": "processed",
}  # fmt: skip
BATCH: dict[str, Any] = {
    "id": f"batch_{NAME}", "object": "batch", "status": "completed", "endpoint": "/v1/completions",
    "input_file_id": f"file-{NAME}", "created_at": 5, "metadata": {},
    "request_counts": {"total": 1},
}  # fmt: skip
DAMAGE: dict[str, Callable[[dict[str, Any]], str | bytes]] = {
    "empty": lambda _: "",
    "torn": lambda document: json.dumps(document)[:-9],
    "list": lambda _: "[]",
    "deep": lambda _: "[" * 200_000,
    "binary": lambda _: b"\xff\xfe\x00",
    "digits": lambda document: json.dumps(document).replace("5", "5" * 5000, 1),
    "nan": lambda document: json.dumps({**document, "created_at": float("nan")}),
    "lacks": lambda document: json.dumps({"id": document["id"]}),
    "types": lambda document: json.dumps({**document, "created_at": "yesterday"}),
    "bool": lambda document: json.dumps({**document, "created_at": True}),
    "another": lambda document: json.dumps({**document, "id": document["id"][:-1] + "b"}),
    "status": lambda document: json.dumps({**document, "object": "horse"}),
    "surrogate": lambda document: json.dumps({**document, "x": "\ud800"}),
    "huge": lambda document: json.dumps({**document, "x": "y" * (5 << 20)}),
}


def damaged_place(folder: Path, kind: str) -> Path:
    place: Path = (
        folder
        / ("files" if kind == "file" else "batches")
        / (FILE if kind == "file" else BATCH)["id"]
    )
    place.mkdir(parents=True)
    return place / f"{kind}.json"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "batch"])
@pytest.mark.parametrize("damage", [*DAMAGE, "folder", "missing", "fifo"])
def test_a_damaged_document_is_reported_once_kept_and_not_served(
    tmp_path: Path, kind: str, damage: str
) -> None:
    path = damaged_place(tmp_path, kind)
    fill(path.parent, "content.jsonl")
    if damage == "folder":
        path.mkdir()
    elif damage == "fifo":
        os.mkfifo(path)
    elif damage != "missing":
        content = DAMAGE[damage](FILE if kind == "file" else BATCH)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = paths(tmp_path)
    server = local(tmp_path)
    fine = server.batches.files.add(io.BytesIO(b"abc"), "rows.jsonl", "batch")["id"]

    async def test() -> None:
        async with server.client() as client:
            for _ in range(2):
                files = (await client.get("/v1/files")).json()["data"]
                assert [each["id"] for each in files] == [fine]
                assert (await client.get("/v1/batches")).json()["data"] == []
                url = f"/v1/{'files' if kind == 'file' else 'batches'}/{path.parent.name}"
                assert (await client.get(url)).status_code == 404
                answer = await client.delete(f"/v1/files/{path.parent.name}")
                assert answer.status_code == 404

    asyncio.run(test())
    assert before <= paths(tmp_path)
    (line,) = server.lines
    assert path.parent.name in line
    assert "is damaged, kept and not served" in line
    assert len(line) < 500


def test_a_document_with_fields_of_another_version_is_served(tmp_path: Path) -> None:
    path = damaged_place(tmp_path, "file")
    path.write_text(json.dumps({**FILE, "expires_at": 9}))
    server = local(tmp_path)
    assert [each["expires_at"] for each in server.batches.files.documents()] == [9]
    assert server.lines == []


def test_only_not_found_counts_as_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that does not answer is no reason to say that a file is gone, or to delete it."""
    lines: list[str] = []
    store = FileStore(tmp_path / "files", report=lines.append)
    file = store.add(io.BytesIO(b"abc"), "rows.jsonl", "batch")["id"]
    opened = os.open

    def failing(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("file.json"):
            raise OSError(5, "Input/output error")
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", failing)
        store.recover()
        assert store.documents() == []
        for call in (store.document, store.remove, store.open):
            with pytest.raises(APIError) as raised:
                call(file)
            assert (raised.value.status, raised.value.code) == (503, "file_unreadable")
    assert len(lines) == 1
    assert "Input/output error" in lines[0]
    with store.open(file) as content:
        assert content.read() == b"abc"


def test_a_batch_whose_file_cannot_be_read_now_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packhorse.serve.batches.INITIAL_RETRY_SECONDS", 0.1)
    load = Documents._load
    faults = [OSError(5, "Input/output error")]

    async def test() -> None:
        async with running(tmp_path) as server:
            begun = await server.begun([{"id": 1, "prompt": "a"}], tmp_path)

            def failing(self: Documents, place: Path) -> dict[str, Any]:
                if faults and self.kind == "file":
                    raise faults.pop()
                return load(self, place)

            monkeypatch.setattr(Documents, "_load", failing)
            assert (await server.ended(begun))["status"] == "completed"
            assert faults == []

    asyncio.run(asyncio.wait_for(test(), 60))
