"""Summary of a finished run for a terminal."""

from __future__ import annotations

from typing import Any

from packhorse.jobs.manifest import RunReport, compute_format
from packhorse.profiling.run_metrics import BUSY


def run_summary(report: RunReport) -> str:
    """Return counts, and speed, latency, waste, memory and engine of this session."""
    counts = report.counts
    lines = [f"{counts.rows:,} rows: {counts.completed:,} completed, {counts.failed:,} failed"]
    for code, number in counts.failed_by_code.items():
        lines.append(f"  {number:,} x {code}")
    if report.session and report.resolved:
        lines += _session_lines(report.session, report.resolved)
    else:
        lines.append("nothing was left to run")
    output, manifest = report.names
    lines += [f"output      {output}"] + [f"manifest    {manifest}"] * bool(manifest)
    return "\n".join(lines)


def _session_lines(session: dict[str, Any], resolved: dict[str, Any]) -> list[str]:
    seconds = session["seconds"]
    latency = session["latency_seconds"]
    lines = [
        f"model       {resolved['engine']} {compute_format(resolved)} on {resolved['device']}, "
        f"{resolved['workers']} worker(s) x {resolved['threads']} thread(s)",
        f"batching    {resolved['batching']}, {session['batches']:,} batches, "
        f"{_figure(session['rows_per_batch'])} rows each, at most "
        f"{resolved['token_budget']['tokens']:,} tokens",
        f"time        {_figure(seconds.get('generate'))} s generating, "
        f"{_figure(seconds.get('load'))} s loading, {_figure(seconds.get('total'))} s in total",
        f"throughput  {_figure(session['rows_per_second'])} rows/s, "
        f"{_figure(session['prompt_tokens_per_second'])} prompt + "
        f"{_figure(session['generated_tokens_per_second'])} generated tokens/s",
        f"latency     p50 {_figure(latency['p50'])} s, p95 {_figure(latency['p95'])} s per row, "
        "from the start of its batch",
    ]
    if session["reasoning_tokens"] is not None:
        generated = session["generated_tokens"]
        share = session["reasoning_tokens"] / generated if generated else 0.0
        lines.append(
            f"reasoning   {session['reasoning_tokens']:,} of {generated:,} generated tokens "
            f"({share:.0%})"
        )
    if session["expected"] is not None:
        expected = session["expected"]
        lines.append(
            f"expected    {_figure(expected['generate_seconds'])} s generating, "
            f"{expected['peak_memory_bytes'] / 1e9:.2f} GB"
        )
    if session["padding_share"] is not None:
        lines.append(f"padding     {session['padding_share']:.1%} of prompt positions")
    if session["token_by_token_prefill_share"] is not None:
        lines.append(
            f"prefill     {session['token_by_token_prefill_share']:.1%} of prompt tokens "
            "computed one by one"
        )
    if session["prefix_tokens_saved"] or session["rows_deduplicated"]:
        lines.append(
            f"saved       {session['prefix_tokens_saved']:,} prompt tokens by shared prefixes, "
            f"{session['rows_deduplicated']:,} duplicate rows"
        )
    if session["other_work_share"] > BUSY:
        lines.append(f"other work  used {session['other_work_share']:.0%} of the usable cores")
    lines.append(f"memory      {session['peak_memory_bytes'] / 1e9:.2f} GB at the peak")
    return lines


def _figure(value: float | None) -> str:
    """Return a figure with three significant digits; a dash if it was not measured."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
