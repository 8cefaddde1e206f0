"""CTranslate2 as packhorse plans it against CTranslate2's own settings, on the same rows.

    python benchmarks/ct2_settings.py MODEL INPUT [--rows 200] [--repeats 5] [--screen-rows 64]

Both run the same prepared int8 model. CTranslate2's own way is one call of `generate_batch` with
all prompts, `max_batch_size` and `batch_type` of its own (it sorts and cuts by itself), without the
prompt in the result; its prompts are tokenized beforehand and its answers not decoded, while
packhorse's time includes both. Every run is a process of its own, warmed up first.

All settings run once on the first `--screen-rows`; then `planned` and the fastest `--finalists` of
CTranslate2's own run `--repeats` times on all rows, interleaved, and the fastest with its default
threads (one worker of them all) once. A run that takes `--give-up` times as long as `planned` did
is stopped and counts as "more than". The last line is one JSON document with every raw value.
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packhorse.data import Content

PLANNED = "packhorse planned"
Setting = tuple[str, int, int, int]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("input")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--screen-rows", type=int, default=64)
    parser.add_argument("--finalists", type=int, default=2)
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


def prompts_of(options: argparse.Namespace) -> list[Content]:
    from pathlib import Path

    from packhorse.config import InputConfig
    from packhorse.data import Request
    from packhorse.inputs import read_rows

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
    from packhorse.data import as_messages
    from packhorse.inference.model import prepare_for
    from packhorse.models import model_facts
    from packhorse.models.ctranslate2_folder import vocabulary
    from packhorse.tokenization import HuggingFaceCodec, Refusal

    kind, size, workers, threads = setting
    prepared = prepare_for(
        options.model, EngineConfig("ctranslate2", quantization=options.quantization)
    )
    codec = HuggingFaceCodec(prepared.tokenizer_folder)
    encoded = codec.encode_chats(list(map(as_messages, prompts_of(options))))
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


def run_trial(
    options: argparse.Namespace, name: str, rows: int, most_seconds: float | None
) -> dict[str, Any]:
    """One trial in a fresh process; {"over": seconds} when it was stopped."""
    command = [
        sys.executable, __file__, options.model, options.input, "--trial", name,
        "--rows", str(rows), "--max-new-tokens", str(options.max_new_tokens),
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


def seconds_of(trial: dict[str, Any]) -> float:
    return float(trial.get("seconds", float("inf")))


def main() -> None:
    options = arguments()
    own = settings(options.cores)
    if options.trial:
        is_planned = options.trial == PLANNED
        trial = planned_trial(options) if is_planned else own_trial(options, own[options.trial])
        print(json.dumps(trial))
        return
    run_trial(options, PLANNED, 4, None)  # converts and calibrates where that was not done before
    screened = screen(options, own)
    ranking = sorted(own, key=lambda name: seconds_of(screened[name]))
    finalists = ranking[: options.finalists]
    runs: dict[str, list[dict[str, Any]]] = {PLANNED: [], **{name: [] for name in finalists}}
    for repeat in range(options.repeats):
        for name, trials in runs.items():
            trials.append(run_trial(options, name, options.rows, None))
            print(f"repeat {repeat + 1} {name}: {trials[-1]}", file=sys.stderr)
    ours = median(seconds_of(trial) for trial in runs[PLANNED])
    default = next(name for name in ranking if own[name][2] == 1)
    patience = options.give_up * ours + 10
    of_default = run_trial(options, default, options.rows, patience)
    report(options, screened, runs)
    best = min(median(seconds_of(trial) for trial in runs[name]) for name in finalists)
    print(f"planned is {best / ours:.2f} times as fast as the best of CTranslate2's own settings")
    least = f"more than {patience / ours:.1f}" if "over" in of_default else (
        f"{seconds_of(of_default) / ours:.2f}"
    )  # fmt: skip
    print(f"and {least} times as fast as {default}, the best with its default threads")
    print(json.dumps({"screened": screened, "runs": runs, "default threads": of_default}))


def screen(options: argparse.Namespace, own: dict[str, Setting]) -> dict[str, dict[str, Any]]:
    """Every setting, and `planned`, once on the first rows."""
    found = {PLANNED: run_trial(options, PLANNED, options.screen_rows, None)}
    patience = options.give_up * seconds_of(found[PLANNED]) + 10
    for name in own:
        found[name] = run_trial(options, name, options.screen_rows, patience)
        print(f"{name}: {found[name]}", file=sys.stderr)
    return found


def report(
    options: argparse.Namespace,
    screened: dict[str, dict[str, Any]],
    runs: dict[str, list[dict[str, Any]]],
) -> None:
    print(f"{options.input}, {options.max_new_tokens} new tokens, {options.quantization}")
    print("batch_type max_batch_size, workers x threads: seconds")
    print(
        f"{'':26}{options.screen_rows:>8} rows   {options.rows} rows, median of {options.repeats}"
    )
    for name, trial in screened.items():
        once = f"> {trial['over']:.0f}" if "over" in trial else f"{trial['seconds']:.1f}"
        middle = ""
        if trials := runs.get(name):
            values = [seconds_of(one) for one in trials]
            middle = f"{median(values):.1f} ({min(values):.1f}-{max(values):.1f})"
        print(f"{name:26}{once:>13}   {middle}")


if __name__ == "__main__":
    main()
