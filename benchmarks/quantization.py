"""What each way into int8 does to a model's answers, and to its speed.

    python benchmarks/quantization.py MODEL INPUT [--rows 64] [--speed-rows 8] [--repeats 5]

CTranslate2, greedy, one row at a time on every core, so that no row depends on its batch-mates;
float32 of the same engine is the reference. "auto" is what `packhorse quantize` found for the
model, where it ran, else the default of `packhorse prepare`. None of the rows may have calibrated
anything: the shipped prompts come from no data set, and rows given to `packhorse quantize
--calibration` must be others.

Answers and distributions come from one pass over the rows (95 % intervals over rows in brackets).
Speed comes from the first --speed-rows of them, each made to generate exactly --speed-tokens tokens
so that the work is equal, all models in memory, taking turns: seconds, median (least to most).
--rows 0 leaves accuracy out, --repeats 0 speed. The last line is one JSON document with every
figure. Two cores wander: compare seconds of one run of this script, not across runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import ctranslate2

import packhorse
from packhorse.config import QUANTIZATION_METHODS, BatchingConfig, EngineConfig, InputConfig
from packhorse.data import Completion, Request
from packhorse.evaluation.quality import Output, Pair, QualityReport, compare_outputs
from packhorse.evaluation.statistics import Estimate
from packhorse.evaluation.teacher_forcing import (
    TeacherForcedScores,
    scorer,
    teacher_forced,
)
from packhorse.inference.model import Model
from packhorse.inputs import read_rows
from packhorse.models.ctranslate2_folder import vocabulary
from packhorse.profiling.hardware import machine
from packhorse.tokenization import Refusal, Tokenizer

REFERENCE = "float32"
METHODS = (*(name for name in QUANTIZATION_METHODS if name != "auto"), "auto")


@dataclass(slots=True)
class Subject:
    """A loaded model, its answers by row, and its seconds in each repeat."""

    name: str
    model: Model
    answers: dict[int, Completion] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    @property
    def label(self) -> str:
        method = self.model.prepared.quantization_method
        return f"auto: {method}" if self.name == "auto" else self.name


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("input")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--speed-rows", type=int, default=8)
    parser.add_argument("--speed-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    return parser.parse_args()


def load(options: argparse.Namespace, name: str) -> Subject:
    if name == REFERENCE:
        engine = EngineConfig("ctranslate2", "cpu", "float32")
    else:
        engine = EngineConfig("ctranslate2", "cpu", options.quantization, quantization_method=name)
    batching = BatchingConfig("single", share_prefixes=False, deduplicate=False)
    return Subject(
        name, packhorse.load(options.model, engine=engine, batching=batching, report=report)
    )


def answer(
    subject: Subject, rows: list[Any], max_new_tokens: int
) -> tuple[list[Completion], float]:
    """Answers to the rows that have any, and seconds."""
    started = time.perf_counter()
    outcomes = list(subject.model.generate(rows, max_new_tokens=max_new_tokens))
    seconds = time.perf_counter() - started
    return [outcome for outcome in outcomes if isinstance(outcome, Completion)], seconds


def measure_speed(
    options: argparse.Namespace, subjects: list[Subject], prompts: list[tuple[int, ...]]
) -> None:
    """Seconds of equal work, the subjects taking turns; a first turn only warms them."""
    engines = {
        subject.name: ctranslate2.Generator(
            str(subject.model.prepared.folder),
            compute_type=REFERENCE if subject.name == REFERENCE else options.quantization,
            inter_threads=subject.model.capabilities.workers,
            intra_threads=subject.model.capabilities.threads,
        )
        for subject in subjects
    }
    tokens = vocabulary(subjects[0].model.prepared.folder)
    rows = [[tokens[token] for token in ids] for ids in prompts]
    length = options.speed_tokens
    for number in range(options.repeats + 1):
        for subject in subjects:
            started = time.perf_counter()
            engines[subject.name].generate_batch(
                rows, max_batch_size=1, min_length=length, max_length=length, sampling_topk=1,
                include_prompt_in_result=False,
            )  # fmt: skip
            seconds = time.perf_counter() - started
            if number:
                subject.seconds.append(seconds)
                report(f"[{number}/{options.repeats}] {subject.label}: {seconds:.2f} s")


def judge(
    options: argparse.Namespace, subject: Subject, reference: Subject, prompts: dict[int, Any]
) -> tuple[QualityReport, TeacherForcedScores]:
    """Answers and distributions of a subject against the reference's."""
    theirs, ours = reference.answers, subject.answers
    pairs = [
        Pair(index, output(theirs.get(index)), output(ours.get(index))) for index in sorted(theirs)
    ]
    format_of = REFERENCE if subject is reference else options.quantization
    scored = [(prompts[index], theirs[index].token_ids) for index in sorted(theirs)]
    forced = teacher_forced(
        scorer(reference.model.prepared, REFERENCE),
        scorer(subject.model.prepared, format_of),
        scored,
    )
    assert forced is not None, "no row has an answer"
    return compare_outputs(pairs), forced


