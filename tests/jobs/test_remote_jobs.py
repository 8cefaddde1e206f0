"""Inputs and outputs behind URLs: downloaded once, uploaded whole, resumed after a lost network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

import packhorse
from packhorse import EngineConfig, JobConfig, OutputConfig, SamplingParams
from packhorse.cli import main
from packhorse.errors import ConfigError, InputError, JobChangedError, OutputError
from packhorse.jobs.frame import Silent
from packhorse.jobs.workspace import Workspace
from packhorse.storage import remote_files, retries
from packhorse.storage.urls import base_name, digest_of_url, public_name, without_secrets

FAKE = ("--engine", "fake", "--max-new-tokens", "3")
IN, OUT = "memory://in/rows.jsonl", "memory://out/deep/o.jsonl"


class Notes(Silent):
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, text: str) -> None:
        self.lines.append(text)

    def count(self, words: str) -> int:
        return sum(words in line for line in self.lines)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty; failed attempts are repeated at once."""
    monkeypatch.setattr(retries, "RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def store() -> Iterator[Any]:
    """A file system in memory with one input."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    fs.pipe("/in/rows.jsonl", lines(4))
    yield fs
    fs.store.clear()


def lines(rows: int, words: str = "row") -> bytes:
    made = ({"prompt": f"{words} {n}", "x": n} for n in range(rows))
    return "".join(json.dumps(row) + "\n" for row in made).encode()


def job(given: str, output: str | Path, **others: Any) -> JobConfig:
    return JobConfig(
        model="fake",
        input=given,
        output=output,
        engine=EngineConfig(engine="fake"),
        decoding=SamplingParams(max_new_tokens=3),
        **others,
    )


def rows_of(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.splitlines()]


def test_a_remote_input_into_a_remote_output(store: Any, folder: Path) -> None:
    notes = Notes()
    config = job(IN, OUT, writing=OutputConfig(keep=("x",)))
    report = packhorse.run(config, notes)
    assert [row["x"] for row in rows_of(store.cat("/out/deep/o.jsonl"))] == [0, 1, 2, 3]
    manifest = json.loads(store.cat("/out/deep/o.jsonl.manifest.json"))
    assert manifest["input"]["path"] == manifest["config"]["input"] == IN
    assert manifest["input"]["bytes"] == len(lines(4))
    assert manifest["input"]["version"].startswith("created=")
    assert manifest["output"] == manifest["config"]["output"] == OUT
    assert report.names == (OUT, f"{OUT}.manifest.json")
    assert notes.count(f"downloading {IN}, {len(lines(4))} bytes") == 1
    assert not Workspace.of(OUT).output.exists()
    assert all(not path.name.endswith(".partial") for path in folder.rglob("*"))
    assert store.find("/out") == ["/out/deep/o.jsonl", "/out/deep/o.jsonl.manifest.json"]


def test_a_job_that_is_done_downloads_and_uploads_no_rows(store: Any) -> None:
    packhorse.run(job(IN, OUT))
    again = Notes()
    assert packhorse.run(job(IN, OUT), again).session is None
    assert again.count("downloading") == 0
    assert again.count(f"{OUT} is there already") == 1
    store.pipe("/out/deep/o.jsonl", b"overwritten")
    packhorse.run(job(IN, OUT))
    assert len(rows_of(store.cat("/out/deep/o.jsonl"))) == 4


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".jsonl.gz"])
def test_a_local_job_gives_the_same_bytes(store: Any, folder: Path, suffix: str) -> None:
    (folder / "rows.jsonl").write_bytes(lines(4))
    local = folder / f"o{suffix}"
    packhorse.run(job("rows.jsonl", local, writing=OutputConfig(keep="all")))
    (folder / "made").mkdir()
    for output in (f"memory://made/o{suffix}", f"file://{folder}/made/o{suffix}"):
        source = IN if output.startswith("memory") else f"file://{folder}/rows.jsonl"
        packhorse.run(job(source, output, writing=OutputConfig(keep="all")))
    assert store.cat(f"/made/o{suffix}") == local.read_bytes()
    assert (folder / "made" / local.name).read_bytes() == local.read_bytes()


def test_an_input_that_changed_runs_what_is_new(store: Any, folder: Path) -> None:
    config = job(IN, folder / "o.jsonl")
    packhorse.run(config)
    store.pipe("/in/rows.jsonl", lines(5))
    notes = Notes()
    report = packhorse.run(config, notes)
    assert notes.count(f"{IN} has changed since it was downloaded") == 1
    assert report.session is not None
    assert report.session["rows_completed"] == 1
    assert len(rows_of((folder / "o.jsonl").read_bytes())) == 5


def test_a_damaged_copy_is_downloaded_again(store: Any, folder: Path) -> None:
    config = job(IN, folder / "o.jsonl")
    packhorse.run(config)
    copy = remote_files.copy_of(IN, Workspace.of(config.output).downloads)
    copy.write_bytes(copy.read_bytes()[:-1])
    notes = Notes()
    packhorse.run(config, notes)
    assert notes.count("downloading") == 1
    assert copy.read_bytes() == lines(4)


def test_errors_name_the_url(store: Any, folder: Path) -> None:
    store.pipe("/in/rows.jsonl.gz", b"\x1f\x8b\x08 no gzip")
    with pytest.raises(InputError, match=r"^memory://in/rows\.jsonl\.gz is damaged"):
        packhorse.run(job(f"{IN}.gz", folder / "o.jsonl"))
    store.pipe("/in/empty.jsonl", b"")
    with pytest.raises(InputError, match=r"^memory://in/empty\.jsonl is empty"):
        packhorse.run(job("memory://in/empty.jsonl", folder / "o.jsonl"))


def test_a_failed_upload_keeps_the_output_and_only_uploads_again(
    store: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put, calls, broken = type(store).put_file, [], 99

    def failing(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) <= broken:
            raise ConnectionError("the network is gone")
        return put(self, *arguments, **options)

    monkeypatch.setattr(type(store), "put_file", failing)
    assert main(["run", "fake", IN, "-o", OUT, *FAKE]) == 2
    shown = capsys.readouterr().err
    local = Workspace.of(OUT).output.absolute()
    assert f"{OUT} cannot be written: the network is gone; the finished output is {local}" in shown
    assert shown.count("trying again in 0 s") == 2
    assert "the same command only uploads it" in shown
    assert len(rows_of(local.read_bytes())) == 4
    assert main(["status", OUT]) == 0
    assert "not uploaded: run the same command again" in capsys.readouterr().out
    calls.clear()
    broken = 1
    report = packhorse.run(job(IN, OUT))
    assert report.session is None  # no row is run again
    assert len(rows_of(store.cat("/out/deep/o.jsonl"))) == 4
    assert not local.exists()


@pytest.mark.parametrize("damage", ["shorter", "changed"])
def test_an_upload_that_arrives_damaged_is_sent_again(
    store: Any, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    put, calls = type(store).put_file, []

    def damaging(self: Any, source: str, target: str, **options: Any) -> None:
        put(self, source, target, **options)
        calls.append(target)
        if len(calls) == 1:
            content = self.cat(target)
            self.pipe(target, content[:-1] if damage == "shorter" else content[:-2] + b"?\n")

    monkeypatch.setattr(type(store), "put_file", damaging)
    notes = Notes()
    packhorse.run(job(IN, OUT), notes)
    assert notes.count("trying again") == 1
    assert len(rows_of(store.cat("/out/deep/o.jsonl"))) == 4


def test_without_network_a_whole_copy_is_used(
    store: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = job(IN, folder / "o.jsonl")
    packhorse.run(config)

    def lost(*given: Any, **named: Any) -> Any:
        raise ConnectionError("no route to host")

    with monkeypatch.context() as patched:
        patched.setattr(type(store), "info", lost)
        notes = Notes()
        packhorse.run(config, notes)
        assert notes.count("no route to host; using the copy that was downloaded before") == 1
    store.rm("/in/rows.jsonl")
    with pytest.raises(InputError, match="there is no such file"):
        packhorse.run(config)


def test_settings_are_those_of_the_url(store: Any) -> None:
    packhorse.run(job(IN, OUT))
    store.pipe("/in/other.jsonl", lines(2))
    with pytest.raises(JobChangedError, match=f"input was '{IN}', is 'memory://in/other"):
        packhorse.run(job("memory://in/other.jsonl", OUT))


def test_an_output_of_another_origin_is_kept(store: Any) -> None:
    store.pipe("/out/deep/o.jsonl", b"precious")
    with pytest.raises(OutputError, match="exists and was not written by a job"):
        packhorse.run(job(IN, OUT))
    assert store.cat("/out/deep/o.jsonl") == b"precious"


@pytest.mark.parametrize(
    ("given", "output", "kind", "words", "hint"),
    [
        ("memory://gone.jsonl", "o.jsonl", InputError, "there is no such file", "check the URL"),
        ("memory://in", "o.jsonl", InputError, "it is a folder", "check the URL"),
        ("memory://in/", "o.jsonl", ConfigError, "names no file", "the name of a file"),
        ("nope://x/a.jsonl", "o.jsonl", ConfigError, "Protocol not known: nope", "s3://"),
        (IN, "nope://o.jsonl", ConfigError, "Protocol not known: nope", "s3://"),
        (IN, "memory://o.txt", ConfigError, "memory://o.txt has no known suffix", ".jsonl"),
        (IN, "https://h/o.jsonl?s=1", ConfigError, r"h/o\.jsonl cannot be written to", "s3://"),
        (IN, IN, ConfigError, "the output is the input", "another"),
        (IN, Path("s3://b/o.jsonl"), ConfigError, "was read as the path", "str"),
    ],
)  # fmt: skip
def test_refusals(
    store: Any, given: str, output: str | Path, kind: type[Exception], words: str, hint: str
) -> None:
    with pytest.raises(kind, match=words) as raised:
        packhorse.run(job(given, output))
    assert hint in getattr(raised.value, "hint", "")


@pytest.mark.parametrize(
    ("url", "library", "command"),
    [
        ("s3://b/a.jsonl", "s3fs", "pip install 'packhorse[remote]'"),
        ("gs://b/a.jsonl", "gcsfs", "pip install 'packhorse[remote]' gcsfs"),
        ("az://b/a.jsonl", "adlfs", "pip install 'packhorse[remote]' adlfs"),
        ("https://h/a.jsonl", "aiohttp", "pip install 'packhorse[remote]'"),
    ],
)
def test_a_missing_library_is_named_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, url: str, library: str, command: str
) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    Path("in.jsonl").write_bytes(lines(1))
    monkeypatch.setattr(remote_files, "import_module", missing)
    configs = [job(url, "o.jsonl"), job("in.jsonl", url)]
    for config in configs[: 1 if library == "aiohttp" else 2]:
        with pytest.raises(ConfigError, match=f"needs {library}") as raised:
            packhorse.run(config)
        assert raised.value.hint == f"install it: {command}"


def test_secrets_of_urls_are_not_shown() -> None:
    assert public_name("https://u:p@h/a.jsonl?sig=1#x") == "https://h/a.jsonl"
    assert public_name("HTTPS://token@h/a.jsonl?sig") == "HTTPS://h/a.jsonl"
    assert public_name("sftp://me:secret@h/a.jsonl") == "sftp://me@h/a.jsonl"
    assert public_name("abfs://box@account/a.jsonl?sig=1") == "abfs://box@account/a.jsonl"
    assert public_name("s3://b/a#1?.jsonl") == "s3://b/a#1?.jsonl"
    assert public_name("a/b?c=1") == "a/b?c=1"
    assert base_name("https://h/deep/a.csv.gz?sig=1") == "a.csv.gz"
    shown = without_secrets("403, url='https://h/a?sig=1&b=2', then https://h/b?x=1")
    assert shown == "403, url='https://h/a', then https://h/b"
    assert digest_of_url("https://h/a?sig=1") == digest_of_url("https://h/a?sig=2")


def test_verbs_with_a_remote_output(store: Any, folder: Path) -> None:
    assert main(["run", "fake", IN, "-o", OUT, "--keep", "x", *FAKE]) == 0
    assert main(["status", OUT]) == 0
    assert main(["export", OUT, "--to", "here.jsonl"]) == 0
    assert [row["x"] for row in rows_of((folder / "here.jsonl").read_bytes())] == [0, 1, 2, 3]
