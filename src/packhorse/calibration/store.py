"""Cache of calibrations: one file per machine, model, engine options and versions."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from packhorse.batching.cost import CostModel, Costs, OutputLengths, PrefillMemory, WorkCounts
from packhorse.config import EngineConfig
from packhorse.engine_protocol import EngineCapabilities
from packhorse.engine_protocol.registry import CTRANSLATE2, engine_entry
from packhorse.errors import ModelError, OutputError
from packhorse.models import PreparedModel, cache_root, resolve_quantization
from packhorse.models.cache import library_versions
from packhorse.profiling.hardware import machine
from packhorse.profiling.run_metrics import BUSY
from packhorse.storage.atomic_files import write_json
from packhorse.storage.json_files import decode, read_object

FORMAT = 2


@dataclass(frozen=True, slots=True)
class ThreadTrial:
    """Throughput of one division of the cores: prompt and generated tokens per second in total."""

    workers: int
    threads: int
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Measured costs of an engine on this machine.

    Attributes:
        model: Name of the model.
        capabilities: Of the engine as loaded, with the fastest of `thread_trials` or the requested
            division.
        thread_trials: Divisions of the cores that were tried.
        coefficients: See `WorkCounts` (seconds).
        observations: Number of observations.
        error: Median relative error of the fit on its own observations.
        load_seconds: Time to load the model.
        loaded_bytes: Memory of the process after loading, tokenizer included.
        memory: Prefill memory on top of that.
        seconds: Time that the calibration took.
        created: Time of creation (UTC).
        other_work_share: See `OtherWork`; measured during the calibration.
    """

    model: str
    capabilities: EngineCapabilities
    thread_trials: tuple[ThreadTrial, ...]
    coefficients: WorkCounts
    observations: int
    error: float
    load_seconds: float
    loaded_bytes: int
    memory: PrefillMemory
    seconds: float
    created: str
    other_work_share: float = 0.0

    @property
    def is_disturbed(self) -> bool:
        """Whether other processes used so many cores that an idle machine will be faster."""
        return self.other_work_share > BUSY

    def costs(self, outputs: OutputLengths | None = None) -> Costs:
        """Return expected costs of batches whose rows generate like `outputs`."""
        model = CostModel(self.capabilities.cost_rule, self.capabilities.workers, self.coefficients)
        return Costs(model, outputs or OutputLengths(), self.memory)

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "coefficients": self.coefficients._asdict(),
            "memory": self.memory._asdict(),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Calibration:
        """Parse the result of `to_json`. Raises ValueError for anything else."""
        calibration: Calibration = decode(cls, document, "calibration")
        return calibration


def calibrate_arguments(
    model: str, engine: EngineConfig, *, allow_pickle: bool = False
) -> list[str]:
    """Return the `packhorse` arguments that calibrate an engine with these options."""
    words = [
        "calibrate", model, "--engine", engine.engine, "--quantization", engine.quantization,
        "--quantization-method", engine.quantization_method,
    ]  # fmt: skip
    for name in ("workers", "threads"):
        if getattr(engine, name) is not None:
            words += [f"--{name}", str(getattr(engine, name))]
    return [*words, "--allow-pickle"] if allow_pickle else words


def describe_disturbance(found: Calibration, model: str, engine: EngineConfig) -> str:
    """Return a message about a disturbed calibration and how to repeat it."""
    return (
        f"{found.capabilities.name} {found.capabilities.compute_type} was measured while "
        f"other work took {found.other_work_share:.0%} of the cores; to repeat it when idle: "
        f"{shlex.join(['packhorse', *calibrate_arguments(model, engine)])}"
    )


def read(path: Path) -> Calibration | None:
    """Return the calibration in a file; None if there is none or it cannot be used."""
    try:
        document = read_object(path)
        if document.get("format") != FORMAT:
            return None
        return Calibration.from_json(document)
    except (ModelError, ValueError):
        return None


def write(path: Path, calibration: Calibration) -> bool:
    """Store a calibration and return whether that worked.

    A cache that cannot be written costs time but does not fail the job.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT, **calibration.to_json()})
    except (OSError, OutputError):
        return False
    return True


def calibration_path(prepared: PreparedModel, config: EngineConfig) -> Path:
    """Return the file of the calibration of a model and engine options on this machine.

    An option "auto" and the value that it resolves to give the same file.
    """
    identity = {
        "format": FORMAT,
        "model": prepared.fingerprint,
        "engine": prepared.engine,
        "config": _results_config(_resolved(prepared, config)),
        "machine": machine(),
        "versions": library_versions(),
    }
    digest = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    try:
        root = cache_root()
    except ModelError:  # no cache folder: nothing is found or stored
        root = Path(os.devnull)
    return root / "calibrations" / f"{digest[:24]}.json"


def _results_config(config: EngineConfig) -> dict[str, Any]:
    """Return the options that affect measurements."""
    return {name: value for name, value in asdict(config).items() if name != "verify"}


def _resolved(prepared: PreparedModel, config: EngineConfig) -> EngineConfig:
    device = engine_entry(prepared.engine).device(config.device)
    form = config.quantization
    if form == "auto":
        is_stored = prepared.kind == CTRANSLATE2
        form = prepared.quantization if is_stored else resolve_quantization(form, device)
    return replace(
        config,
        engine=prepared.engine,
        device=device,
        quantization=form,
        quantization_method=prepared.quantization_method,
    )
