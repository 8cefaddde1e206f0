"""Inputs and outputs behind URLs: downloaded once, uploaded whole, resumed after a lost network."""

from __future__ import annotations

import http.server
import json
import os
import random
import re
import select
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import fsspec
import pytest

import packhorse
from packhorse import EngineConfig, InputConfig, JobConfig, OutputConfig, SamplingParams
from packhorse.cli import main
from packhorse.errors import ConfigError, InputError, JobChangedError, OutputError
from packhorse.jobs.frame import Silent
from packhorse.jobs.workspace import Workspace
from packhorse.storage import remote_files, retries
from packhorse.storage.urls import base_name, digest_of_url, public_name, without_secrets

FAKE = ("--engine", "fake", "--max-new-tokens", "3")
KILLS = 6
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


needs_http = pytest.mark.skipif(find_spec("aiohttp") is None, reason="aiohttp is not installed")


class FlakyHandler(http.server.BaseHTTPRequestHandler):
    """Serves one file; cuts connections, and knows ranges, sizes and versions, as it is told.

    Attributes:
        content: The file.
        cuts: Bytes that each of the first answers contains before its connection is cut.
        ranges: Whether parts may be asked for.
        tagged: Whether answers have an ETag.
        sized: Whether answers have a length.
        statuses: Statuses of the first requests, in place of an answer.
        asked: Methods and ranges of all requests.
        allows_head: Whether HEAD is answered, which a signature for GET does not allow.
    """

    protocol_version = "HTTP/1.1"
    content = b""
    cuts: list[int]
    statuses: list[int]
    asked: list[tuple[str, str | None]]
    ranges = tagged = sized = allows_head = True

    def do_HEAD(self) -> None:
        if self.allows_head:
            self._answer(has_body=False)
        else:
            self.send_error(403)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _answer(self, *, has_body: bool) -> None:
        self.asked.append((self.command, self.headers["Range"]))
        if "/rows.jsonl" not in self.path or (has_body and self.statuses):
            status = self.statuses.pop(0) if "/rows.jsonl" in self.path else 404
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body, wanted = self.content, re.match(r"bytes=(\d+)-", self.headers["Range"] or "")
        if self.ranges and wanted:
            body = body[int(wanted[1]) :]
            self.send_response(206)
        else:
            self.send_response(200)
        if self.tagged:
            self.send_header("ETag", f'"{hash(self.content)}"')
        if self.sized:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.close_connection = True
        self.end_headers()
        if has_body:
            cut = self.cuts.pop(0) if self.cuts else len(body)
            with suppress(OSError):
                self.wfile.write(body[:cut])
                time.sleep(0.1 if cut < len(body) else 0)  # a client drops what it has not read

    def log_message(self, *given: Any) -> None:
        """Print nothing."""


