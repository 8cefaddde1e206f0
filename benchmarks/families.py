"""Every decoder family on every engine: is what packhorse writes what the model says?

    python benchmarks/families.py [NAME ...] [--engines ENGINE ...] [--jobs N] [--keep DIR]
        [--output FILE.json] [--markdown FILE.md] [--suite] [--list]

Builds a small random model of each family (tests/decoder_families.py), runs `packhorse run` over
rows of 1 to 96 tokens with each engine and format, every run in a process of its own, and compares
the texts with those of transformers' own `generate`: greedy, a row at a time, in float32.

right     all texts are equal; "right n/m": the other rows were refused, each in words. In int8:
          texts begin as in float32, and where they leave it the token taken is nearly as probable
refused   exit code 2 and a reason
WRONG     another text
TRACEBACK, ABORT (killed by a signal), FAILED (another exit code, rows lost, or rows that failed
          inside the engine), TIMEOUT
unknown   the installed transformers cannot build the model, or cannot generate with it

Exit code 1 if any is WRONG, TRACEBACK, ABORT, FAILED or TIMEOUT.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from decoder_families import SUITE
from decoder_models import NEW_TOKENS, Judge, build, prompts, token_ids_of
from family_tables import markdown, summary, table
from family_verdicts import BAD, Cell, Model, judged
from transformers_families import FAMILIES, TRANSLATORS

UNSORTED = ["--batching", "fixed", "--batch-size", "64", "--no-share-prefixes"]
SORTED = ["--batching", "sorted", "--batch-size", "6"]
ENGINES = {
    "transformers": ["--engine", "transformers", "--quantization", "float32", "--threads", "1"],
    "transformers unsorted": ["--engine", "transformers", "--threads", "1", *UNSORTED],
    "ctranslate2": ["--engine", "ctranslate2", "--quantization", "float32"],
    "ctranslate2 single": ["--engine", "ctranslate2", "--batching", "single"],
    "ctranslate2 int8": ["--engine", "ctranslate2", "--quantization", "int8", *SORTED],
    "packed": ["--engine", "packed", "--quantization", "float32", "--threads", "1"],
    "packed int8": ["--engine", "packed", "--quantization", "int8", "--threads", "1"],
    "auto": ["--threads", "1"],
}
"""Options of `packhorse run` by the name of a column."""
RUN_SECONDS = 180
CELLS = "cells.json"
HOME = "home"
MARKER = ".families"
_TRACEBACK_STATUS = 1
Results = dict[str, dict[str, Cell]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="families to run (default: all)")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--suite", action="store_true", help="run the families of the test suite")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep models, texts and logs there"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write all results as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page of the docs")
    parser.add_argument("--list", action="store_true", help="list the names and end")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    names = options.names or list(SUITE if options.suite else FAMILIES)
    if unknown := [name for name in names if name not in FAMILIES]:
        sys.exit(f"no family is named {unknown[0]!r}; --list shows the names")
    if options.list:
        print("\n".join(f"{name:36} {FAMILIES[name].model_type}" for name in names))
        return 0
    scratch = options.keep or Path(tempfile.mkdtemp(prefix="families-"))
    _own(scratch)
    began = time.monotonic()
    try:
        results = run_all(names, options.engines, scratch.resolve(), options.jobs)
    finally:
        if not options.keep:
            shutil.rmtree(scratch, ignore_errors=True)
    print(table(results, options.engines))
    print(summary(results, time.monotonic() - began))
    if options.output:
        document = {
            name: {"model_type": FAMILIES[name].model_type}
            | {"engines": {engine: asdict(cell) for engine, cell in cells.items()}}
            for name, cells in results.items()
        }
        options.output.write_text(json.dumps(document, indent=1))
    if options.markdown:
        types = {name: FAMILIES[name].model_type for name in names}
        options.markdown.write_text(markdown(results, types))
    found = {cell.verdict for cells in results.values() for cell in cells.values()}
    return int(any(verdict in BAD for verdict in found))


def run_all(names: list[str], engines: list[str], scratch: Path, jobs: int) -> Results:
    """Cells by family and engine; each family in a process of its own, `jobs` at once."""
    _import_libraries(scratch)
    _write_rows(scratch / "rows.jsonl")
    running: dict[int, str] = {}
    results: dict[str, dict[str, Cell]] = {}
    waiting = list(reversed(names))
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop()
            folder = _folder(scratch, name)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            running[_forked(lambda: run_family(name, engines, folder))] = name  # noqa: B023
        process, _ = os.wait()
        name = running.pop(process)
        folder = _folder(scratch, name)
        results[name] = _read_cells(folder, engines)
        for engine, cell in results[name].items():
            if cell.verdict in BAD:
                print(f"{name} on {engine}: {cell.short}: {cell.reason}", file=sys.stderr)
    return {name: results[name] for name in names}


def run_family(name: str, engines: list[str], folder: Path) -> None:
    """Build a family's model, run it on all engines, and write the cells into its folder."""
    try:
        model = _built(name, folder / "model")
    except Exception as error:  # noqa: BLE001 (transformers' own failures, of any kind)
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        _write_cells(folder, dict.fromkeys(engines, Cell("unknown", reason)))
        return
    cells = {}
    for engine in engines:
        began = time.monotonic()
        log, output = folder / f"{engine}.log", folder / f"{engine}.jsonl"
        given = ["run", str(model.folder), str(folder.parent / "rows.jsonl"), "-o", str(output)]
        given += ["--max-new-tokens", str(NEW_TOKENS), *ENGINES[engine]]
        status = _status(_forked(lambda: _packhorse(given), log), RUN_SECONDS)  # noqa: B023
        seconds = round(time.monotonic() - began, 2)
        text = log.read_text(errors="replace")
        cell = judged(status, text, output, model, int8="int8" in engine)
        cells[engine] = replace(cell, seconds=seconds)
    _write_cells(folder, cells)


