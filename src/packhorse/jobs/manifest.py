"""Report of a run: resolved settings, counts, and the manifest beside the output."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packhorse.batching.memory import TokenBudget
from packhorse.config import BatchingConfig
from packhorse.inference.model import Model
from packhorse.inputs import Source, files_of
from packhorse.jobs.journal import Counts, Journal
from packhorse.models import PreparedModel
from packhorse.models.cache import library_versions
from packhorse.storage.remote_files import version_of_copy
from packhorse.storage.urls import is_url, public_name

MANIFEST_FORMAT = 1


@dataclass(frozen=True, slots=True)
class RunReport:
    """The result of a run.

    Attributes:
        counts: All rows of the input by state.
        resolved: What "auto" was resolved to; None if there was nothing left to do.
        session: Metrics of this process, see `Meter.to_json`; None if there was nothing left to do.
        url: Where the output was uploaded to, without secrets.
        is_streamed: Whether the rows went to standard output; there is no manifest then.
    """

    output: Path
    manifest: Path
    counts: Counts
    model: dict[str, Any]
    resolved: dict[str, Any] | None
    session: dict[str, Any] | None
    url: str | None = None
    is_streamed: bool = False

    @property
    def names(self) -> tuple[str, str]:
        """Where output and manifest are: paths, or URLs; "-" and "" of standard output."""
        if self.is_streamed:
            return "-", ""
        if self.url is None:
            return str(self.output), str(self.manifest)
        return self.url, f"{self.url}.manifest.json"

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        del document["url"], document["is_streamed"]
        document["output"], document["manifest"] = self.names
        document["counts"]["pending"] = self.counts.pending
        return document


def resolved_settings(
    batching: BatchingConfig, model: Model, budget: TokenBudget
) -> dict[str, Any]:
    """Return what "auto" was resolved to."""
    capabilities = model.capabilities
    return {
        "engine": capabilities.name,
        "device": capabilities.device,
        "compute_type": capabilities.compute_type,
        "quantization_method": model.prepared.quantization_method,
        "workers": capabilities.workers,
        "threads": capabilities.threads,
        "max_context": capabilities.max_context,
        "model_bytes": capabilities.model_bytes,
        "peak_bytes": capabilities.peak_bytes,
        "batching": model.batching.policy,
        "batch_size": batching.batch_size,
        "window_rows": batching.window_rows,
        "share_prefixes": model.batching.share_prefixes and capabilities.shares_prefixes,
        "deduplicate": model.batching.deduplicate,
        "token_budget": budget.to_json(),
        "calibration": model.calibration.to_json() if model.calibration else None,
    }


def plan_line(resolved: dict[str, Any]) -> str:
    """Return `resolved_settings` as one line of text."""
    budget = resolved["token_budget"]
    if resolved["peak_bytes"] is not None:
        return (
            f"{resolved['engine']} {compute_format(resolved)} on {resolved['device']}, "
            f"{resolved['threads']} threads, {resolved['batching']}, a cache of "
            f"{budget['tokens']:,} tokens; weights, cache and steps take at most "
            f"{resolved['peak_bytes'] / 1e9:.2f} GB"
        )
    return (
        f"{resolved['engine']} {compute_format(resolved)} on {resolved['device']}, "
        f"{resolved['workers']} x {resolved['threads']} threads, {resolved['batching']}, "
        f"at most {budget['tokens']:,} tokens per batch (by {budget['decided_by']}; memory allows "
        f"{budget['memory_tokens']:,} from {budget['available_bytes'] / 1e9:.1f} GB free)"
    )


def compute_format(resolved: dict[str, Any]) -> str:
    """Return compute type and quantization method: "int8_float32 (rotate-smooth)"."""
    method = resolved.get("quantization_method")
    return f"{resolved['compute_type']} ({method})" if method else str(resolved["compute_type"])


def model_identity(prepared: PreparedModel) -> dict[str, Any]:
    """Return what identifies the model, with the checksum of its files."""
    return {
        "name": prepared.name,
        "kind": prepared.kind,
        "quantization": prepared.quantization,
        "quantization_method": prepared.quantization_method,
        "fingerprint": prepared.fingerprint,
    }


def manifest(config: Any, source: Source, journal: Journal, report: RunReport) -> dict[str, Any]:
    """Return the document beside the output: counts, settings, versions, timings.

    Args:
        config: Config of the job, a dataclass with `input`.
    """
    return {
        "format": MANIFEST_FORMAT,
        **report.to_json(),
        "input": _input(config.input, source),
        "settings": journal.meta("settings"),
        "config": {
            **_jsonable(asdict(config)),
            "input": public_name(config.input),
            "output": public_name(config.output),
        },
        "sessions": journal.sessions(),
        "versions": versions(),
        "machine": {"platform": platform.platform(), "processor": platform.processor()},
    }


def _input(name: str, source: Source) -> dict[str, Any]:
    sizes = {str(path): path.stat().st_size for path in files_of(source)}
    document: dict[str, Any] = {"path": public_name(name), "bytes": sum(sizes.values())}
    if is_url(name):
        document["version"] = version_of_copy(files_of(source)[0])
    return document | ({"files": sizes} if len(sizes) > 1 else {})


def versions() -> dict[str, str]:
    """Return the versions of Python, packhorse and the libraries that determine results."""
    return {"python": platform.python_version(), **library_versions()}


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _jsonable(item) for name, item in value.items()}
    return str(value) if isinstance(value, Path) else value
