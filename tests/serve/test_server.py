"""The server as its clients meet it: OpenAI's own client, unmodified, and what goes wrong."""

from __future__ import annotations

import concurrent.futures
import json
import signal
import threading
import time
from typing import Any

import httpx
import openai
import psutil
import pytest

import packhorse
from packhorse import EngineConfig
from servers import FAKE, Served, served, wait_until

HELLO: Any = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"


@pytest.fixture
def client(fake_server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{fake_server.address}/v1", api_key="none", max_retries=0)


def generated(prompt: str | list[dict[str, str]], **decoding: Any) -> str:
    """What the library answers."""
    with packhorse.load("fake", engine=EngineConfig(engine="fake")) as model:
        (answer,) = model.generate([prompt], **decoding)
    assert isinstance(answer, packhorse.Completion)
    return answer.text


def test_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=HELLO, max_tokens=30)
    assert answer.choices[0].message.content == generated(HELLO, max_new_tokens=30)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (11, 30)


def test_a_chat_as_a_stream(client: openai.OpenAI) -> None:
    parts = list(
        client.chat.completions.create(
            model="fake", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    texts = [part.choices[0].delta.content or "" for part in parts if part.choices]
    assert "".join(texts) == generated(HELLO, max_new_tokens=24)
    assert parts[0].choices[0].delta.role == "assistant"
    assert parts[-2].choices[0].finish_reason == "length"
    assert parts[-1].usage is not None
    assert parts[-1].usage.completion_tokens == 24
    assert len({part.id for part in parts}) == 1


def test_texts(client: openai.OpenAI) -> None:
    prompts = ["one", "two", "three"]
    answer = client.completions.create(model="fake", prompt=prompts, max_tokens=9)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [choice.text for choice in answer.choices]
    assert texts == [generated(prompt, max_new_tokens=9) for prompt in prompts]
    stream = client.completions.create(model="fake", prompt=prompts, max_tokens=9, stream=True)
    streamed = ["", "", ""]
    for part in stream:
        streamed[part.choices[0].index] += part.choices[0].text
    assert streamed == texts


def test_stop_strings(client: openai.OpenAI) -> None:
    whole = generated("a stop", max_new_tokens=60)
    stop = whole.split()[3]
    cut = whole.split(stop)[0]
    answer = client.completions.create(model="fake", prompt="a stop", max_tokens=60, stop=[stop])
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (cut, "stop")
    parts = client.completions.create(
        model="fake", prompt="a stop", max_tokens=60, stop=stop, stream=True
    )
    assert "".join(part.choices[0].text for part in parts) == cut


def test_choices_and_seeds(client: openai.OpenAI) -> None:
    def drawn(**options: Any) -> list[str]:
        answer = client.completions.create(
            model="fake", prompt="dice", max_tokens=20, temperature=1.0, top_p=0.9, **options
        )
        return [choice.text for choice in answer.choices]

    three = drawn(seed=7, n=3)
    assert len(set(three)) == 3
    assert drawn(seed=7, n=3) == three
    assert drawn(seed=7) == three[:1]
    assert drawn(seed=8) != three[:1]
    greedy = client.completions.create(model="fake", prompt="dice", max_tokens=20, n=8)
    assert len({choice.text for choice in greedy.choices}) == 1
    assert greedy.usage is not None
    assert greedy.usage.completion_tokens == 160


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").owned_by == "packhorse"


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="the model served here is 'fake'"):
        client.chat.completions.create(model="other", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="fake", prompt="x " * 30_000)
    assert refused.value.code == "context_length_exceeded"
    assert "--on-too-long" not in str(refused.value)


@pytest.mark.slow
def test_equal_prompts_at_once_get_equal_texts(fake_server: Served) -> None:
    def ask(number: int) -> tuple[int, str]:
        with fake_server.client() as client:
            body = {"model": "fake", "prompt": f"prompt {number % 10}", "max_tokens": 12}
            answer = client.post("/v1/completions", json=body)
            assert answer.status_code == 200
            return number % 10, answer.json()["choices"][0]["text"]

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(200)))
    assert len(set(answers)) == 10
    assert dict(answers)[3] == generated("prompt 3", max_new_tokens=12)


