"""An engine that dies, and one that cannot come back: real processes of the fake engine, and what
keeps them from starting."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from in_process import batch_line
from packhorse.config import BatchingConfig, EngineConfig
from packhorse.data import Failure, Prompt, SamplingParams
from packhorse.engines.fake import ANSWERS_VARIABLE
from packhorse.errors import EngineError
from packhorse.inference.model import prepare_for
from packhorse.serve import supervisor as supervising
from packhorse.serve.channel import Message
from packhorse.serve.child import EngineSpec
from packhorse.serve.config import QueueConfig, RequestLimits
from packhorse.serve.errors import APIError, of_failure
from packhorse.serve.prometheus import ServerMetrics
from packhorse.serve.request_queue import RequestQueue
from packhorse.serve.request_state import Finished, RequestState
from packhorse.serve.requests import ParsedRequest
from packhorse.serve.service import Service
from packhorse.serve.supervisor import Supervisor
from servers import FAKE, served, wait_until

ENGINE = EngineConfig(engine="fake")
WORK = ParsedRequest(("a text",), {}, is_stream=False, include_usage=False)
PATIENCE_SECONDS = 60.0


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that an engine needs to be loaded; starts follow each other fast."""
    path = tmp_path / "answers.json"
    path.write_text("[]")
    monkeypatch.setenv(ANSWERS_VARIABLE, str(path))
    monkeypatch.setattr(supervising, "INITIAL_BACKOFF_SECONDS", 0.05)
    monkeypatch.setattr(supervising, "MAX_BACKOFF_SECONDS", 0.2)
    return path


def supervised(
    test: Callable[[Service], Awaitable[None]],
    lines: list[str],
    starting: AbstractContextManager[None] | None = None,
) -> None:
    """Runs `test` with an engine that is loaded. lines: gets what is reported. starting: around the
    first start."""

    async def run() -> None:
        prepared = prepare_for("fake", ENGINE)
        loading = EngineSpec(prepared, ENGINE, BatchingConfig(), SamplingParams(max_new_tokens=8))
        waiting = RequestQueue(QueueConfig())
        supervisor = Supervisor(loading, waiting, ServerMetrics(), lines.append)
        codec, most = prepared.codec(), RequestLimits().log_probs
        service = Service("fake", prepared, loading.decoding, supervisor, codec, most)
        try:
            with starting or nullcontext():
                await supervisor.start()
            await test(service)
        finally:
            await supervisor.stop()
            service.close()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_SECONDS))


def kill_engine(service: Service) -> None:
    engine = service.supervisor._engine
    assert engine is not None
    engine.kill()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def admitted(service: Service) -> RequestState:
    (choice,) = await service.admit(WORK)
    return choice.row


async def is_answered(service: Service) -> bool:
    row = await admitted(service)
    await row.done.wait()
    return isinstance(row.outcome, Finished)


@contextmanager
def no_more_files() -> Iterator[None]:
    """The system refuses to open any further file, pipes for a process included."""
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_nobody_waits_for_an_engine_that_cannot_come_back(
    answers: Path, messages: list[str]
) -> None:
    """What waits is answered, what comes is refused, and the engine is tried again until it is
    back."""

    async def test(service: Service) -> None:
        supervisor = service.supervisor
        answers.unlink()
        kill_engine(service)
        await until(lambda: supervisor.state == "restarting")
        waits = await admitted(service)
        await waits.done.wait()
        assert isinstance(waits.outcome, Failure)
        assert waits.outcome.code == "engine_unavailable"
        assert of_failure(waits.outcome).status == 503
        with pytest.raises(APIError) as refused:
            await service.admit(WORK)
        assert (refused.value.status, refused.value.code) == (503, "engine_unavailable")
        assert refused.value.retry_after is not None
        answers.write_text("[]")
        await until(lambda: supervisor.state == "ready")
        assert await is_answered(service)

    supervised(test, messages)
    assert sum("does not come back" in line for line in messages) == 1


