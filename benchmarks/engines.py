"""Compare packhorse with other engines: speed, loading, memory, share of the machine's limits.

    python benchmarks/engines.py MODEL INPUT [--peers NAME=PYTHON ...] [--rows 1 4 16 64 200]
        [--systems packed:int8 packed:float32 ...] [--repeats 5] [--max-new-tokens 64]
        [--work FOLDER] [--first-row]

MODEL is a Hugging Face checkpoint of the Llama family (random_model.py writes ones with random
weights), INPUT a file of prompts with at least as many rows as all groups and the warm-up take
together. peers.py has the names of the peers and how to set each up. Systems of packhorse are
ENGINE:FORMAT or ENGINE:FORMAT:POLICY.

Each run is a process of its own, the systems taking turns; it generates every group of rows once,
all rows of a group given at once, with a fixed number of new tokens: the benchmark uses a copy of
the checkpoint that names no end token (weights are linked), in --work, where peers' exports stay
too.

    tokens/s    generated tokens per second of a group, prompts included
    decode      the same without the prompts (groups of at most 16 rows)
    of memory   decode, relative to reading each int8 weight once per step at the bandwidth that was
                measured in the same run (all cores reading)
    of int8     arithmetic of prompts (leading tokens that rows share counted once) and new tokens,
                attention left out, per second, relative to the int8 rate measured in the same run
    ready, first token   seconds from the start of the process
    peak        resident memory of the process and its children, GB, until the first token and over
                the whole run; pages that processes share count for each of them
    first row   with --first-row: from a checkpoint never seen (no cache, no export; kernels that
                do not depend on the model are compiled) to its first token, page cache warm

packhorse's seconds include tokenizing and decoding to text; peers get token ids. Peers run with all
cores; before the first repeat each of their settings runs --screen-rows rows with each scheduler
setting, and the fastest scheduler takes part. Run it on a machine that does nothing else and
compare figures of one run only. --reference-rows N adds the accuracy of the first N rows of the
last group against transformers float32. The last line is one JSON document with every value.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, product
from pathlib import Path
from statistics import mean, median
from typing import Any

from peers import FEW_ROWS, PEERS, Reporter, Rows, environment_of, measure

WARM_UP_ROWS = 8
PEERS_FILE = Path(__file__).with_name("peers.py")
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class System:
    """What takes part: a command that reports as peers.py does."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("input", type=Path)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 4, 16, 64, 200])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument(
        "--systems", nargs="*", metavar="ENGINE:FORMAT",
        default=["packed:int8", "packed:float32", "ctranslate2:float32", "ctranslate2:int8"],
    )  # fmt: skip
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME=PYTHON",
                        help=f"names: {', '.join(PEERS)}")  # fmt: skip
    parser.add_argument("--screen-rows", type=int, default=64,
                        help="rows to choose a scheduler with; 0 takes the first")  # fmt: skip
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "packhorse-engines"
    )
    parser.add_argument("--first-row", action="store_true")
    parser.add_argument("--reference-rows", type=int, default=0)
    parser.add_argument("--trial", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


class MemoryWatch(threading.Thread):
    """Samples the resident memory of a process and its descendants.

    Attributes:
        peak: Largest sum over the processes alive at one moment, and at least the largest peak that
            the kernel counted for one of them (bytes).
    """

    def __init__(self, pid: int, seconds: float = 0.1) -> None:
        super().__init__(daemon=True)
        self._pid, self._seconds, self._stopped = pid, seconds, threading.Event()
        self.peak = 0

    def run(self) -> None:
        while not self._stopped.wait(self._seconds):
            self.sample()

    def sample(self) -> None:
        found = [_resident_bytes(pid) for pid in _descendants(self._pid)]
        self.peak = max(self.peak, sum(now for now, _ in found), *(most for _, most in found), 0)

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def _descendants(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _descendants(int(child))


def _resident_bytes(pid: int) -> tuple[int, int]:
    """Return resident memory now and at its peak; 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    values = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    now, most = (values.get(name, "0 kB").split()[0] for name in ("VmRSS", "VmHWM"))
    return int(now) * 1024, int(most) * 1024


def watch(system: System) -> list[Figures]:
    """Run a system; return its events with `at` (seconds since its start) and `peak` (bytes)."""
    environment = {**os.environ, **system.environment}
    started = time.monotonic()
    process = subprocess.Popen(
        system.command,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    memory = MemoryWatch(process.pid)
    memory.start()
    events: list[Figures] = []
    assert process.stdout is not None
    try:
        for line in process.stdout:
            at = time.monotonic() - started
            memory.sample()
            events.append({**json.loads(line), "at": at, "peak": memory.peak})
            if events[-1]["event"] == "end":
                break
        code = 0 if events and events[-1]["event"] == "end" else process.wait()
    finally:
        memory.stop()
        end_group(process)
    if code:
        sys.exit(f"{system.name} failed with exit code {code}: {' '.join(system.command)}")
    events.append({"event": "exit", "at": time.monotonic() - started, "peak": memory.peak})
    return events


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process that leads a session, and those of its children that are still there."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def summarize(events: list[Figures]) -> Figures:
    named = {event["event"]: event for event in events}
    return {
        "ready": named["ready"]["at"],
        "first_token": named["first token"]["at"],
        "loading_peak": named["first token"]["peak"],
        "peak": named["exit"]["peak"],
        "groups": [event for event in events if event["event"] == "group"],
    }


class Workspace:
    """A checkpoint without end tokens, and what the peers made of it.

    Attributes:
        folder: Holds all of it.
        checkpoint: The checkpoint that packhorse and the exports read.
        peers: Interpreters by the name of the peer.
    """

    def __init__(self, model: str, work: Path, peers: list[str]) -> None:
        self.folder = work.absolute() / Path(model).name
        self.checkpoint = self.folder / "checkpoint"
        self.peers = dict(each.split("=", 1) for each in peers)
        if unknown := set(self.peers) - set(PEERS):
            sys.exit(f"no peer is named {unknown.pop()!r}; peers: {', '.join(PEERS)}")
        if not self.checkpoint.is_dir():
            copy_checkpoint(model, self.checkpoint)
        self.config = json.loads((self.checkpoint / "config.json").read_text())

    def command(self, verb: str, peer: str, *arguments: object) -> list[str]:
        return [self.peers[peer], str(PEERS_FILE), verb, peer, *map(str, arguments)]

    def target(self, peer: str) -> Path:
        return self.folder / peer

    def export(self, peer: str) -> Figures:
        """Export for a peer if that was not done; return its seconds and peak memory."""
        target, record = self.target(peer), self.folder / f"{peer}.json"
        if not record.is_file():
            shutil.rmtree(target, ignore_errors=True)
            command = self.command("export", peer, self.checkpoint, target)
            last = watch(System(f"export for {peer}", command))[-1]
            record.write_text(json.dumps({"seconds": last["at"], "peak": last["peak"]}))
        found: Figures = json.loads(record.read_text())
        return found


class Benchmark(Workspace):
    """The groups of rows, and the commands of the systems."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options.model, options.work, options.peers)
        self.options = options
        sizes = [WARM_UP_ROWS, *options.rows]
        self.contents = read_contents(options.input, sum(sizes))
        ids = token_ids(self.checkpoint, self.contents)
        ends = list(accumulate(sizes))
        self.slices = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        self.groups = [ids[each] for each in self.slices]
        self.longest = max(map(len, ids)) + options.max_new_tokens
        self.prompts = self._write_prompts("prompts.json", self.groups[1:])
        few = [ids[-options.screen_rows :]] if options.screen_rows else []
        self.screening = self._write_prompts("screening.json", few)
        self.no_rows = self._write_prompts("first-row.json", [])

    def _write_prompts(self, name: str, groups: list[Rows]) -> Path:
        document = {
            "warm_up": self.groups[0],
            "groups": groups,
            "new_tokens": self.options.max_new_tokens,
            "longest": self.longest,
        }
        (self.folder / name).write_text(json.dumps(document))
        return self.folder / name

    def packhorse(self, name: str, rows: list[int], home: Path | None = None) -> System:
        engine, quantization, *policy = name.split(":")
        options = self.options
        command = [
            sys.executable, __file__, str(self.checkpoint), str(options.input),
            "--rows", *map(str, rows), "--max-new-tokens", str(options.max_new_tokens),
            "--trial", engine, quantization, *policy,
        ]  # fmt: skip
        return System(name, command, {"PACKHORSE_HOME": str(home)} if home else {})

    def peer(self, peer: str, label: str, setting: Figures, prompts: Path) -> System:
        command = self.command("run", peer, self.target(peer), prompts, json.dumps(setting))
        return System(f"{peer} {label}", command, environment_of(peer, self.peers[peer]))

    def fastest(self, peer: str, label: str) -> Figures:
        """Return a setting of a peer with the scheduler that is fastest over many rows."""
        kind = PEERS[peer]()
        choices = [{**kind.settings[label], **each} for each in kind.screened]
        if not self.options.screen_rows:
            return choices[0]
        seconds = []
        for setting in choices:
            found = summarize(watch(self.peer(peer, label, setting, self.screening)))
            seconds.append(found["groups"][0]["seconds"])
            say(f"{peer} {label}, {setting}: {seconds[-1]:.1f} s")
        return choices[seconds.index(min(seconds))]


def copy_checkpoint(model: str, target: Path) -> None:
    """Link the weights of a checkpoint and copy all else, without end tokens."""
    from packhorse.models import prepare
    from random_model import copy_without_end

    source = prepare(model, engine="transformers").folder.absolute()
    target.mkdir(parents=True)
    copy_without_end(source, target)
    for file in source.glob("model*.safetensors*"):
        try:
            (target / file.name).hardlink_to(file)
        except OSError:
            shutil.copyfile(file, target / file.name)


def read_contents(file: Path, count: int) -> list[Any]:
    from packhorse.config import InputConfig
    from packhorse.data import Request
    from packhorse.inputs import read_rows

    rows = read_rows(file, InputConfig(limit=count))
    contents = [row.content for row in rows if isinstance(row, Request)]
    if len(contents) < count:
        sys.exit(f"{file} has {len(contents)} rows, and the groups and the warm-up take {count}")
    return contents


def token_ids(folder: Path, contents: list[Any]) -> Rows:
    from packhorse.tokenization import HuggingFaceCodec

    chats = [
        [{"role": "user", "content": content}] if isinstance(content, str) else content
        for content in contents
    ]
    encoded = HuggingFaceCodec(folder).encode_chats(chats)
    assert all(isinstance(row, tuple) for row in encoded)
    return [list(row) for row in encoded if isinstance(row, tuple)]


def packhorse_trial(options: argparse.Namespace) -> None:
    """Run packhorse in this process and report as a peer does."""
    report = Reporter()
    import packhorse
    from packhorse.config import BatchingConfig, EngineConfig

    engine, quantization, *policy = options.trial
    sizes = [WARM_UP_ROWS, *options.rows]
    contents = read_contents(options.input, sum(sizes))
    ends = list(accumulate(sizes))
    groups = [contents[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    model = packhorse.load(
        options.model,
        engine=EngineConfig(engine, quantization=quantization),
        batching=BatchingConfig(policy[0] if policy else "auto"),
    )
    report("ready")

    def generate(prompts: Any, new_tokens: int) -> Rows:
        answers = list(model.generate(prompts, max_new_tokens=new_tokens))
        tokens = {
            each.index: each.token_ids for each in answers if isinstance(each, packhorse.Completion)
        }
        return [list(tokens[index]) for index in range(len(prompts))]

    measure(report, generate, groups[0], groups[1:], options.max_new_tokens)
    report("end")


def limits_trial(outputs: int, inputs: int) -> None:
    """Report what all cores reach: bytes read and int8 operations per second."""
    report = Reporter()
    import torch

    from packed_profile import on_all_cores

    def total() -> Any:
        memory = torch.ones(1 << 26)
        return lambda: memory.sum()

    def dot() -> Any:
        memory = torch.ones(1 << 26)
        return lambda: torch.dot(memory, memory)

    def int_mm(rows: int) -> Any:
        left = torch.randint(-127, 127, (rows, inputs), dtype=torch.int8)
        right = torch.randint(-127, 127, (outputs, inputs), dtype=torch.int8).t()
        product = torch.empty(rows, outputs, dtype=torch.int32)
        return lambda: torch._int_mm(left, right, out=product)  # noqa: SLF001 - no public one

    def onednn(rows: int) -> Any:
        operations: Any = torch.ops.onednn
        weight = torch.randint(-127, 127, (outputs, inputs), dtype=torch.int8)
        scales, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int32)
        packed = operations.qlinear_prepack(weight, [rows, inputs])
        left = torch.randint(0, 255, (rows, inputs), dtype=torch.uint8)
        return lambda: operations.qlinear_pointwise(
            left, 1.0, 128, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )

    rates = [
        on_all_cores(partial(kind, rows)) * 2 * rows * outputs * inputs
        for kind, rows in product((int_mm, onednn), (256, 512))
    ]
    read = max(on_all_cores(total), on_all_cores(dot)) * (4 << 26)
    report("limits", bytes=read, int8=max(rates))


def weights_per_step(config: Figures) -> tuple[int, int]:
    """Return the numbers of weights of the layers' matrices and of the head."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    attended = head * (2 * config["num_attention_heads"] + 2 * config["num_key_value_heads"])
    layers = config["num_hidden_layers"] * hidden * (attended + 3 * inner)
    return layers, hidden * config["vocab_size"]


def distinct_tokens(prompts: Rows) -> int:
    """Return the number of prompt tokens, leading tokens that rows share counted once."""
    total, before = 0, list[int]()
    for row in sorted(prompts):
        shared = next((i for i, pair in enumerate(zip(row, before, strict=False))
                       if pair[0] != pair[1]), min(len(row), len(before)))  # fmt: skip
        total, before = total + len(row) - shared, row
    return total


def shares(benchmark: Benchmark, group: int, found: Figures, limits: Figures) -> Figures:
    """Return tokens per second of one group, and their shares of the limits."""
    layers, head = weights_per_step(benchmark.config)
    rows, new = found["rows"], benchmark.options.max_new_tokens
    generated = sum(map(len, found["tokens"]))
    if generated != rows * new:
        sys.exit(f"{generated} tokens were generated, not {rows * new}: a row has ended early")
    computed = distinct_tokens(benchmark.groups[group + 1]) + rows * (new - 1)
    operations = 2 * (computed * layers + generated * head)
    figures = {
        "tokens_per_second": generated / found["seconds"],
        "of_int8": operations / found["seconds"] / limits["int8"],
    }
    if "decode" in found:
        decoded = rows * (new - 1) / found["decode"]
        figures["decode_per_second"] = decoded
        figures["of_memory"] = decoded * (layers + head) / (rows * limits["bytes"])
    return figures


def accuracy(reference: Rows, found: Rows) -> str:
    from packhorse.evaluation.quality import matched_prefix_share

    pairs = list(zip(reference, found, strict=False))
    return (
        f"{sum(a == b for a, b in pairs)} of {len(pairs)} rows identical, matched prefix "
        f"{mean(matched_prefix_share(a, b) for a, b in pairs):.3f}"
    )


def first_rows(benchmark: Benchmark) -> dict[str, Figures]:
    """Seconds and peak memory from a checkpoint never seen to its first token."""
    from packhorse.storage.cache_folder import cache_root

    found: dict[str, Figures] = {}
    for file in benchmark.checkpoint.glob("*.safetensors"):  # page cache warm, for all alike
        with file.open("rb") as opened:
            while opened.read(1 << 24):
                pass
    for name in benchmark.options.systems:
        with tempfile.TemporaryDirectory(dir=benchmark.folder) as home:
            if (kernels := cache_root() / "kernels").is_dir():
                shutil.copytree(kernels, Path(home) / "kernels")
            run = summarize(watch(benchmark.packhorse(name, [], Path(home))))
        found[name] = {"seconds": run["first_token"], "peak": run["loading_peak"]}
    for peer in benchmark.peers:
        (benchmark.folder / f"{peer}.json").unlink(missing_ok=True)
        export, kind = benchmark.export(peer), PEERS[peer]()
        label, setting = next(iter(kind.settings.items()))
        system = benchmark.peer(peer, label, {**kind.screened[0], **setting}, benchmark.no_rows)
        run = summarize(watch(system))
        found[peer] = {
            "seconds": export["seconds"] + run["first_token"],
            "peak": max(export["peak"], run["loading_peak"]),
        }
    return found


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def range_of(values: list[float], digits: int = 1) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def print_tables(
    benchmark: Benchmark, runs: dict[str, list[Figures]], first: dict[str, Figures]
) -> None:
    rows = benchmark.options.rows
    print(f"\n{'generated tokens/s at':32}" + "".join(f"{f'{count} rows':>24}" for count in rows))
    for name, trials in runs.items():
        cells = [[trial["shares"][i]["tokens_per_second"] for trial in trials]
                 for i in range(len(rows))]  # fmt: skip
        print(f"{name:32}" + "".join(f"{range_of(cell):>24}" for cell in cells))
    print(f"\n{'decode tokens/s, share of limit':32}"
          + "".join(f"{f'{count} rows':>24}" for count in rows))  # fmt: skip
    for name, trials in runs.items():
        line = ""
        for i, count in enumerate(rows):
            middle = {key: median(trial["shares"][i][key] for trial in trials)
                      for key in trials[0]["shares"][i]}  # fmt: skip
            if count <= FEW_ROWS and "of_memory" in middle:
                cell = f"{middle['decode_per_second']:.1f} {middle['of_memory']:.0%} of memory"
            else:
                cell = f"{middle['of_int8']:.0%} of int8"
            line += f"{cell:>24}"
        print(f"{name:32}{line}")
    print(f"\n{'':32}{'ready s':>18}{'first token s':>18}{'peak loading GB':>17}{'peak GB':>9}")
    for name, trials in runs.items():
        ready, token = ([trial[key] for trial in trials] for key in ("ready", "first_token"))
        loading, peak = (median(trial[key] for trial in trials) / 1e9
                         for key in ("loading_peak", "peak"))  # fmt: skip
        print(f"{name:32}{range_of(ready):>18}{range_of(token):>18}{loading:17.2f}{peak:9.2f}")
    for peer in benchmark.peers:
        export = benchmark.export(peer)
        print(f"export for {peer}: {export['seconds']:.1f} s, {export['peak'] / 1e9:.2f} GB")
    if first:
        print(f"\n{'checkpoint never seen':32}{'first row s':>18}{'peak GB':>9}")
        for name, each in first.items():
            print(f"{name:32}{each['seconds']:18.1f}{each['peak'] / 1e9:9.2f}")


def main() -> None:
    options = arguments()
    if options.trial and options.trial[0] == "limits":
        limits_trial(*map(int, options.trial[1:]))
        return
    if options.trial:
        packhorse_trial(options)
        return
    benchmark = Benchmark(options)
    first = first_rows(benchmark) if options.first_row else {}
    systems = [benchmark.packhorse(name, options.rows) for name in options.systems]
    for peer in benchmark.peers:
        benchmark.export(peer)
        for label in PEERS[peer]().settings:
            setting = benchmark.fastest(peer, label)
            systems.append(benchmark.peer(peer, label, setting, benchmark.prompts))
    sizes = [str(benchmark.config[key]) for key in ("intermediate_size", "hidden_size")]
    limiting = System("limits", [sys.executable, __file__, options.model, str(options.input),
                                 "--trial", "limits", *sizes])  # fmt: skip
    measured: list[Figures] = []
    runs: dict[str, list[Figures]] = {system.name: [] for system in systems}
    for repeat in range(options.repeats):
        measured.append(watch(limiting)[0])
        for system in systems:
            run = summarize(watch(system))
            run["shares"] = [
                shares(benchmark, i, found, measured[-1]) for i, found in enumerate(run["groups"])
            ]
            runs[system.name].append(run)
            speeds = ", ".join(f"{each['tokens_per_second']:.0f}" for each in run["shares"])
            say(f"repeat {repeat + 1}, {system.name}: ready in {run['ready']:.1f} s, "
                f"{speeds} tokens/s")  # fmt: skip
    read, rate = (median(each[key] / 1e9 for each in measured) for key in ("bytes", "int8"))
    prompts = ", ".join(f"{sum(map(len, group))}" for group in benchmark.groups[1:])
    print(
        f"{options.model}, {options.max_new_tokens} new tokens, {options.repeats} repeats, "
        f"prompts of {prompts} tokens; all cores: {read:.1f} GB/s read, {rate:,.0f} int8 GOPS"
    )
    print_tables(benchmark, runs, first)
    document: Figures = {"limits": measured, "first_row": first, "runs": runs}
    if options.reference_rows:
        document["accuracy"] = print_accuracy(benchmark, runs)
    for trial in (trial for trials in runs.values() for trial in trials):
        for found in trial["groups"]:
            del found["tokens"]
    commands = {system.name: system.command for system in systems}
    print(json.dumps({**document, "commands": commands}))


def print_accuracy(benchmark: Benchmark, runs: dict[str, list[Figures]]) -> dict[str, str]:
    """Compare the last group with transformers float32, one row at a time."""
    options = benchmark.options
    count = min(options.reference_rows, options.rows[-1])
    import packhorse
    from packhorse.config import BatchingConfig, EngineConfig

    with packhorse.load(
        str(benchmark.checkpoint),
        engine=EngineConfig("transformers", quantization="float32"),
        batching=BatchingConfig("single"),
    ) as model:
        contents = benchmark.contents[benchmark.slices[-1]][:count]
        answers = list(model.generate(contents, max_new_tokens=options.max_new_tokens))
    tokens = {
        each.index: each.token_ids for each in answers if isinstance(each, packhorse.Completion)
    }
    reference = [list(tokens[index]) for index in range(count)]
    found = {
        name: accuracy(reference, trials[0]["groups"][-1]["tokens"])
        for name, trials in runs.items()
    }
    print()
    for name, text in found.items():
        print(f"{name:32}{text}")
    return found


if __name__ == "__main__":
    main()