def stalled(server: Served, tokens: int = 140, **fields: Any) -> httpx.Response:
    """A request to the slow server, in whole."""
    with server.client() as client:
        body = {"model": "fake", "messages": HELLO, "max_tokens": tokens, **fields}
        return client.post(CHAT, json=body)


def in_background(call: Any, *arguments: Any, **options: Any) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call(*arguments, **options)))
    thread.start()
    return thread, results


def test_tokens_are_streamed_as_they_come(slow_server: Served) -> None:
    body = {"model": "fake", "messages": HELLO, "max_tokens": 30, "stream": True}
    with slow_server.client() as client, client.stream("POST", CHAT, json=body) as answer:
        lines = answer.iter_lines()
        moments = [time.monotonic() for line in lines if line.startswith("data: {")]
    assert len(moments) > 10
    assert moments[-1] - moments[0] > 0.3


def test_a_client_that_leaves_frees_its_place(slow_server: Served) -> None:
    running = "packhorse_running_rows"
    wait_until(lambda: slow_server.metric(running) == 0)
    left = slow_server.metric("packhorse_rows_abandoned_total")
    body = {"model": "fake", "prompt": "leaves early", "max_tokens": 150, "stream": True}
    with slow_server.client() as client:
        with client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()  # kept: the response is closed with it
            next(lines)
            assert slow_server.metric(running) == 1
        started = time.monotonic()
        wait_until(lambda: slow_server.metric(running) == 0)
        assert time.monotonic() - started < 1.0
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json={**body, "stream": False}, timeout=0.2)
        wait_until(lambda: slow_server.metric(running) == 0, seconds=1.0)
    assert slow_server.metric("packhorse_rows_abandoned_total") == left + 2


@pytest.mark.slow
def test_too_many_are_told_when_to_come_back(slow_server: Served) -> None:
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        prompts = [f"crowd {number}" for number in range(24)]
        asked = [pool.submit(stalled, slow_server, 20, user=prompt) for prompt in prompts]
        answers = [each.result() for each in asked]
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "queue_full"
            assert 1 <= int(answer.headers["retry-after"]) <= 60


def test_an_engine_that_dies_costs_what_it_ran(slow_server: Served) -> None:
    engine = slow_server.engine()
    thread, results = in_background(stalled, slow_server)
    wait_until(lambda: slow_server.metric("packhorse_running_rows") == 1)
    engine.kill()
    thread.join()
    assert results[0].status_code == 503
    assert results[0].json()["error"]["code"] == "engine_restarted"
    assert int(results[0].headers["retry-after"]) >= 1
    with slow_server.client() as client:
        assert client.get("/health/live").status_code == 200
        wait_until(lambda: client.get("/health/ready").status_code == 503)
        waited = in_background(stalled, slow_server, 3)
        wait_until(lambda: client.get("/health/ready").status_code == 200)
    waited[0].join()
    assert waited[1][0].status_code == 200
    assert slow_server.engine().pid != engine.pid
    assert slow_server.metric("packhorse_engine_restarts_total") == 1


@pytest.mark.slow
def test_an_engine_that_makes_no_progress_is_restarted() -> None:
    """Rows with it get 503, those that wait are answered by the next one."""
    options = ("--stall-seconds", "0.8", "--workers", "1")
    with served(*FAKE, *options, hang_on="never ends", seconds_per_token=0.01) as server:
        engine, started = server.engine(), time.monotonic()
        hanging = in_background(
            stalled, server, 5, messages=[{**HELLO[0], "content": "never ends"}]
        )
        wait_until(lambda: server.metric("packhorse_running_rows") == 1)
        waiting = in_background(stalled, server, 5)
        wait_until(lambda: server.metric("packhorse_waiting_rows") == 1)
        hanging[0].join()
        assert time.monotonic() - started > 0.8
        assert hanging[1][0].status_code == 503
        assert hanging[1][0].json()["error"]["code"] == "engine_restarted"
        with server.client() as client:
            assert client.get("/health/ready").status_code == 503
        waiting[0].join()
        assert waiting[1][0].status_code == 200
        assert server.engine().pid != engine.pid
        assert server.metric("packhorse_engine_stalls_total") == 1
        assert server.metric("packhorse_engine_restarts_total") == 1
        assert any("it made no progress for 0.8 s" in line for line in server.lines)