@pytest.mark.slow
def test_an_engine_that_dies_after_each_batch_is_not_one_that_cannot_start(
    answers: Path, messages: list[str]
) -> None:
    async def test(service: Service) -> None:
        for _ in range(supervising.MAX_FAILED_STARTS + 1):
            kill_engine(service)
            await until(lambda: service.supervisor.state == "restarting")
            assert await is_answered(service)

    supervised(test, messages)


@pytest.mark.slow
def test_nobody_waits_for_an_engine_that_hangs_while_it_is_loaded(
    answers: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervising, "MAX_ENGINE_ABSENCE_SECONDS", 0.3)

    async def test(service: Service) -> None:
        answers.unlink()
        os.mkfifo(answers)
        kill_engine(service)
        await until(lambda: service.supervisor.state == "restarting")
        waits = await admitted(service)
        await waits.done.wait()
        assert isinstance(waits.outcome, Failure)
        assert waits.outcome.code == "engine_unavailable"
        answers.write_text("[]")  # what reads the pipe goes on
        await until(lambda: service.supervisor.state == "ready")
        assert await is_answered(service)

    supervised(test, messages)


@pytest.mark.slow
def test_an_engine_that_the_system_cannot_start_is_tried_again(
    answers: Path, messages: list[str]
) -> None:
    async def test(service: Service) -> None:
        with no_more_files():
            kill_engine(service)
            await until(lambda: any("Too many open files" in line for line in messages))
        await until(lambda: service.supervisor.state == "ready")
        assert await is_answered(service)

    supervised(test, messages)


def test_an_engine_that_the_system_cannot_start_at_first(messages: list[str]) -> None:
    async def test(service: Service) -> None:
        raise AssertionError("there is no engine")

    with pytest.raises(EngineError, match="cannot be started: Too many open files"):
        supervised(test, messages, starting=no_more_files())


@pytest.mark.parametrize(
    ("said", "outcome"), [(2, Finished), (3, Failure), (1, Failure)], ids=["all", "lost", "doubled"]
)
def test_a_row_is_answered_only_with_all_of_its_tokens(said: int, outcome: type) -> None:
    """What the engine's process says of a row, where two tokens have arrived."""

    async def run() -> RequestState:
        prepared = prepare_for("fake", ENGINE)
        loading = EngineSpec(prepared, ENGINE, BatchingConfig(), SamplingParams())
        supervisor = Supervisor(loading, RequestQueue(QueueConfig()), ServerMetrics())
        (row,) = supervisor.submit([Prompt(7, (1,), SamplingParams())]) or []
        tokens: list[Message] = [{"kind": "token", "row": 7, "id": each} for each in (97, 98)]
        done = {"row": 7, "reason": "stop", "tokens": said, "timing": [0.0, 1.0, 0.5]}
        supervisor._handle([*tokens, {"kind": "done", **done}])
        return row

    assert isinstance(asyncio.run(run()).outcome, outcome)


@pytest.mark.slow
@pytest.mark.parametrize("stderr", ["broken", "closed", "full", "unread"])
def test_lines_that_nobody_can_read_end_nothing(tmp_path: Path, stderr: str) -> None:
    """The engine dies twice, and each time is reported to a stream that takes nothing."""
    port = free_port()
    arguments = [
        sys.executable, "-m", "packhorse", "serve", *FAKE, "--port", str(port),
        "--state", str(tmp_path / "state"),
    ]  # fmt: skip
    if stderr == "closed":
        arguments = ["sh", "-c", 'exec "$@" 2>&-', "sh", *arguments]
    reader, writer = os.pipe()
    if stderr == "unread":
        os.set_blocking(writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)
        os.set_blocking(writer, True)
    else:
        os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    process = subprocess.Popen(arguments, stderr=full if stderr == "full" else writer)
    os.close(writer)
    os.close(full)
    engines: set[int] = set()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            while len(engines) < 3:
                wait_until(lambda: is_ready(client), PATIENCE_SECONDS)
                for each in psutil.Process(process.pid).children():
                    with suppress(psutil.ZombieProcess):  # the engine killed before
                        if "spawn_main" in " ".join(each.cmdline()) and each.pid not in engines:
                            engines.add(each.pid)
                            if len(engines) < 3:
                                each.kill()
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        if stderr == "unread":
            os.close(reader)


