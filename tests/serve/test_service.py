"""What a request is refused before any work for it, without a server around it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import packhorse
from packhorse import EngineConfig
from packhorse.batching.sizes import Limits
from packhorse.engine_protocol import EngineCapabilities
from packhorse.inference.model import prepare_for
from packhorse.serve.child import EngineSpec
from packhorse.serve.config import QueueConfig
from packhorse.serve.errors import APIError
from packhorse.serve.prometheus import ServerMetrics
from packhorse.serve.request_queue import Batching, RequestQueue
from packhorse.serve.requests import ParsedRequest
from packhorse.serve.service import PROMPTS_AT_ONCE, Service
from packhorse.serve.supervisor import Supervisor
from packhorse.serve.wire import LoadedEngine
from packhorse.tokenization import Tokenizer


def service_of(capabilities: EngineCapabilities, max_log_probs: int = 1 << 18) -> Service:
    """Of an engine that says it is loaded and runs nothing."""
    engine = EngineConfig(engine="fake")
    prepared = prepare_for("fake", engine)
    loading = EngineSpec(prepared, engine, packhorse.BatchingConfig(), packhorse.SamplingParams())
    supervisor = Supervisor(loading, RequestQueue(QueueConfig()), ServerMetrics())
    supervisor.loaded = LoadedEngine(Batching(capabilities, "single", Limits(1, 256)), "")
    codec = prepared.codec()
    return Service("fake", prepared, packhorse.SamplingParams(), supervisor, codec, max_log_probs)


def test_an_engine_that_does_not_tell_them_says_so() -> None:
    service = service_of(EngineCapabilities("silent", "padded", "cpu", "float32", 1, 1, 256, 0, 1))
    work = ParsedRequest(("text",), {"top_log_probs": 1}, is_stream=False, include_usage=False)
    with pytest.raises(
        APIError, match=r"the engine silent does not .* ctranslate2 or packed"
    ) as said:
        asyncio.run(service.admit(work))
    service.close()
    assert (said.value.status, said.value.param) == (400, "logprobs")


@pytest.mark.parametrize(
    ("options", "choices", "count"),
    [
        ({"top_log_probs": 20, "max_new_tokens": 48}, 1, 48 * 21),
        ({"top_log_probs": 0, "max_new_tokens": 200, "temperature": 1.0, "n": 6}, 6, 200 * 6),
    ],
)
def test_an_answer_that_would_hold_too_many_is_refused(
    options: dict[str, Any], choices: int, count: int
) -> None:
    capabilities = EngineCapabilities(
        "fake", "padded", "cpu", "float32", 1, 1, 256, 0, 1, gives_log_probs=True
    )
    work = ParsedRequest(("text",), options, is_stream=False, include_usage=False)
    for most, is_refused in ((count - 1, True), (count, False)):
        service = service_of(capabilities, most)
        if is_refused:
            with pytest.raises(APIError, match=f"{count:,} log-probabilities") as said:
                asyncio.run(service.admit(work))
            assert (said.value.status, said.value.code) == (400, "too_many_log_probs")
        else:
            assert len(asyncio.run(service.admit(work))) == choices
        service.close()


class Untouched:
    """A tokenizer that nobody may ask."""

    def encode(self, *arguments: Any) -> Any:
        raise AssertionError("a text was tokenized")


@pytest.mark.parametrize("content", ["x" * 256, ({"role": "user", "content": "y" * 256},)])
def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(content: Any) -> None:
    """The fake model's tokens are bytes: 256 characters never fit beside a token to be made."""
    service = service_of(EngineCapabilities("fake", "padded", "cpu", "float32", 1, 1, 256, 0, 1))
    service._tokenizers.get()
    service._tokenizers.put(Untouched())  # type: ignore[arg-type]
    work = ParsedRequest((content,), {}, is_stream=False, include_usage=False)
    with pytest.raises(APIError, match="256 characters") as said:
        asyncio.run(service.admit(work))
    assert (said.value.status, said.value.code) == (400, "context_length_exceeded")
    service.close()


def test_a_row_that_takes_long_to_tokenize_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor does a request of many prompts, whose turn ends every few of them."""
    encode, may_end, sizes = Tokenizer.encode, threading.Event(), []

    def encoded(self: Tokenizer, requests: Any, *arguments: Any) -> Any:
        sizes.append(len(requests))
        if requests[0].content == "slow":
            assert may_end.wait(20)
        return encode(self, requests, *arguments)

    monkeypatch.setattr(Tokenizer, "encode", encoded)
    service = service_of(EngineCapabilities("fake", "padded", "cpu", "float32", 1, 1, 256, 0, 1))

    def admitted(*contents: str) -> Any:
        work = ParsedRequest(contents, {}, is_stream=False, include_usage=False)
        return asyncio.wait_for(service.admit(work), 20)

    async def run() -> None:
        slow = asyncio.create_task(admitted("slow"))
        await asyncio.sleep(0.1)
        for _ in range(3):
            assert len(await admitted("text")) == 1
        assert len(await admitted(*["text"] * 20)) == 20
        assert not slow.done()
        may_end.set()
        assert len(await slow) == 1

    asyncio.run(run())
    service.close()
    assert max(sizes) == PROMPTS_AT_ONCE
