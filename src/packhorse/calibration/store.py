"""Calibrations as files in the cache: one for each machine, model, engine setting and version."""

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
    """What one division of the cores came to: tokens of prompt and output a second, in all."""

    workers: int
    threads: int
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What work costs on this machine.

    traits: of the engine as it was loaded, with the fastest of `thread_trials` or what was asked
    for. coefficients: see `WorkCounts` (seconds). error: median relative error of the fit over its
    own observations. load_seconds: from the call to a model that is ready. loaded_bytes: memory of
    the process then, with the tokenizer. memory: what computing prompts takes beside that.
    seconds: what the calibration took. other_work_share: see `OtherWork`, while it was measured.
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
        """Whether other work took so much of the machine that a quiet one will be faster."""
        return self.other_work_share > BUSY

    def costs(self, outputs: OutputLengths | None = None) -> Costs:
        """Expected costs of batches whose rows generate like `outputs`."""
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
        """What `to_json` made. Raises ValueError for anything else."""
        calibration: Calibration = decode(cls, document, "calibration")
        return calibration


def calibrate_words(model: str, engine: EngineConfig, *, allow_pickle: bool = False) -> list[str]:
    """The words of `packhorse` that calibrate an engine as it is asked for."""
    words = [
        "calibrate", model, "--engine", engine.engine, "--quantization", engine.quantization,
        "--quantization-method", engine.quantization_method,
    ]  # fmt: skip
    for name in ("workers", "threads"):
        if getattr(engine, name) is not None:
            words += [f"--{name}", str(getattr(engine, name))]
    return [*words, "--allow-pickle"] if allow_pickle else words


def disturbance(found: Calibration, model: str, engine: EngineConfig) -> str:
    """What to know of a calibration that is disturbed, and how to make it anew."""
    return (
        f"{found.capabilities.name} {found.capabilities.compute_type} was measured while "
        f"other work took {found.other_work_share:.0%} of the cores; once it is quiet: "
        f"{shlex.join(['packhorse', *calibrate_words(model, engine)])}"
    )


def read(path: Path) -> Calibration | None:
    """The calibration in a file; None for none, or for one that cannot be used."""
    try:
        document = read_object(path)
        if document.get("format") != FORMAT:
            return None
        return Calibration.from_json(document)
    except (ModelError, ValueError):
        return None


def write(path: Path, calibration: Calibration) -> bool:
    """Whether it could be kept; a cache that cannot be written costs time, not a job."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT, **calibration.to_json()})
    except (OSError, OutputError):
        return False
    return True


def place(prepared: PreparedModel, config: EngineConfig) -> Path:
    """Where the calibration of a model and an engine setting on this machine is kept.

    What "auto" becomes and what is named are the same place.
    """
    identity = {
        "format": FORMAT,
        "model": prepared.fingerprint,
        "engine": prepared.engine,
        "config": asdict(_resolved(prepared, config)),
        "machine": machine(),
        "versions": library_versions(),
    }
    digest = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    try:
        root = cache_root()
    except ModelError:  # there is no place for a cache: nothing is found and nothing kept
        root = Path(os.devnull)
    return root / "calibrations" / f"{digest[:24]}.json"


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