def test_time_in_which_the_process_was_stopped_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("packhorse.serve.supervisor.time.monotonic", lambda: 5000.0)
    assert supervising._running_seconds(since=4999.0, pause=1.0) == 1.0
    assert supervising._running_seconds(since=0.0, pause=1.0) == 2.0


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", ["packhorse.serve.batches.Batches", "packhorse.serve.supervisor.Supervisor"]
)
def test_a_background_task_that_ends_shows(tmp_path: Path, fault: str) -> None:
    """In /health/ready as long as the server stays, which it does if requests are still answered;
    in one line; and in the exit code."""
    module, _, name = fault.rpartition(".")
    method = {"Batches": "_run_batch", "Supervisor": "_handle_engine_exit"}[name]
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\n"
        f"if 'serve' in sys.argv:\n"
        f"    import {module} as broken\n"
        f"    def fail(*arguments):\n"
        f"        raise RuntimeError('a fault of ours')\n"
        f"    broken.{name}.{method} = fail\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with served(*FAKE, "--state", str(tmp_path / "state"), PYTHONPATH=path) as server:
        with server.client() as client:
            if name == "Batches":
                upload = {"file": ("rows.jsonl", json.dumps(batch_line(1, prompt="a")).encode())}
                file = client.post("/v1/files", data={"purpose": "batch"}, files=upload).json()
                asked = {"input_file_id": file["id"], "endpoint": "/v1/completions"}
                client.post("/v1/batches", json={**asked, "completion_window": "24h"})
                wait_until(lambda: not is_ready(client))
                answer = client.get("/health/ready")
                assert answer.json()["error"]["code"] == "background_task_stopped"
                body = {"model": "fake", "prompt": "a text", "max_tokens": 2}
                assert client.post("/v1/completions", json=body).status_code == 200
                server.process.terminate()
            else:
                server.engine().kill()
        assert server.process.wait(PATIENCE_SECONDS) == 3
        wait_until(lambda: any("RuntimeError: a fault of ours" in each for each in server.lines))
        assert not any("Traceback" in each for each in server.lines)


@pytest.mark.slow
def test_rows_of_a_batch_wait_until_the_engine_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = tmp_path / "answers.json"
    answers.write_text("[]")
    monkeypatch.setenv(ANSWERS_VARIABLE, str(answers))
    body = {"model": "fake", "prompt": "a text", "max_tokens": 8}
    lines = [
        json.dumps(
            {"custom_id": str(row), "method": "POST", "url": "/v1/completions", "body": body}
        )
        for row in range(12)
    ]
    options = ("--state", str(tmp_path / "state"), "--batching", "single", "--workers", "1")
    with served(*FAKE, *options, seconds_per_token=0.05) as server, server.client() as client:
        upload = {"file": ("rows.jsonl", "\n".join(lines).encode())}
        file = client.post("/v1/files", data={"purpose": "batch"}, files=upload).json()
        asked = {"input_file_id": file["id"], "endpoint": "/v1/completions"}
        batch = client.post("/v1/batches", json={**asked, "completion_window": "24h"}).json()
        wait_until(lambda: server.metric("packhorse_waiting_rows") > 5)
        answers.unlink()
        server.engine().kill()
        wait_until(lambda: client.get("/status").json()["state"] == "unavailable")
        assert server.metric("packhorse_waiting_rows") == 0
        answers.write_text("[]")

        def document() -> dict[str, Any]:
            found: dict[str, Any] = client.get(f"/v1/batches/{batch['id']}").json()
            return found

        wait_until(lambda: document()["status"] == "completed", PATIENCE_SECONDS)
        assert document()["request_counts"] == {"total": 12, "completed": 12, "failed": 0}
