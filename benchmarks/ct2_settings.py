"""CTranslate2 as packhorse plans it against CTranslate2's own settings, on the same rows.

    python benchmarks/ct2_settings.py MODEL INPUT [--rows 200] [--repeats 5] [--finalists 3]

Both run the same prepared int8 model. CTranslate2's own way is one call of `generate_batch` with
all prompts, `max_batch_size` and `batch_type` of its own (it sorts and cuts by itself), without the
prompt in the result; its prompts are tokenized beforehand and its answers not decoded, while
packhorse's time includes both. Every run is a process of its own, warmed up first.

All settings run once; then `planned` and the fastest `--finalists` of CTranslate2's own run
`--repeats` times, interleaved. A run that takes `--give-up` times as long as `planned` did is
stopped and counts as "more than". The last line is one JSON document with every raw value.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from statistics import median
from typing import Any

from packhorse.data import Message

PLANNED = "packhorse planned"
Setting = tuple[str, int, int, int]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("input")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--finalists", type=int, default=3)
    parser.add_argument("--give-up", type=float, default=4.5)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--trial", help=argparse.SUPPRESS)
    return parser.parse_args()


def settings(cores: int) -> dict[str, Setting]:
    """batch_type, max_batch_size, workers, threads; size 0 is everything in one batch."""
    sizes = [("examples", size) for size in (1, 4, 8, 16, 32)]
    sizes += [("tokens", size) for size in (1024, 2048, 4096, 8192)]
    return {
        f"{kind} {size}, {workers} x {threads}": (kind, size, workers, threads)
        for workers, threads in ((cores, 1), (1, cores))
        for kind, size in sizes
    }


def prompts_of(options: argparse.Namespace) -> list[str | tuple[Message, ...]]:
    from pathlib import Path

    from packhorse.config import InputConfig
    from packhorse.data import Request
    from packhorse.sources import read_rows

    rows = read_rows(Path(options.input), InputConfig(limit=options.rows))
    return [row.content for row in rows if isinstance(row, Request)]


def planned_trial(options: argparse.Namespace) -> dict[str, Any]:
    import packhorse
    from packhorse.config import EngineConfig

    prompts = prompts_of(options)
    engine = EngineConfig("ctranslate2", quantization=options.quantization)
    with packhorse.load(options.model, engine=engine) as model:
        list(model.generate(prompts[:2], max_new_tokens=4))
        started = time.monotonic()
        answers = list(model.generate(prompts, max_new_tokens=options.max_new_tokens))
        seconds = time.monotonic() - started
        tokens = [
            0 if isinstance(answer, packhorse.Failure) else answer.completion_tokens
            for answer in answers
        ]
        policy = model.batching.policy
    assert policy == "planned"
    return {"seconds": seconds, "tokens": sum(tokens), "rows": len(answers)}


def own_trial(options: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """`generate_batch` with the setting; "seconds" are of that call alone."""
    import ctranslate2

    from packhorse.config import EngineConfig
    from packhorse.models import model_facts
    from packhorse.models.ctranslate2_folder import vocabulary
    from packhorse.session import prepare_for
    from packhorse.tokenization import HuggingFaceCodec, Refusal

    kind, size, workers, threads = setting
    prepared = prepare_for(
        options.model, EngineConfig("ctranslate2", quantization=options.quantization)
    )
    codec = HuggingFaceCodec(prepared.tokenizer_folder)
    encoded = codec.encode_chats(
        [
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            for prompt in prompts_of(options)
        ]
    )
    words = vocabulary(prepared.folder)
    prompts = [[words[token] for token in ids] for ids in encoded if not isinstance(ids, Refusal)]
    generator = ctranslate2.Generator(
        str(prepared.folder), device="cpu", inter_threads=workers, intra_threads=threads
    )
    chosen: dict[str, Any] = {
        "max_batch_size": size,
        "batch_type": kind,
        "end_token": list(model_facts(prepared).eos_token_ids),
        "include_prompt_in_result": False,
        "sampling_topk": 1,
    }
    generator.generate_batch(prompts[:2], max_length=4, **chosen)
    started = time.monotonic()
    results = generator.generate_batch(prompts, max_length=options.max_new_tokens, **chosen)
    seconds = time.monotonic() - started
    tokens = sum(len(result.sequences_ids[0]) for result in results)
    return {"seconds": seconds, "tokens": tokens, "rows": len(results)}


def run_trial(options: argparse.Namespace, name: str, most_seconds: float | None) -> dict[str, Any]:
    """One trial in a fresh process; {"over": seconds} when it was stopped."""
    command = [
        sys.executable, __file__, options.model, options.input, "--trial", name,
        "--rows", str(options.rows), "--max-new-tokens", str(options.max_new_tokens),
        "--quantization", options.quantization, "--cores", str(options.cores),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out, _ = process.communicate(timeout=most_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return {"over": most_seconds}
    if process.returncode:
        sys.exit(f"{name} failed with {process.returncode}")
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def main() -> None:
    options = arguments()
    own = settings(options.cores)
    if options.trial:
        is_planned = options.trial == PLANNED
        trial = planned_trial(options) if is_planned else own_trial(options, own[options.trial])
        print(json.dumps(trial))
        return
    run_trial(options, PLANNED, None)  # converts and calibrates where that was not done before
    runs: dict[str, list[dict[str, Any]]] = {PLANNED: [run_trial(options, PLANNED, None)]}
    patience = options.give_up * runs[PLANNED][0]["seconds"]
    for name in own:
        runs[name] = [run_trial(options, name, patience + 10)]
        print(f"{name}: {runs[name][0]}", file=sys.stderr)
    finished = [name for name in own if "seconds" in runs[name][0]]
    finalists = sorted(finished, key=lambda name: runs[name][0]["seconds"])[: options.finalists]
    for repeat in range(options.repeats):
        for name in (PLANNED, *finalists):
            runs[name].append(run_trial(options, name, None))
            print(f"repeat {repeat + 1} {name}: {runs[name][-1]}", file=sys.stderr)
    report(options, runs, finalists)
    print(json.dumps(runs))


def report(
    options: argparse.Namespace, runs: dict[str, list[dict[str, Any]]], finalists: list[str]
) -> None:
    print(
        f"{options.rows} rows of {options.input}, {options.max_new_tokens} new tokens, "
        f"{options.quantization}, {options.cores} cores"
    )
    print("batch_type max_batch_size, workers x threads: seconds, tokens generated")
    for name, trials in runs.items():
        first = trials[0]
        if "over" in first:
            print(f"{name:26} more than {first['over']:.0f}, stopped")
            continue
        repeats = [trial["seconds"] for trial in trials[1:]]
        middle = ""
        if repeats:
            middle = f"median {median(repeats):.1f} ({min(repeats):.1f}-{max(repeats):.1f})"
        print(f"{name:26}{first['seconds']:8.1f} once{first['tokens']:8}   {middle}")
    ours = median(trial["seconds"] for trial in runs[PLANNED][1:])
    best = min(median(trial["seconds"] for trial in runs[name][1:]) for name in finalists)
    print(f"planned is {best / ours:.2f} times as fast as the best of CTranslate2's own settings")


if __name__ == "__main__":
    main()
