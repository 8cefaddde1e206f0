"""Embeddings through OpenAI's own client: those of the library, whatever else is asked for."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from packhorse.embeddings import BATCH_ROWS, SentenceEncoder
from packhorse.serve.config import RequestLimits
from packhorse.serve.embedding import Embedder, Vectors
from packhorse.serve.errors import APIError
from packhorse.serve.prometheus import ServerMetrics
from servers import FAKE, Served, served
from tiny_encoders import WORDS, tiny_encoder

EMBEDDINGS = "/v1/embeddings"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder that takes 16 tokens and makes 32 numbers."""
    return tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny-encoder")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> SentenceEncoder:
    return SentenceEncoder(folder)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    with served(*FAKE, "--embeddings", str(folder), "--workers", "2") as running:
        yield running


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    address = f"{server.address}/v1"
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as opened:
        yield opened


def sentences(count: int) -> list[str]:
    chance = np.random.default_rng(count)
    return [" ".join(chance.choice(WORDS, size=chance.integers(1, 13))) for _ in range(count)]


def vectors_of(answer: Any) -> Vectors:
    assert [each.index for each in answer.data] == list(range(len(answer.data)))
    return np.array([each.embedding for each in answer.data], np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"dimensions": 32}])
@pytest.mark.parametrize("count", [1, 3, 100])
def test_vectors_are_those_of_the_library(
    client: openai.OpenAI, encoder: SentenceEncoder, count: int, options: dict[str, Any]
) -> None:
    """The client asks for base64 where it is not told otherwise."""
    texts = sentences(count)
    answer = client.embeddings.create(model="tiny-encoder", input=texts, **options)
    assert answer.model == "tiny-encoder"
    np.testing.assert_allclose(vectors_of(answer), encoder.embed(texts), atol=1e-5)
    tokens = sum(len(text.split()) + 2 for text in texts)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)


def test_one_text_and_its_base64(server: Served, encoder: SentenceEncoder) -> None:
    body = {"model": "tiny-encoder", "input": "the horse", "encoding_format": "base64"}
    with server.client() as client:
        (found,) = client.post(EMBEDDINGS, json=body).json()["data"]
    vector = np.frombuffer(base64.b64decode(found["embedding"]), "<f4")
    np.testing.assert_allclose(vector, encoder.embed(["the horse"])[0], atol=1e-5)


def test_both_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake", "tiny-encoder"]
    card = client.models.retrieve("tiny-encoder").to_dict()
    assert card["max_model_len"] == 16
    with pytest.raises(openai.NotFoundError, match="model served here is 'fake'"):
        client.completions.create(model="tiny-encoder", prompt="x")


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny-encoder", "input": "the horse", **fields}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (asked(model="fake"), 404, "the embedding model served here is 'tiny-encoder'"),
        (asked(input=[]), 400, "input"),
        (asked(input=""), 400, "a text is empty"),
        (asked(input=["a", ""]), 400, "a text is empty"),
        (asked(input=[1, 2]), 400, "text, not tokens"),
        (asked(input=[[1, 2], [3]]), 400, "text, not tokens"),
        (asked(input={"text": "a"}), 400, "input"),
        (asked(input="the " * 15), 400, "text 0 has 17 tokens; tiny-encoder takes 16"),
        (asked(input=["the", "the " * 30]), 400, "text 1 has 32 tokens"),
        (asked(input=["a"] * 2049), 400, "at most 2,048 texts"),
        (asked(dimensions=16), 400, "makes vectors of 32 dimensions"),
        (asked(dimensions=0), 400, "dimensions"),
        (asked(encoding_format="int8"), 400, "encoding_format"),
        (asked(truncate=True), 400, "truncate"),
    ],
    ids=str,
)
def test_what_cannot_be_embedded_is_refused(
    server: Served, body: dict[str, Any], status: int, said: str
) -> None:
    with server.client() as client:
        answer = client.post(EMBEDDINGS, json=body)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


def test_without_an_embedding_model_the_option_is_named(fake_server: Served) -> None:
    with fake_server.client() as client:
        answer = client.post(EMBEDDINGS, json=asked())
    assert answer.status_code == 404
    assert "start it with --embeddings" in answer.json()["error"]["message"]


@pytest.mark.slow
def test_texts_and_answers_at_once(server: Served, encoder: SentenceEncoder) -> None:
    """Generation goes on while many texts are embedded, and no vector goes to another's request."""
    before = server.metric("packhorse_embedded_texts_total")

    def embed(count: int) -> None:
        with server.client() as client:
            texts = sentences(count)
            data = client.post(EMBEDDINGS, json=asked(input=texts)).json()["data"]
        found = np.array([each["embedding"] for each in data], np.float32)
        np.testing.assert_allclose(found, encoder.embed(texts), atol=1e-5)

    def generate(number: int) -> None:
        with server.client() as client:
            body = {"model": "fake", "prompt": f"prompt {number}", "max_tokens": 8}
            assert client.post("/v1/completions", json=body).status_code == 200

    with ThreadPoolExecutor(16) as pool:
        work = [pool.submit(embed, 20 + number) for number in range(20)]
        work += [pool.submit(generate, number) for number in range(20)]
        for each in work:
            each.result()
    total = sum(20 + number for number in range(20))
    assert server.metric("packhorse_embedded_texts_total") == before + total


