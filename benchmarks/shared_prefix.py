"""A job whose rows share an instruction, with and without computing it once.

    python benchmarks/shared_prefix.py MODEL [--rows 300] [--instruction-tokens 300] [--repeats 3]

Rows are an instruction of about so many tokens and a short text of their own each. Every run is a
process of its own; with and without sharing take turns. Prints medians (smallest to largest), how
many texts are equal, and as its last line one JSON document.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

RULES = (
    "Answer in one short sentence.",
    "Use plain words that a child of ten understands.",
    "Do not repeat the question.",
    "If a figure is asked for, give it with its unit.",
    "If the text names a person, keep the name as it is written.",
    "Do not add anything that the text does not say.",
    "Never give medical or legal advice.",
    "Write in the language of the text.",
)
SUBJECTS = ("river", "bridge", "mule", "market", "garden", "engine", "letter", "storm", "library")
VERBS = ("crossed", "rebuilt", "sold", "watched", "measured", "painted", "lost", "found", "guarded")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--instruction-tokens", type=int, default=300)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--engines",
        nargs="+",
        default=["ctranslate2:int8", "ctranslate2:float32", "transformers:float32"],
        metavar="ENGINE:FORMAT",
    )
    return parser.parse_args()


def instruction(tokens: int) -> str:
    """Numbered rules, about `tokens` tokens of them: a rule has about 14."""
    rules = [f"{number + 1}. {RULES[number % len(RULES)]}" for number in range(tokens // 14)]
    return "You rewrite texts by these rules:\n" + "\n".join(rules)


def write_job(path: Path, options: argparse.Namespace) -> None:
    chance = random.Random(1)  # noqa: S311 - the same job every time
    with path.open("w") as file:
        for number in range(options.rows):
            text = " ".join(
                f"The {chance.choice(SUBJECTS)} was {chance.choice(VERBS)} in {1800 + number}."
                for _ in range(chance.randint(1, 4))
            )
            messages = [
                {"role": "system", "content": instruction(options.instruction_tokens)},
                {"role": "user", "content": text},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


def run(options: argparse.Namespace, job: Path, engine: str, extra: list[str]) -> dict[str, Any]:
    name, quantization = engine.split(":")
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "packhorse", "run", options.model, str(job),
            "-o", f"{folder}/out.jsonl", "--json", "--engine", name,
            "--quantization", quantization, "--max-new-tokens", str(options.max_new_tokens),
            *extra,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{engine} failed with {done.returncode}:\n{done.stderr}")
        rows = [json.loads(line) for line in Path(f"{folder}/out.jsonl").read_text().splitlines()]
    session: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["session"]
    return {
        "seconds": session["seconds"]["generate"],
        "saved": session["prefix_tokens_saved"],
        "peak": session["peak_memory_bytes"],
        "texts": [row["text"] for row in rows],
    }


def spread(values: list[float]) -> str:
    return f"{median(values):6.1f} ({min(values):.1f}-{max(values):.1f})"


def main() -> None:
    options = arguments()
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.jsonl"
        write_job(job, options)
        for _ in range(options.repeats):
            for engine in options.engines:
                runs = found.setdefault(engine, {"shared": [], "whole": []})
                runs["shared"].append(run(options, job, engine, []))
                runs["whole"].append(run(options, job, engine, ["--no-share-prefixes"]))
    print(f"{options.rows} rows, {options.max_new_tokens} new tokens, {options.repeats} repeats")
    print(f"{'':22}{'shared s':>22}{'whole s':>22}{'faster':>9}{'same text':>11}{'saved':>9}")
    for engine, runs in found.items():
        shared, whole = ([one["seconds"] for one in runs[kind]] for kind in ("shared", "whole"))
        pairs = zip(runs["shared"][0]["texts"], runs["whole"][0]["texts"], strict=True)
        same = sum(one == other for one, other in pairs)
        print(
            f"{engine:22}{spread(shared):>22}{spread(whole):>22}"
            f"{median(whole) / median(shared):8.2f}x{same:>7}/{options.rows}"
            f"{runs['shared'][0]['saved']:9,}"
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