@contextmanager
def serving(handler: type[FlakyHandler], context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve on loopback; yield the URL of the file."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        scheme = "http" if context is None else "https"
        try:
            yield f"{scheme}://127.0.0.1:{server.server_port}/rows.jsonl"
        finally:
            server.shutdown()


def flaky(**attributes: Any) -> type[FlakyHandler]:
    lists: dict[str, Any] = {"cuts": [], "statuses": [], "asked": []}
    return type("Handler", (FlakyHandler,), {**lists, **attributes})


LARGE = lines(60_000)  # 2 MB


@needs_http
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("tagged", [True, False])
def test_a_download_that_is_cut_is_continued_or_repeated(
    folder: Path, ranges: bool, tagged: bool
) -> None:
    is_continued = ranges and tagged  # then there may be more failures than attempts
    cuts = [400_000, 0, 400_000, 400_000] if is_continued else [400_000, 9]
    handler = flaky(content=LARGE, cuts=list(cuts), ranges=ranges, tagged=tagged)
    notes = Notes()
    with serving(handler) as url:
        copy = remote_files.download(url, folder, notes.stage)
    assert copy.read_bytes() == LARGE
    assert notes.count("trying again") == len(cuts)
    starts = [asked for method, asked in handler.asked if method == "GET" and asked]
    assert len(starts) == (len(cuts) if tagged else 0)


@needs_http
def test_a_download_that_was_given_up_is_continued_by_the_next_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = flaky(content=LARGE, cuts=[len(LARGE), 10**6], allows_head=False)
    monkeypatch.setattr(retries, "RETRY_SECONDS", ())
    with serving(handler) as url:
        with pytest.raises(InputError, match="cannot be read"):
            remote_files.download(url, folder, print)
        copy = remote_files.download(url, folder, print)
    assert copy.read_bytes() == LARGE
    assert sum(asked is not None for _, asked in handler.asked) == 1


@needs_http
@pytest.mark.parametrize("attributes", [{"sized": False}, {"sized": False, "tagged": False}])
def test_a_server_that_says_little(folder: Path, attributes: dict[str, bool]) -> None:
    notes = Notes()
    with serving(flaky(content=lines(4), **attributes)) as url:
        packhorse.run(job(url, folder / "o.jsonl"), notes)
        assert notes.count("of unknown size") == 1
        packhorse.run(job(url, folder / "o.jsonl"), notes)
    assert len(rows_of((folder / "o.jsonl").read_bytes())) == 4


@needs_http
@pytest.mark.skipif(
    which("openssl") is None, reason="openssl, which makes a certificate, is missing"
)
def test_certificates_are_verified(folder: Path) -> None:
    made = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -out c -keyout k"
    subprocess.run(made.split(), check=True, capture_output=True, cwd=folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "c", folder / "k")
    notes = Notes()
    with (
        serving(flaky(content=lines(4)), context) as url,
        pytest.raises(InputError, match="certificate verify failed"),
    ):
        packhorse.run(job(url, folder / "o.jsonl"), notes)
    assert notes.count("trying again") == 0


@needs_http
def test_plan_and_other_verbs(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(flaky(content=lines(4))) as url:
        assert main(["plan", "fake", f"{url}?sig=SECRET", "--engines", "fake"]) == 0
        shown = "".join(capsys.readouterr())
        assert "4 rows" in shown
        assert f"packhorse run fake {url} " in shown
        assert "SECRET" not in shown
        assert main(["load-test", "http://127.0.0.1:1", url]) == 2
    assert "is a URL that was read as the path of a file" in capsys.readouterr().err


@needs_http
def test_a_job_of_a_signed_url_shows_no_secret(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = flaky(content=lines(4), statuses=[503, 429])
    with serving(handler) as url:
        signed = f"{url}?X-Amz-Signature=SECRET"
        assert main(["run", "fake", signed, "-o", "o.jsonl", "--keep", "x", *FAKE]) == 0
        gone = signed.replace("rows", "gone")
        assert main(["run", "fake", gone, "-o", "p.jsonl", *FAKE]) == 2
        other = signed.replace("SECRET", "SECRET2")
        assert main(["run", "fake", other, "-o", "o.jsonl", "--keep", "x", *FAKE]) == 0
    shown = "".join(capsys.readouterr())
    assert "the server answered 503" in shown
    assert "the server answered 429" in shown
    assert "gone.jsonl cannot be read: there is no such file" in shown
    assert [row["x"] for row in rows_of((folder / "o.jsonl").read_bytes())] == [0, 1, 2, 3]
    assert "SECRET" not in shown
    for path in folder.rglob("*"):
        assert path.is_dir() or b"SECRET" not in path.read_bytes(), path


@needs_http
def test_an_expired_link_is_refused_at_once_and_a_copy_still_used(folder: Path) -> None:
    class Expired(FlakyHandler):
        content = lines(4)
        cuts, statuses, asked = [], [], []
        is_expired = False

        def _answer(self, *, has_body: bool) -> None:
            if type(self).is_expired:
                self.send_error(403)
            else:
                super()._answer(has_body=has_body)

    with serving(Expired) as url:
        packhorse.run(job(url, folder / "o.jsonl"))
        Expired.is_expired = True
        notes = Notes()
        packhorse.run(job(url, folder / "o.jsonl"), notes)
        assert notes.count("using the copy that was downloaded before") == 1
        with pytest.raises(InputError, match="the server answered 403") as raised:
            packhorse.run(job(url, folder / "p.jsonl"), notes)
    assert "credentials" in raised.value.hint
    assert notes.count("trying again") == 0


@needs_http
def test_a_file_that_changes_while_it_is_downloaded_is_refused(folder: Path) -> None:
    class Changing(FlakyHandler):
        content = lines(4)
        cuts, statuses, asked = [], [], []

        def do_GET(self) -> None:
            super().do_GET()
            type(self).content = lines(4, "new")

    with serving(Changing) as url:
        with pytest.raises(InputError, match="changed while it was downloaded"):
            packhorse.run(job(url, folder / "o.jsonl"))
        packhorse.run(job(url, folder / "o.jsonl"))


@needs_http
def test_a_server_that_is_gone(folder: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    notes = Notes()
    with pytest.raises(InputError, match="cannot be read") as raised:
        packhorse.run(job(f"http://127.0.0.1:{port}/rows.jsonl", folder / "o.jsonl"), notes)
    assert "check the network" in raised.value.hint
    assert notes.count("trying again") == 2


needs_s3 = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("s3fs", "moto", "flask")),
    reason="s3fs and moto[server] are not installed",
)
S3_IN, S3_OUT = "s3://bucket/in/rows.jsonl", "s3://bucket/out/o.jsonl"


@contextmanager
def s3_server() -> Iterator[int]:
    """Run an S3 server on loopback; yield its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the S3 server does not start"
                time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system of an S3 server with one bucket and one input."""
    import s3fs

    with s3_server() as port:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        fs = s3fs.S3FileSystem()
        fs.mkdir("bucket")
        fs.pipe("bucket/in/rows.jsonl", lines(60))
        yield fs
        s3fs.S3FileSystem.clear_instance_cache()


@needs_s3
@pytest.mark.slow
def test_s3_in_and_out(s3: Any, folder: Path) -> None:
    (folder / "rows.jsonl").write_bytes(lines(60))
    writing = OutputConfig(keep="all")
    for output in ("o.parquet", "o.jsonl.zst", "o.csv"):
        packhorse.run(job("rows.jsonl", folder / output, writing=writing))
        packhorse.run(job(S3_IN, f"s3://bucket/out/{output}", writing=writing))
        s3.invalidate_cache()
        assert s3.cat(f"bucket/out/{output}") == (folder / output).read_bytes()
    manifest = json.loads(s3.cat("bucket/out/o.csv.manifest.json"))
    assert manifest["input"]["version"].startswith("ETag=")
    parquet = job("s3://bucket/out/o.parquet", S3_OUT, reading=InputConfig(prompt_column="text"))
    packhorse.run(parquet)
    notes = Notes()
    packhorse.run(parquet, notes)
    assert notes.count("downloading") == 0
    assert notes.count(f"{S3_OUT} is there already") == 1
    s3.pipe("bucket/in/rows.jsonl", lines(61))
    packhorse.run(job(S3_IN, "s3://bucket/out/o.csv", writing=writing), notes)
    assert notes.count(f"{S3_IN} has changed") == 1
    s3.invalidate_cache()
    assert s3.cat("bucket/out/o.csv").count(b"\n") == 62


@needs_s3
@pytest.mark.slow
def test_s3_errors(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes()
    with pytest.raises(InputError, match=r"s3://bucket/gone\.jsonl cannot be read: there is no"):
        packhorse.run(job("s3://bucket/gone.jsonl", "o.jsonl"), notes)
    with pytest.raises(OutputError, match=r"s3://nobucket/o\.jsonl cannot be written: there is no"):
        packhorse.run(job(S3_IN, "s3://nobucket/o.jsonl"), notes)
    s3.pipe("bucket/out/o.jsonl", b"precious")
    with pytest.raises(OutputError, match="exists and was not written by a job"):
        packhorse.run(job(S3_IN, S3_OUT), notes)
    assert notes.count("trying again") == 0
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    type(s3).clear_instance_cache()
    with pytest.raises(OutputError, match="cannot be written") as raised:
        packhorse.run(job(S3_IN, "s3://bucket/new.jsonl"), notes)
    assert "credentials" in raised.value.hint


class Network(socketserver.ThreadingTCPServer):
    """Forwards connections to a port, and cuts them while it is down.

    Attributes:
        is_down: Whether connections are cut.
        bytes_left: Bytes after which answers are cut once, None for never.
        cuts: How often that happened.
    """

    daemon_threads = True
    is_down = False
    bytes_left: int | None = None
    cuts = 0

    def __init__(self, port: int) -> None:
        self.target = port
        super().__init__(("127.0.0.1", 0), Forwarding)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def passes(self, size: int) -> bool:
        """Return whether an answer of this size arrives."""
        if self.bytes_left is not None:
            self.bytes_left -= size
            if self.bytes_left < 0:
                self.bytes_left = None
                self.cuts += 1
                return False
        return not self.is_down


class Forwarding(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        network = self.server
        assert isinstance(network, Network)
        with socket.create_connection(("127.0.0.1", network.target)) as server:
            ends = {self.request: server, server: self.request}
            while not network.is_down:
                for end in select.select(list(ends), [], [], 0.1)[0]:
                    with suppress(OSError):
                        data = end.recv(2**15)
                        if data and (end is self.request or network.passes(len(data))):
                            ends[end].sendall(data)
                            continue
                    return


@pytest.fixture
def network(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """A network between jobs and the S3 server."""
    with Network(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])) as network:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{network.server_address[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # else botocore and s3fs try 25 times in all
        monkeypatch.setattr(type(s3), "retries", 1)
        type(s3).clear_instance_cache()
        yield network
        network.shutdown()


@needs_s3
@pytest.mark.slow
def test_a_network_that_is_lost_before_the_upload(s3: Any, network: Network) -> None:
    class Losing(Notes):
        def stage(self, text: str) -> None:
            network.is_down = network.is_down or text.startswith("uploading")
            super().stage(text)

    notes = Losing()
    with pytest.raises(OutputError, match="the finished output is") as raised:
        packhorse.run(job(S3_IN, S3_OUT), notes)
    assert "the same command only uploads it" in raised.value.hint
    assert notes.count("trying again") == 2
    assert not s3.exists("bucket/out/o.jsonl")
    network.is_down = False
    assert packhorse.run(job(S3_IN, S3_OUT)).session is None
    s3.invalidate_cache()
    assert len(rows_of(s3.cat("bucket/out/o.jsonl"))) == 60


@needs_s3
@pytest.mark.slow
def test_a_network_that_is_lost_in_a_download(
    s3: Any, network: Network, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.pipe("bucket/in/large.jsonl", LARGE)
    url, notes = "s3://bucket/in/large.jsonl", Notes()
    monkeypatch.setattr(remote_files, "_CHUNK_BYTES", 2**18)
    network.bytes_left = 10**6
    copy = remote_files.download(url, folder, notes.stage)
    assert network.cuts == 1
    assert copy.read_bytes() == LARGE


@needs_s3
@pytest.mark.slow
def test_s3_jobs_killed_at_random_moments(s3: Any) -> None:
    def command(name: str) -> list[str]:
        given = ["run", "fake", S3_IN, "-o", f"s3://bucket/{name}.jsonl", "--keep", "x"]
        options = ["--engine", "fake", "--max-new-tokens", "4", "--workers", "1"]
        return [sys.executable, "-m", "packhorse", *given, *options, "--batch-size", "4"]

    environment = {**os.environ, "PACKHORSE_FAKE_SECONDS_PER_TOKEN": "0.0005"}
    started = time.monotonic()
    subprocess.run(command("clean"), check=True, capture_output=True, env=environment)
    seconds = time.monotonic() - started
    expected, moments, kills = s3.cat("bucket/clean.jsonl"), random.Random(9), 0
    assert len(rows_of(expected)) == 60
    for number in range(KILLS):
        process = subprocess.Popen(
            command(f"killed{number}"),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(moments.uniform(0.3, 1.1) * seconds)
        kills += process.poll() is None
        process.kill()
        process.wait()
        s3.invalidate_cache()
        if s3.exists(f"bucket/killed{number}.jsonl"):  # whole or not there
            assert s3.cat(f"bucket/killed{number}.jsonl") == expected
        again = subprocess.run(command(f"killed{number}"), capture_output=True, text=True,
                               env=environment, check=False)  # fmt: skip
        assert again.returncode == 0, again.stderr
        s3.invalidate_cache()
        assert s3.cat(f"bucket/killed{number}.jsonl") == expected
    assert kills > 1
