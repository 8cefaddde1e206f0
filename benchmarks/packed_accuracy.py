"""What int8 changes on the packed engine, by the method that prepared the weights.

    python benchmarks/packed_accuracy.py MODEL INPUT [--skip 200] [--rows 64] [--max-new-tokens 64]
        [--methods plain rotate-smooth]

The float32 engine answers the rows greedily. Every method then computes the logits of those answers
token by token of the same text: KL divergence from float32 (nats per token) and the share of tokens
whose most probable successor is the same. It also answers the rows itself: the share of rows that
are equal, and the mean share of an answer before the first difference.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from packhorse.config import InputConfig
from packhorse.data import Batch, EngineOutput, Prompt, Request, SamplingParams, as_messages
from packhorse.engines.packed import PackedEngine
from packhorse.evaluation.quality import matched_prefix_share
from packhorse.inputs import read_rows
from packhorse.models import model_facts, prepare
from packhorse.tokenization import HuggingFaceCodec

Ids = tuple[int, ...]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("input")
    parser.add_argument("--skip", type=int, default=200)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--methods", nargs="+", default=["plain", "rotate-smooth"])
    return parser.parse_args()


def engine(model: str, quantization: str, method: str = "auto") -> PackedEngine:
    prepared = prepare(
        model, engine="packed", quantization=quantization, quantization_method=method
    )
    facts = model_facts(prepared)
    return PackedEngine(
        prepared.folder,
        end_ids=facts.eos_token_ids,
        max_context=facts.max_context,
        quantization=quantization,
    )


def prompts_of(options: argparse.Namespace) -> list[Ids]:
    codec = HuggingFaceCodec(prepare(options.model, engine="packed").tokenizer_folder)
    read = read_rows(Path(options.input), InputConfig(limit=options.skip + options.rows))
    rows = [row.content for row in read if isinstance(row, Request)][options.skip :]
    chats = list(map(as_messages, rows))
    return [ids for ids in codec.encode_chats(chats) if isinstance(ids, tuple)]


def answer(made: PackedEngine, prompts: Sequence[Ids], new: int) -> list[Ids]:
    rows = [Prompt(index, ids, SamplingParams(new)) for index, ids in enumerate(prompts)]
    found = {
        each.index: tuple(each.token_ids)
        for each in made.run(iter([Batch(tuple(rows))]))
        if isinstance(each, EngineOutput)
    }
    return [found[index] for index in range(len(prompts))]


def log_probs(
    made: PackedEngine, prompts: Sequence[Ids], answers: Sequence[Ids]
) -> Iterator[NDArray[np.float64]]:
    """Yield the log-probabilities [answer, vocabulary] of each row's answer."""
    for prompt, found in zip(prompts, answers, strict=True):
        logits = made.logits_after((*prompt, *found)[:-1], len(found)).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        yield logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def main() -> None:
    options = arguments()
    prompts = prompts_of(options)
    reference = engine(options.model, "float32")
    answers = answer(reference, prompts, options.max_new_tokens)
    print(f"{len(prompts)} rows, {sum(map(len, answers)):,} tokens of float32 answers")
    print(f"{'method':16}{'KL':>9}{'top-1':>8}{'rows':>7}{'prefix':>8}")
    found = {}
    for method in options.methods:
        made = engine(options.model, "int8", method)
        divergences, agreed = [], []
        for exact, given in zip(
            log_probs(reference, prompts, answers), log_probs(made, prompts, answers), strict=True
        ):
            divergences += (np.exp(exact) * (exact - given)).sum(axis=1).tolist()
            agreed += (exact.argmax(axis=1) == given.argmax(axis=1)).tolist()
        own = answer(made, prompts, options.max_new_tokens)
        pairs = list(zip(answers, own, strict=True))
        figures = {
            "kl": mean(divergences),
            "top_1": mean(map(float, agreed)),
            "rows": sum(one == other for one, other in pairs),
            "prefix": mean(matched_prefix_share(one, other) for one, other in pairs),
        }
        found[method] = figures
        print(
            f"{method:16}{figures['kl']:9.4f}{figures['top_1']:8.3f}{figures['rows']:7}"
            f"{figures['prefix']:8.3f}",
            flush=True,
        )
        made.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
