"""Measure a saved classifier in a separate process; started by `packhorse.assess.costs`.

    python -m packhorse.assess.probe FOLDER TEXTS.json SINGLES together|alone STARTED

STARTED: `time.time()` when the process was requested. Prints one JSON document: cold_start, singles
(seconds of each single row), together (seconds and core-seconds of all texts at once, median of up
to REPEATS runs that start within ENOUGH_SECONDS; null if not requested), peak_memory_bytes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from packhorse.assess.classifiers import Classifier, open_saved
from packhorse.profiling.run_metrics import peak_memory_bytes

REPEATS = 5
ENOUGH_SECONDS = 2.0


def main(arguments: Sequence[str]) -> dict[str, Any]:
    folder, texts_file, singles, how, started = arguments
    texts: list[str] = json.loads(Path(texts_file).read_text(encoding="utf-8"))
    classifier = open_saved(Path(folder))
    _decide(classifier, texts[:1])
    cold_start = time.time() - float(started)
    alone = [_seconds(classifier, [text])[0] for text in texts[-int(singles) :]]
    together = _together(classifier, texts) if how == "together" else None
    classifier.close()
    return {
        "cold_start": cold_start,
        "singles": alone,
        "together": together,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _together(classifier: Classifier, texts: Sequence[str]) -> tuple[float, float]:
    runs: list[tuple[float, float]] = []
    while len(runs) < REPEATS and sum(seconds for seconds, _ in runs) < ENOUGH_SECONDS:
        runs.append(_seconds(classifier, texts))
    return median(seconds for seconds, _ in runs), median(cores for _, cores in runs)


def _seconds(classifier: Classifier, texts: Sequence[str]) -> tuple[float, float]:
    started, cores = time.perf_counter(), time.process_time()
    _decide(classifier, texts)
    return time.perf_counter() - started, time.process_time() - cores


def _decide(classifier: Classifier, texts: Sequence[str]) -> None:
    for _ in classifier.decide(texts):
        pass


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
