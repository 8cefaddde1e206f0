"""Engines under test, each with what a test must know of its model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packhorse.data import Batch, EngineOutput, Failure, Prompt, SamplingParams
from packhorse.engine_protocol import Engine, TokenCallback

Result = EngineOutput | Failure


@dataclass(frozen=True)
class Subject:
    """make: builds an engine from keyword arguments of its class; `end_ids` and `max_context` are
    always understood. ids: token ids that prompts may hold."""

    name: str
    make: Callable[..., Engine]
    ids: Sequence[int]
    end_ids: tuple[int, ...]
    max_context: int = 256
    longest: int = 60

    def prompts(self, rows: int, seed: int = 0, **decoding: Any) -> list[Prompt]:
        """Random prompts of 1 to `longest` tokens; limits of 1 to 24 where none is given."""
        chance = random.Random(seed)
        return [
            Prompt(
                index,
                tuple(chance.choices(self.ids, k=chance.randint(1, self.longest))),
                SamplingParams(**{"max_new_tokens": chance.randint(1, 24), **decoding}),
            )
            for index in range(rows)
        ]


def fake(name: str, **options: Any) -> Subject:
    from packhorse.engines.fake import FakeEngine

    def make(end_ids: tuple[int, ...] = (), max_context: int = 256, **more: Any) -> Engine:
        return FakeEngine(max_context=max_context, **{**options, **more})

    return Subject(name, make, range(256), end_ids=())


def transformers(name: str, folder: Path, end_ids: tuple[int, ...], **facts: Any) -> Subject:
    from packhorse.engines.transformers.engine import TransformersEngine

    def make(**options: Any) -> Engine:
        defaults = {"end_ids": end_ids, "max_context": 256, "device": "cpu", "threads": 1}
        return TransformersEngine(folder, **{**defaults, **options})

    return Subject(name, make, **{"ids": range(3, 300), "end_ids": end_ids, **facts})


def ctranslate2(name: str, folder: Path, end_ids: tuple[int, ...], **facts: Any) -> Subject:
    from packhorse.engines.ctranslate2.engine import CTranslate2Engine

    def make(**options: Any) -> Engine:
        defaults = {"end_ids": end_ids, "max_context": 256, "device": "cpu"}
        return CTranslate2Engine(folder, **{**defaults, **options})

    return Subject(name, make, **{"ids": range(3, 300), "end_ids": end_ids, **facts})


def packed(
    name: str, folder: Path, end_ids: tuple[int, ...], quantization: str, **facts: Any
) -> Subject:
    """Few rows, short steps and a cache of two rows at most, so that prompts are cut and rows are
    put back all the time."""
    from packhorse.engines.packed import PackedEngine
    from packhorse.engines.packed.architecture import read_architecture
    from packhorse.engines.packed.cache import bytes_per_token

    def make(**options: Any) -> Engine:
        token_bytes = bytes_per_token(read_architecture(folder), quantized=quantization == "int8")
        context = options.get("max_context", 256)
        defaults = {
            "end_ids": end_ids,
            "max_context": 256,
            "quantization": quantization,
            "max_num_seqs": 6,
            "max_num_batched_tokens": 37,
            "threads": 2,
            "cache_bytes": 2 * context * token_bytes,
        }
        return PackedEngine(folder, **{**defaults, **options})

    return Subject(name, make, **{"ids": range(3, 300), "end_ids": end_ids, **facts})


def in_batches(prompts: Sequence[Prompt], rows: int) -> Iterator[Batch]:
    return (Batch(tuple(prompts[start : start + rows])) for start in range(0, len(prompts), rows))


def run(
    engine: Engine, prompts: Sequence[Prompt], rows: int, on_token: TokenCallback | None = None
) -> dict[int, Result]:
    """Results by index, each row exactly once."""
    return by_index(engine.run(in_batches(prompts, rows), on_token))


def by_index(results: Iterable[Result]) -> dict[int, Result]:
    found: dict[int, Result] = {}
    for result in results:
        assert result.index not in found
        found[result.index] = result
    return found


def tokens(results: Mapping[int, Result]) -> dict[int, tuple[int, ...]]:
    """Generated ids by index; every row must have been completed."""
    found = {}
    for index, result in results.items():
        assert isinstance(result, EngineOutput), result
        found[index] = result.token_ids
    return found


def alone(engine: Engine, prompts: Sequence[Prompt]) -> dict[int, tuple[int, ...]]:
    """What each row generates in a batch of its own."""
    return tokens(run(engine, prompts, rows=1))


def codes(results: Mapping[int, Result]) -> dict[int, str]:
    """Failure codes by index, "" for rows that were completed."""
    return {
        index: result.code if isinstance(result, Failure) else ""
        for index, result in sorted(results.items())
    }


def with_decoding(prompt: Prompt, **changes: Any) -> Prompt:
    return replace(prompt, decoding=replace(prompt.decoding, **changes))


def converted(folder: Path, target: Path, quantization: str = "float32") -> Path:
    """A Hugging Face folder as a CTranslate2 folder."""
    from packhorse.models.checkpoint import open_checkpoint
    from packhorse.models.convert import convert_checkpoint

    target.mkdir(parents=True)
    convert_checkpoint(open_checkpoint(folder), quantization, target)
    return target