@pytest.mark.slow
def test_an_engine_that_is_stopped_makes_no_progress() -> None:
    with served(*FAKE, "--stall-seconds", "0.8", seconds_per_token=0.02) as server:
        engine = server.engine()
        thread, results = in_background(stalled, server, 100)
        wait_until(lambda: server.metric("packhorse_generated_tokens_total") > 5)
        engine.suspend()
        thread.join()
        assert results[0].json()["error"]["code"] == "engine_restarted"
        with server.client() as client:
            wait_until(lambda: client.get("/health/ready").status_code == 200)
        assert stalled(server, 3).status_code == 200


@pytest.mark.slow
def test_an_engine_that_is_slow_or_idle_is_left_alone() -> None:
    options = ("--stall-seconds", "0.8")
    with served(*FAKE, *options, seconds_per_token=0.3) as server:
        engine = server.engine()
        assert stalled(server, 6).status_code == 200
        time.sleep(1.5)
        assert stalled(server, 6).status_code == 200
        assert server.engine().pid == engine.pid
        assert server.metric("packhorse_engine_stalls_total") == 0


@pytest.mark.slow
def test_a_signal_lets_what_runs_end() -> None:
    with served(*FAKE, seconds_per_token=0.02) as server:
        engine = server.engine()
        thread, results = in_background(stalled, server, 60)
        wait_until(lambda: server.metric("packhorse_running_rows") == 1)
        server.process.send_signal(signal.SIGTERM)
        with server.client() as client:
            wait_until(lambda: client.get("/health/ready").status_code == 503)
            refused = client.post(CHAT, json={"model": "fake", "messages": HELLO})
            assert refused.json()["error"]["code"] == "shutting_down"
        thread.join()
        assert results[0].status_code == 200
        assert server.process.wait(20) == 0
        wait_until(lambda: not psutil.pid_exists(engine.pid))


@pytest.mark.slow
def test_a_drain_ends_at_its_deadline() -> None:
    arguments = ("--drain-seconds", "0.3")
    with served(*FAKE, *arguments, seconds_per_token=0.2) as server:
        thread, results = in_background(stalled, server, 150)
        wait_until(lambda: server.metric("packhorse_running_rows") == 1)
        server.process.send_signal(signal.SIGTERM)
        thread.join()
        assert results[0].status_code == 503
        assert results[0].json()["error"]["code"] == "shutting_down"
        assert server.process.wait(20) == 3


@pytest.mark.slow
def test_a_server_that_is_killed_leaves_no_engine() -> None:
    with served(*FAKE) as server:
        engine = server.engine()
        server.process.kill()
        wait_until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)


def test_a_model_that_cannot_be_loaded_ends_the_server(
    capsys: pytest.CaptureFixture[str], tiny: Any
) -> None:
    from packhorse.cli import main

    arguments = ["--engine", "transformers", "--quantization", "int8", "--port", "0"]
    assert main(["serve", str(tiny("llama")), *arguments]) == 2
    assert "does not run int8" in capsys.readouterr().err


def test_a_port_that_is_taken(fake_server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    from packhorse.cli import main

    port = fake_server.address.rsplit(":", 1)[1]
    assert main(["serve", "fake", "--engine", "fake", "--port", port]) == 2
    assert f"port {port}" in capsys.readouterr().err


def test_the_openapi_document_tells_of_errors(fake_server: Served) -> None:
    with fake_server.client() as client:
        document = client.get("/openapi.json").json()
    responses = document["paths"][CHAT]["post"]["responses"]
    assert set(responses) == {"200", "4XX", "5XX"}
    assert "ErrorResponse" in json.dumps(responses["4XX"])
