"""A load test as a table for a terminal or Markdown, and as files."""

from __future__ import annotations

from pathlib import Path

from packhorse.errors import OutputError
from packhorse.load_test.results import Trial
from packhorse.load_test.runner import LoadTest
from packhorse.storage.atomic_files import write_json

_COLUMNS = (
    "rate", "answered", "answers/s", "good/s", "tokens/s", "TTFT p50", "p95", "answer p50", "p95",
    "per token p50", "errors",
)  # fmt: skip


def terminal(test: LoadTest) -> str:
    """A table with columns of equal width, and one line that reads it."""
    rows = [_COLUMNS, *(_cells(trial) for trial in test.trials)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
             for row in rows]  # fmt: skip
    return "\n".join([*lines, "", _conclusion(test)])


def markdown(test: LoadTest) -> str:
    config = test.config
    lines = [
        f"# Load test of {test.model}",
        "",
        f"{config.requests} requests a rate, {test.rows} different rows, arrivals of a Poisson "
        f"process with seed {config.seed}. Latencies count from when a request was due.",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|" + "---:|" * len(_COLUMNS),
        *("| " + " | ".join(_cells(trial)) + " |" for trial in test.trials),
        "",
        _conclusion(test),
        "",
    ]
    return "\n".join(lines)


def write_reports(test: LoadTest, folder: Path) -> None:
    """report.json and report.md. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "report.json", test.to_json())
        (folder / "report.md").write_text(markdown(test), encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written: {error.strerror}", "name another folder"
        ) from error


def _cells(trial: Trial) -> tuple[str, ...]:
    errors = ", ".join(f"{count} x {name}" for name, count in sorted(trial.errors.items()))
    return (
        f"{trial.rate:g}",
        f"{trial.answered}/{trial.requests}",
        f"{trial.answers_per_second:.2f}",
        f"{trial.goodput:.2f}",
        "-" if trial.tokens_per_second is None else f"{trial.tokens_per_second:.1f}",
        _seconds(trial.first_token.p50),
        _seconds(trial.first_token.p95),
        _seconds(trial.answer.p50),
        _seconds(trial.answer.p95),
        _seconds(trial.per_token.p50),
        errors or "-",
    )


def _conclusion(test: LoadTest) -> str:
    late = max(trial.late for trial in test.trials)
    warning = f" Requests were sent up to {late:.2f} s late: the sender is the limit." * (
        late > 0.5
    )
    found = test.knee
    if found is None:
        return f"The server keeps up with none of these rates.{warning}"
    return f"The server keeps up with {found.rate:g} requests a second.{warning}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"