class Counting:
    """An encoder that keeps what it was given, in batches, and waits for `may_go`."""

    dimensions, max_tokens = 2, 1000

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_go = threading.Event()

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [[ord(text[0])] * len(text) for text in texts]

    def forward(self, rows: Sequence[Sequence[int]]) -> Vectors:
        assert self.may_go.wait(20)
        self.batches.append([row[0] for row in rows])
        return np.zeros((len(rows), 2), np.float32)


def embedder(encoder: Any, **limits: int) -> Embedder:
    return Embedder("counting", encoder, replace(RequestLimits(), **limits), ServerMetrics())


def test_a_large_request_does_not_hold_up_a_small_one() -> None:
    async def both() -> list[list[int]]:
        encoder = Counting()
        small_and_large = embedder(encoder)
        texts = ["l" * (1 + number % 9) for number in range(10 * BATCH_ROWS)]
        large = asyncio.create_task(small_and_large.embed(texts, "float", None))
        await asyncio.sleep(0.1)
        small = asyncio.create_task(small_and_large.embed(["s"], "float", None))
        await asyncio.sleep(0.1)
        encoder.may_go.set()
        await asyncio.gather(large, small)
        small_and_large.close()
        return encoder.batches

    batches = asyncio.run(both())
    assert [len(batch) for batch in batches if batch[0] == ord("l")] == [BATCH_ROWS] * 10
    assert batches.index([ord("s")]) <= 2


def test_a_client_that_leaves_leaves_after_its_batch() -> None:
    async def left() -> tuple[int, int]:
        encoder = Counting()
        serving = embedder(encoder)
        asked = asyncio.create_task(serving.embed(["l"] * 500, "float", None))
        await asyncio.sleep(0.1)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        encoder.may_go.set()
        serving.close()
        await asyncio.to_thread(serving._thread.shutdown)
        return len(encoder.batches), serving.waiting_texts

    assert asyncio.run(left()) == (1, 0)


def test_too_many_texts_are_told_to_come_back() -> None:
    async def crowd() -> None:
        encoder = Counting()
        serving = embedder(encoder, embedding_waiting=10, embedding_tokens=30)
        first = asyncio.create_task(serving.embed(["a"] * 8, "float", None))
        await asyncio.sleep(0.05)
        with pytest.raises(APIError, match="too many texts wait") as refused:
            await serving.embed(["a"] * 3, "float", None)
        assert (refused.value.status, refused.value.retry_after) == (429, 1)
        encoder.may_go.set()
        await first
        await serving.embed(["a"] * 12, "float", None)
        with pytest.raises(APIError, match="the texts have 40 tokens; at most 30"):
            await serving.embed(["a" * 10] * 4, "float", None)
        serving.close()

    asyncio.run(crowd())


def test_a_drain_lets_texts_end_and_takes_no_more() -> None:
    async def drained() -> bool:
        encoder = Counting()
        serving = embedder(encoder)
        running = asyncio.create_task(serving.embed(["a"] * 100, "float", None))
        await asyncio.sleep(0.05)
        assert not await serving.drain(0.05, asyncio.Event())
        with pytest.raises(APIError, match="shutting down"):
            await serving.embed(["b"], "float", None)
        encoder.may_go.set()
        assert await serving.drain(20, asyncio.Event())
        await running
        encoder.may_go.clear()
        serving._is_open = True
        cut = asyncio.create_task(serving.embed(["a"] * 100, "float", None))
        await asyncio.sleep(0.05)
        serving.close()
        encoder.may_go.set()
        with pytest.raises(APIError, match="shutting down") as refused:
            await cut
        return refused.value.status == 503

    assert asyncio.run(drained())


def test_names_that_would_be_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from packhorse.cli import main

    arguments = ["--engine", "fake", "--port", "0", "--embeddings", str(folder)]
    assert main(["serve", "fake", "--name", "tiny-encoder", *arguments]) == 2
    assert "both models would be called tiny-encoder" in capsys.readouterr().err
    wrong = ["--engine", "fake", "--port", "0", "--embeddings", "no-such-model"]
    assert main(["serve", "fake", *wrong]) == 2
    assert "no embedding model 'no-such-model'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_catalog_model_knows_meaning() -> None:
    name = "all-minilm-l6-v2"
    texts = ["The cat sat on the mat.", "A cat was sitting on a mat.", "Interest rates rose."]
    with served(*FAKE, "--embeddings", name) as server:
        started = time.monotonic()
        with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none") as client:
            vectors = vectors_of(client.embeddings.create(model=name, input=texts))
            long = client.embeddings.create(model=name, input=["word " * 200] * 64)
        assert len(long.data) == 64
        assert time.monotonic() - started < 60
        with server.client() as plain:
            answer: httpx.Response = plain.post(
                EMBEDDINGS, json={"model": name, "input": "word " * 400}
            )
        assert "has 402 tokens; all-minilm-l6-v2 takes 256" in answer.json()["error"]["message"]
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert vectors.shape == (3, 384)
    assert near > 0.8 > 0.4 > far
