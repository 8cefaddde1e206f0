from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from packhorse.errors import ModelError
from packhorse.models.cache import MANIFEST, Key, cached_models, obtain
from packhorse.models.storage import require_free_bytes

ANOTHER = '{"format":1,"digest":"0","key":{"model":"m","kind":"k","quantization":"q"},"files":%s}'
KEY = Key("Some Model/é", "huggingface", "hf", "float32", ("digest",))


def build(contents: Path, scratch: Path) -> None:
    (scratch / "download").write_text("not kept")
    (contents / "weights.bin").write_bytes(bytes(range(256)) * 100)
    (contents / "tokenizer").mkdir()
    (contents / "tokenizer" / "tokenizer.json").write_text("{}")


def never(contents: Path, scratch: Path) -> None:
    raise AssertionError("built again")


def left(home: Path) -> list[str]:
    return [path.name for path in home.iterdir() if path.name.startswith(".building")]


def test_an_entry_is_built_once(home: Path, messages: list[str]) -> None:
    entry = obtain(KEY, build, messages.append)
    assert entry == obtain(KEY, never, messages.append)
    assert entry.folder.name == f"some-model-hf-{KEY.digest[:12]}"
    assert sorted(entry.digests) == ["tokenizer/tokenizer.json", "weights.bin"]
    assert entry.size_bytes == 25_602
    assert messages == left(home) == []


@pytest.mark.parametrize(
    "other",
    [
        Key("Some Model/é", "huggingface", "hf", "float32", ("another",)),
        Key("Some Model/é", "ctranslate2", "hf", "float32", ("digest",)),
        Key("Some Model/é", "huggingface", "int8", "float32", ("digest",)),
    ],
)
def test_another_key_is_another_entry(home: Path, messages: list[str], other: Key) -> None:
    first = obtain(KEY, build, messages.append)
    assert obtain(other, build, messages.append).folder != first.folder


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: (f / "weights.bin").write_bytes(b"\1" + bytes(25_599)), "was altered"),
        (lambda f: (f / "weights.bin").write_bytes(b"short"), "has another size"),
        (lambda f: (f / "weights.bin").unlink(), "weights.bin is missing"),
        (lambda f: (f / "extra.safetensors").write_bytes(b"x"), "does not belong to it"),
        (lambda f: (f / "tokenizer/tokenizer.json").write_text("[]"), "was altered"),
        (lambda f: (f / MANIFEST).unlink(), "no readable"),
        (lambda f: (f / MANIFEST).write_text('{"format": 1, "fi'), "no readable"),
        (lambda f: (f / MANIFEST).write_text("{}"), "another format"),
        (lambda f: (f / MANIFEST).write_text('{"format": 1}'), "has no digest"),
        (lambda f: (f / MANIFEST).write_text(ANOTHER % "{}"), "belongs to something"),
        (lambda f: (f / MANIFEST).write_text(ANOTHER % "[]"), "files must be an object, got []"),
        (
            lambda f: (f / MANIFEST).write_text(ANOTHER % '{"a": {"bytes": "1", "sha256": "0"}}'),
            "bytes must be a whole number, got '1'",
        ),
    ],
)
def test_a_damaged_entry_is_built_again_with_a_message(
    home: Path, messages: list[str], damage: object, reason: str
) -> None:
    assert callable(damage)
    entry = obtain(KEY, build, messages.append)
    damage(entry.folder)
    assert obtain(KEY, build, messages.append) == entry
    assert obtain(KEY, never, messages.append) == entry
    assert len(messages) == 1
    assert reason in messages[0]
    assert left(home) == []


