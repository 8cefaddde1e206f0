"""What an answer that must match a JSON schema costs, against free answers of the same lengths.

    python benchmarks/structured_outputs.py MODEL INPUT.jsonl [--rows 200] [--repeats 5]
        [--engine packed] [--quantization int8] [--schema FILE] [--max-new-tokens 96]

Each constrained row runs again without its schema, for exactly as many tokens. The two alternate.
The last line is one JSON document: medians of the seconds, their ratio, and the share of answers
that are complete and valid.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

import jsonschema

import packhorse
from packhorse.data import Completion, Request, SamplingParams
from packhorse.openai_format.messages import read_messages
from packhorse.profiling.run_metrics import Meter
from packhorse.tokenization import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "topic": {"type": "string", "maxLength": 40},
        "language": {"enum": ["english", "german", "other"]},
        "is_question": {"type": "boolean"},
        "urgency": {"type": "integer", "minimum": 1, "maximum": 5},
        "keywords": {
            "type": "array", "items": {"type": "string", "maxLength": 16},
            "minItems": 1, "maxItems": 3,
        },
    },
    "required": ["topic", "language", "is_question", "urgency", "keywords"],
    "additionalProperties": False,
}  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("input", type=Path)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--engine", default="packed")
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--schema", type=Path)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    return parser.parse_args()


def timed(model: packhorse.Model, rows: list[Request]) -> tuple[float, dict[int, Completion]]:
    """Return the seconds of all rows, and their completions by index."""
    decoding = SamplingParams()
    tokenizer = Tokenizer(model.codec, None, "truncate-left", model.now())
    started = time.perf_counter()
    run = model.start_generation(tokenizer, decoding, model.budget(decoding), Meter())
    found = [each for each in run.outcomes(iter(rows)) if isinstance(each, Completion)]
    assert len(found) == len(rows), "a row failed"
    return time.perf_counter() - started, {each.index: each for each in found}


def main() -> None:
    given = arguments()
    schema = json.loads(given.schema.read_text()) if given.schema else SCHEMA
    structured = packhorse.structured_output("json_schema", schema)
    lines = given.input.read_text(encoding="utf-8").splitlines()[: given.rows]
    parsed = map(json.loads, lines)
    texts = [row.get("prompt") or read_messages(row["messages"]) for row in parsed]
    config = packhorse.EngineConfig(engine=given.engine, quantization=given.quantization)
    options = {"structured_outputs": structured, "max_new_tokens": given.max_new_tokens}
    constrained = [Request(i, i, i + 1, text, options) for i, text in enumerate(texts)]
    with packhorse.load(given.model, engine=config) as model:
        timed(model, constrained[:4])
        seconds: dict[str, list[float]] = {"constrained": [], "free": []}
        for repeat in range(given.repeats):
            taken, found = timed(model, constrained)
            seconds["constrained"].append(taken)
            free = [
                Request(i, i, i + 1, text, {
                    "ignore_eos": True, "max_new_tokens": len(found[i].token_ids) + 1
                })
                for i, text in enumerate(texts)
            ]  # fmt: skip
            seconds["free"].append(timed(model, free)[0])
            print(f"{repeat + 1}: " + ", ".join(f"{k} {v[-1]:.2f} s" for k, v in seconds.items()))
    complete = [each for each in found.values() if each.finish_reason == "stop"]
    for each in complete:
        jsonschema.validate(json.loads(each.text), schema)
    medians = {name: median(values) for name, values in seconds.items()}
    result = {
        "rows": len(texts), "seconds": seconds, "medians": medians,
        "ratio": medians["constrained"] / medians["free"],
        "complete_and_valid": len(complete) / len(texts),
        "tokens": sum(len(each.token_ids) for each in found.values()),
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