def _built(name: str, folder: Path) -> Model:
    """The model of a family, and what `generate` makes of the rows."""
    folder.mkdir(exist_ok=True)
    family = FAMILIES[name]
    build(family, folder)
    if name in TRANSLATORS:
        return Model(folder, family.tokens_named, [[] for _ in prompts()], [])
    token_ids = token_ids_of(folder, prompts())
    judge = Judge(folder, cached=family.cached)
    expected = [judge.expected(ids) for ids in token_ids]
    return Model(folder, family.tokens_named, token_ids, expected, family.cached)


def _write_cells(folder: Path, cells: dict[str, Cell]) -> None:
    document = {engine: asdict(cell) for engine, cell in cells.items()}
    (folder / CELLS).write_text(json.dumps(document))


def _packhorse(given: list[str]) -> int:
    from packhorse.cli import main

    return main(given)


def _import_libraries(scratch: Path) -> None:
    """Import once what every run needs, so that runs can be forked."""
    import packhorse
    from packhorse.storage.cache_folder import cache_root

    os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_root() / "kernels"))
    os.environ.update(
        HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", PACKHORSE_HOME=str(scratch / HOME),
        TOKENIZERS_PARALLELISM="false",
    )  # fmt: skip
    import torch
    from transformers import AutoModelForCausalLM, logging

    from packhorse.engine_protocol.registry import built_in_engines

    modules = [entry.loader.split(":")[0] for entry in built_in_engines()]
    for module in (*modules, "ctranslate2.converters"):
        importlib.import_module(module)
    assert AutoModelForCausalLM.__name__  # these are imported when they are first used
    assert packhorse.run.__name__
    torch.set_num_threads(1)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def _own(folder: Path) -> None:
    """Make a folder, or empty one that an earlier run made of what would be used again."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (folder / MARKER).is_file():
        sys.exit(f"{folder} holds other files: give --keep a folder that is new or empty")
    (folder / MARKER).touch()
    shutil.rmtree(folder / HOME, ignore_errors=True)  # conversions of an earlier version


def _write_rows(path: Path) -> None:
    rows = [{"id": number, "prompt": text} for number, text in enumerate(prompts())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _folder(scratch: Path, name: str) -> Path:
    return scratch / name.replace(" ", "-").replace(",", "")


def _read_cells(folder: Path, engines: list[str]) -> dict[str, Cell]:
    path = folder / CELLS
    if not path.is_file():
        return dict.fromkeys(engines, Cell("FAILED", "the benchmark failed on this family"))
    cells = json.loads(path.read_text())
    return {engine: Cell(**cells[engine]) for engine in engines}


def _forked(work: Callable[[], int | None], log: Path | None = None) -> int:
    """The id of a process that does `work`, its output in `log`; its exit code is `work`'s."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    status = _TRACEBACK_STATUS
    try:
        if log:
            written = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
            os.dup2(written, 1)
            os.dup2(written, 2)
        status = work() or 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 (the process ends here, and its log says by what)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _status(process: int, seconds: float) -> int | None:
    """The exit code of a process, minus the signal that ended it, or None if it took too long."""
    deadline = time.monotonic() + seconds
    for _ in _until(deadline):
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def _until(deadline: float) -> Iterator[None]:
    while time.monotonic() < deadline:
        yield
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