def test_a_build_that_fails_leaves_nothing(home: Path, messages: list[str]) -> None:
    def fail(contents: Path, scratch: Path) -> None:
        build(contents, scratch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        obtain(KEY, fail, messages.append)
    assert left(home) == []
    assert cached_models() == []


BUILDER = """
import sys, time
from pathlib import Path
from packhorse.models.cache import Key, obtain

def build(contents, scratch):
    with open(sys.argv[1], "a") as log:
        log.write("built\\n")
    (contents / "weights.bin").write_bytes(b"half")
    time.sleep(float(sys.argv[2]))
    (contents / "weights.bin").write_bytes(b"whole")

obtain(Key("m", "huggingface", "hf", "float32", ("o",)), build, lambda text: print(text))
"""


def builder(log: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(log: Path) -> None:
    until = time.monotonic() + 30
    while not log.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert log.exists()


def test_a_killed_build_is_never_seen_and_cleared_away(home: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    killed = builder(log, 60)
    wait_for(log)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(left(home)) == 1
    assert cached_models() == []
    again = builder(log, 0)
    assert again.communicate()[0] == ""
    assert again.returncode == 0
    assert left(home) == []
    (model,) = cached_models(verify=True)
    assert model.verified
    assert (model.folder / "weights.bin").read_bytes() == b"whole"


def test_processes_wait_for_the_one_that_builds(home: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = builder(log, 1.5)
    wait_for(log)
    others = [builder(log, 0) for _ in range(3)]
    said = [process.communicate()[0] for process in [first, *others]]
    assert [process.returncode for process in [first, *others]] == [0] * 4
    assert log.read_text() == "built\n"
    assert said[0] == ""
    assert all("another process is preparing m-hf-" in text for text in said[1:])


def test_files_can_be_read_by_whoever_may_read_a_new_file(home: Path, messages: list[str]) -> None:
    def private(contents: Path, scratch: Path) -> None:
        build(contents, scratch)
        (contents / "weights.bin").chmod(0o600)

    folder = obtain(KEY, private, messages.append).folder
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir() if path.is_file()}
    assert len(modes) == 1


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PACKHORSE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(ModelError, match=r"model cache .* cannot be written") as caught:
        obtain(KEY, build, messages.append)
    assert "PACKHORSE_HOME" in caught.value.hint


def test_a_read_only_cache_serves_what_it_has(home: Path, messages: list[str]) -> None:
    entry = obtain(KEY, build, messages.append)
    home.chmod(0o500)
    if os.access(home, os.W_OK):
        pytest.skip("root may write anywhere")
    try:
        assert obtain(KEY, never, messages.append) == entry
        other = Key("other", "huggingface", "hf", "float32", ())
        with pytest.raises(ModelError, match="cannot be written"):
            obtain(other, build, messages.append)
    finally:
        home.chmod(0o700)


def test_a_full_disk_is_noticed_before_long_work(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the model needs 1,000,000,000 MB"):
        require_free_bytes(tmp_path, 10**15)


@pytest.mark.parametrize("kind", ["python", "rust"])
def test_a_disk_that_is_full_in_the_middle(home: Path, messages: list[str], kind: str) -> None:
    def full(contents: Path, scratch: Path) -> None:
        try:
            if kind == "python":
                raise OSError(28, "No space left on device", str(contents / "weights.bin"))
            raise ValueError("I/O error: No space left on device (os error 28)")
        except (OSError, ValueError) as error:
            raise ModelError("the library's own words") from error

    with pytest.raises(ModelError, match="No space left on device") as caught:
        obtain(KEY, full, messages.append)
    assert "PACKHORSE_HOME" in caught.value.hint
    assert left(home) == []


def test_other_errors_of_a_build_are_its_own(home: Path, messages: list[str]) -> None:
    def fail(contents: Path, scratch: Path) -> None:
        raise ModelError("no such thing", "do this")

    with pytest.raises(ModelError, match="no such thing"):
        obtain(KEY, fail, messages.append)


def test_listing(home: Path, messages: list[str]) -> None:
    assert cached_models() == []
    entry = obtain(KEY, build, messages.append)
    (found,) = cached_models()
    assert (found.name, found.kind, found.quantization) == (KEY.model, "huggingface", "float32")
    assert (found.folder, found.size_bytes, found.verified) == (entry.folder, 25_602, None)
    (entry.folder / "weights.bin").write_bytes(b"x")
    assert [model.verified for model in cached_models(verify=True)] == [False]
    (entry.folder / MANIFEST).write_text("[]")
    assert [model.kind for model in cached_models()] == ["unreadable"]


def test_the_manifest_tells_where_an_entry_comes_from(home: Path, messages: list[str]) -> None:
    folder = obtain(KEY, build, messages.append).folder
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["key"]["origin"] == ["digest"]
    assert {"packhorse", "transformers", "ctranslate2"} <= manifest["versions"].keys()
    assert manifest["files"]["weights.bin"]["bytes"] == 25_600