def output(answer: Completion | None) -> Output | None:
    return None if answer is None else Output(answer.token_ids, answer.text)


def prompt_ids(model: Model, rows: list[Request]) -> dict[int, Any]:
    encoded = Tokenizer(model.codec).encode(rows, [1 << 30] * len(rows))
    return {i: ids for i, ids in enumerate(encoded) if not isinstance(ids, Refusal)}


def interval(estimate: Estimate | None, digits: int) -> str:
    if estimate is None:
        return "-"
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f}-{estimate.high:.{digits}f})"


def line(subject: Subject, quality: QualityReport, forced: TeacherForcedScores) -> str:
    first = sum(row.first_token_equal for row in quality.rows)
    return (
        f"{subject.label:20}{quality.identical_count:6}{first:7}"
        f"{interval(quality.matched_prefix, 3):>22}{interval(forced.kl_divergence, 4):>25}"
        f"{interval(forced.top1_agreement, 3):>22}"
    )


def print_accuracy(
    options: argparse.Namespace, subjects: list[Subject], requests: list[Request]
) -> dict[str, Any]:
    rows = [row.content for row in requests]
    for subject in subjects:
        answers, seconds = answer(subject, rows, options.max_new_tokens)
        subject.answers = {one.index: one for one in answers}
        report(f"{subject.label}: {len(answers)} rows in {seconds:.0f} s")
    prompts = prompt_ids(subjects[0].model, requests)
    print(f"{len(rows)} rows of {Path(options.input).name}, {options.max_new_tokens} new tokens")
    print(
        f"{'':20}{'same':>6}{'first':>7}{'matched prefix':>22}{'KL, nats a token':>25}{'top-1':>22}"
    )
    document: dict[str, Any] = {}
    for subject in subjects:
        quality, forced = judge(options, subject, subjects[0], prompts)
        print(line(subject, quality, forced), flush=True)
        document[subject.name] = {
            "quality": {**quality.to_json(), "rows": None},
            "teacher_forced": {**forced.to_json(), "rows": None},
        }
    return document


def print_speed(
    options: argparse.Namespace, subjects: list[Subject], requests: list[Request]
) -> dict[str, list[float]]:
    prompts = list(prompt_ids(subjects[0].model, requests[: options.speed_rows]).values())
    measure_speed(options, subjects, prompts)
    base = next((each for each in subjects if each.name == "plain"), subjects[0])
    print(
        f"{len(prompts)} rows, {sum(map(len, prompts))} prompt tokens, exactly "
        f"{options.speed_tokens} new ones each, {options.repeats} repeats"
    )
    for subject in subjects:
        times = subject.seconds
        print(
            f"{subject.label:20}{median(times):8.2f} s ({min(times):.2f}-{max(times):.2f})"
            f"{median(times) / median(base.seconds):8.2f} x {base.name}"
        )
    return {subject.name: subject.seconds for subject in subjects}


def report(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main() -> None:
    options = arguments()
    wanted = max(options.rows, options.speed_rows)
    found = read_rows(Path(options.input), InputConfig(limit=wanted))
    requests = [row for row in found if isinstance(row, Request)]
    subjects = [load(options, name) for name in (REFERENCE, *options.methods)]
    print(machine()["processor"])
    document: dict[str, Any] = {"methods": {each.name: each.label for each in subjects}}
    if options.rows:
        document["accuracy"] = print_accuracy(options, subjects, requests[: options.rows])
    if options.repeats:
        document["seconds"] = print_speed(options, subjects, requests)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
