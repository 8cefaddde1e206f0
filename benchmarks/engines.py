"""Engines side by side on the same rows, interleaved, each run a process of its own.

    python benchmarks/engines.py MODEL INPUT [--rows 200] [--repeats 5] [--reference-rows 64]
        [--openvino-python PYTHON] [--systems NAME ...]

Systems: packhorse's engines, and OpenVINO GenAI's ContinuousBatchingPipeline on a q8_0 GGUF file
that is written from the same weights. OpenVINO is no dependency of packhorse: `pip install
openvino-genai numpy` somewhere and name that interpreter. All of OPENVINO_SETTINGS run once over
`--screen-rows` rows; the fastest takes part.

Seconds are of generation after two warm-up rows. packhorse's include tokenizing, planning and
decoding to text, OpenVINO's do not: it is given token ids. Accuracy is that of the first repeat on
the first `--reference-rows` rows against transformers float32, one row at a time. Two cores wander:
compare figures of one run. The last line is one JSON document with every raw value.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

OPENVINO = "openvino q8_0"
SYSTEMS = {
    "packed int8": ("packed", "int8", "continuous"),
    "packed float32": ("packed", "float32", "continuous"),
    "ctranslate2 int8": ("ctranslate2", "int8", "planned"),
    "transformers float32": ("transformers", "float32", "sorted-dynamic"),
}
REFERENCE = ("transformers", "float32", "single")
OPENVINO_SETTINGS = tuple(itertools.product((256, 512, 1024), (32, 64, 256)))
Rows = list[list[int]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("input")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--reference-rows", type=int, default=64)
    parser.add_argument("--screen-rows", type=int, default=64)
    parser.add_argument("--openvino-python", metavar="PYTHON")
    parser.add_argument("--openvino-setting", type=int, nargs=2, metavar=("TOKENS", "SEQUENCES"))
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--trial", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def contents(options: argparse.Namespace, rows: int) -> list[Any]:
    from packhorse.config import InputConfig
    from packhorse.data import Request
    from packhorse.inputs import read_rows

    read = read_rows(Path(options.input), InputConfig(limit=rows))
    return [row.content for row in read if isinstance(row, Request)]


def trial(options: argparse.Namespace, engine: str, quantization: str, policy: str) -> None:
    """One run in this process; its figures and tokens as JSON."""
    import packhorse
    from packhorse.config import BatchingConfig, EngineConfig

    prompts = contents(options, options.rows)
    started = time.monotonic()
    with packhorse.load(
        options.model,
        engine=EngineConfig(engine, quantization=quantization),
        batching=BatchingConfig(policy=policy),
    ) as model:
        list(model.generate(prompts[:2], max_new_tokens=4))
        loaded = time.monotonic()
        answers = list(model.generate(prompts, max_new_tokens=options.max_new_tokens))
        seconds = time.monotonic() - loaded
        tokens = {
            each.index: each.token_ids for each in answers if isinstance(each, packhorse.Completion)
        }
    report(seconds, loaded - started, [list(tokens.get(i, ())) for i in range(len(answers))])


def report(seconds: float, loading: float, tokens: Rows) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "loading": loading, "peak": peak, "tokens": tokens}))


def child(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_packhorse(
    options: argparse.Namespace, system: tuple[str, str, str], rows: int
) -> dict[str, Any]:
    return child([
        sys.executable, __file__, options.model, options.input, "--rows", str(rows),
        "--max-new-tokens", str(options.max_new_tokens), "--trial", *system,
    ])  # fmt: skip


class OpenVino:
    """The same prompts as token ids and the same weights as q8_0, in a scratch folder."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        from gguf_q8 import write_q8
        from packhorse.models import model_facts, prepare
        from packhorse.tokenization import HuggingFaceCodec

        self._python, self._new = options.openvino_python, options.max_new_tokens
        prepared = prepare(options.model, engine="transformers")
        self._model, self._prompts = folder / "q8.gguf", folder / "prompts.json"
        write_q8(prepared.folder, self._model)
        chats = [
            [{"role": "user", "content": content}] if isinstance(content, str) else content
            for content in contents(options, options.rows)
        ]
        ids = HuggingFaceCodec(prepared.tokenizer_folder).encode_chats(chats)
        assert all(isinstance(row, tuple) for row in ids)
        self._prompts.write_text(json.dumps(ids))
        self._ends = [str(each) for each in model_facts(prepared).eos_token_ids]

    def run(self, setting: tuple[int, int], rows: int) -> dict[str, Any]:
        peer = Path(__file__).with_name("openvino_peer.py")
        return child([
            self._python, str(peer), str(self._model), str(self._prompts), str(rows),
            str(self._new), str(setting[0]), str(setting[1]), *self._ends,
        ])  # fmt: skip

    def fastest(self, rows: int) -> tuple[int, int]:
        seconds = {each: self.run(each, rows)["seconds"] for each in OPENVINO_SETTINGS}
        for each, value in seconds.items():
            print(f"openvino, tokens and sequences {each}: {value:.1f} s", file=sys.stderr)
        return min(seconds, key=lambda each: seconds[each])


def accuracy(reference: Rows, found: Rows) -> dict[str, float]:
    from packhorse.evaluation.quality import matched_prefix_share

    pairs = list(zip(reference, found, strict=False))
    if not pairs:
        return {"rows": 0, "first": 0, "prefix": float("nan")}
    return {
        "rows": sum(a == b for a, b in pairs),
        "first": sum(a[:1] == b[:1] for a, b in pairs),
        "prefix": mean(matched_prefix_share(a, b) for a, b in pairs),
    }


def main() -> None:
    options = arguments()
    if options.trial:
        trial(options, *options.trial)
        return
    with tempfile.TemporaryDirectory() as folder:
        peer, setting = None, options.openvino_setting
        if options.openvino_python:
            peer = OpenVino(options, Path(folder))
            setting = setting or peer.fastest(options.screen_rows)
            print(f"openvino: {setting[0]} tokens, {setting[1]} sequences", file=sys.stderr)
        reference: Rows = []
        if options.reference_rows:
            reference = run_packhorse(options, REFERENCE, options.reference_rows)["tokens"]
        names = [*options.systems, *([OPENVINO] if peer else [])]
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for repeat, name in itertools.product(range(options.repeats), names):
            if name == OPENVINO and peer is not None:
                runs[name].append(peer.run(setting, options.rows))
            else:
                runs[name].append(run_packhorse(options, SYSTEMS[name], options.rows))
            seconds = runs[name][-1]["seconds"]
            print(f"repeat {repeat + 1}, {name}: {seconds:.1f} s", file=sys.stderr)
    print(
        f"{options.rows} rows of {options.input}, {options.max_new_tokens} new tokens, "
        f"{options.repeats} repeats; accuracy on {len(reference)} rows"
    )
    print(f"{'':22}{'seconds':>20}{'tokens':>8}{'peak GB':>9}{'rows':>6}{'first':>7}{'prefix':>8}")
    document: dict[str, Any] = {"reference": reference, "openvino setting": setting, "runs": runs}
    for name, trials in runs.items():
        seconds = [each["seconds"] for each in trials]
        close = accuracy(reference, trials[0]["tokens"])
        print(
            f"{name:22}{median(seconds):8.1f} ({min(seconds):.1f}-{max(seconds):.1f})"
            f"{sum(map(len, trials[0]['tokens'])):8}"
            f"{median(each['peak'] for each in trials) / 1e9:9.2f}"
            f"{close['rows']:6}{close['first']:7}{close['prefix']:8.3f}"
        )
    print(json.dumps(document))


if __name__ == "__main__":
    main()
