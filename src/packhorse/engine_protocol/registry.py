"""Registry of engines: what each one declares about itself before it is loaded.

The built-in engines declare their entries in `packhorse.engines.entries`. Other packages register
theirs through the entry point group `packhorse.engines` (docs/how-to/add-an-engine.md). Modules are
named by text and imported on demand: listing names imports no engine.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, Literal

from packhorse.errors import ConfigError, EngineError, first_line
from packhorse.params.sampling_params import SamplingParams

GROUP = "packhorse.engines"
BUILT_IN = ("transformers", "ctranslate2", "packed", "fake")
"""Built-in engines, a faster one after a slower one. The first one that loads a kind of model runs
every model of that kind; `models.engine_support.choose_engines` prefers the last one."""
_ENTRIES = "packhorse.engines.entries"

ModelKind = Literal["huggingface", "ctranslate2", "none"]
HUGGINGFACE: Final = "huggingface"
CTRANSLATE2: Final = "ctranslate2"
NO_MODEL: Final = "none"


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """An engine as its package declares it. References are texts of the form "module:function".

    Attributes:
        name: value of `--engine`.
        loader: `(PreparedModel, ModelFacts, EngineConfig) -> Engine`.
        model_kind: what the loader reads. "huggingface": a folder with config.json and
            safetensors; "ctranslate2": a converted folder; "none": no files at all, prompts are
            then encoded as UTF-8 bytes.
        number_formats: values of `--quantization` that it runs, besides "auto".
        format_rule: `(device) -> formats`, those of `number_formats` that this machine's device
            computes; "" is all of them.
        device_rule: `(device) -> device` that decides "auto" as the engine does; "" is always the
            CPU.
        refusal: `(transformers config) -> str | None`, the part of a model that the engine does not
            run. Only engines with this function are suggested in hints.
        is_continuous: rows join and leave at every step, so `continuous` is its only batching
            policy. What "auto" becomes otherwise follows from `EngineCapabilities`.
        runs_side_by_side: it can be loaded with several workers.
        int8_writer: `(folder, target, rounded, advance)`, which writes the folder of int8 weights
            that the engine loads (`packhorse.models.int8_folder`); it loads no other quantized
            checkpoint. "": it loads no such folders.
        gives_logits: it implements `LogitsProvider`, which `packhorse compare` needs to score the
            reference's text.
        sampling_fields: fields of `packhorse.params.sampling_params.ENGINE_FIELDS` that it
            supports.
        forces_tokens: it supports limits in `Prompt.reasoning`.
        requirement: what `pip install` needs if the loader's module lacks a library.
    """

    name: str
    loader: str
    model_kind: ModelKind
    number_formats: tuple[str, ...]
    format_rule: str = ""
    device_rule: str = ""
    refusal: str = ""
    is_continuous: bool = False
    runs_side_by_side: bool = False
    int8_writer: str = ""
    gives_logits: bool = False
    sampling_fields: tuple[str, ...] = ()
    forces_tokens: bool = False
    requirement: str = ""

    @property
    def runs_model(self) -> bool:
        """Whether it runs a real model."""
        return self.model_kind != NO_MODEL

    @property
    def loads_int8_folders(self) -> bool:
        """Whether it loads folders of int8 weights that packhorse prepared."""
        return bool(self.int8_writer)

    @property
    def takes_quantization_methods(self) -> bool:
        """Whether packhorse prepares the int8 weights that it loads."""
        return self.model_kind == CTRANSLATE2 or self.loads_int8_folders

    def runs_format(self, quantization: str) -> bool:
        return quantization in ("auto", *self.number_formats)

    def computes_format(self, quantization: str, device: str) -> bool:
        """Whether it runs a number format on this machine's "cpu" or "cuda"."""
        if not self.runs_format(quantization):
            return False
        if quantization in ("auto", "float32") or not self.format_rule:
            return True
        return quantization in self.function(self.format_rule)(device)

    def takes_policy(self, policy: str) -> bool:
        """Whether it batches rows by a policy, with "auto" left to the engine."""
        return policy == "auto" or (policy == "continuous") == self.is_continuous

    def device(self, asked: str) -> str:
        """`asked`, with "auto" decided as the engine decides it."""
        if asked != "auto":
            return asked
        return str(self.function(self.device_rule)(asked)) if self.device_rule else "cpu"

    def function(self, reference: str) -> Any:
        """The function that one of the references names.

        Raises:
            EngineError: its module cannot be imported or does not have it.
        """
        module, _, name = reference.partition(":")
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise EngineError(
                f"the engine {self.name} cannot be imported: {first_line(error)}",
                f"pip install {self.requirement}" if self.requirement else "install it again",
            ) from error


def engine_names() -> tuple[str, ...]:
    """Return the names of all engines, the built-in ones first. Imports none of them."""
    return tuple(dict.fromkeys((*BUILT_IN, *sorted(each.name for each in _registered()))))


def model_engines() -> tuple[str, ...]:
    """Return the built-in engines that run a model: what is tried if no engines are named."""
    return tuple(each.name for each in built_in_engines() if each.runs_model)


def engine_entry(name: str) -> EngineEntry:
    """Return the entry of an engine. A built-in name never refers to another package.

    Raises:
        ConfigError: no engine has this name, or several packages register it.
        EngineError: the package that registers it is broken.
    """
    if name in BUILT_IN:
        return _built_in(name)
    found = [each for each in _registered() if each.name == name]
    if not found:
        raise unknown_engine(name)
    if len(found) > 1:
        packages = ", ".join(sorted(map(_package, found)))
        raise ConfigError(
            f"several packages register the engine {name!r}: {packages}",
            "uninstall all of them but one",
        )
    return _loaded(found[0])


def sampling_refusal(engine: str, supported: Collection[str], decoding: SamplingParams) -> str:
    """Return why an engine does not run sampling parameters, "" if it does.

    Args:
        engine: Its name.
        supported: `sampling_fields` of the engine.
        decoding: The parameters of a row or a job.
    """
    for name in decoding.engine_fields:
        if name not in supported:
            able = [each.name for each in built_in_engines() if each.refusal]
            able = [each for each in able if name in engine_entry(each).sampling_fields]
            return (
                f"the engine {engine} does not support {name}: leave it out, or use the engine "
                f"{' or '.join(each for each in able if each != engine)}"
            )
    return ""


def unknown_engine(name: str) -> ConfigError:
    return ConfigError(f"unknown engine {name!r}", f"known: {', '.join(engine_names())}")


def default_engine(kind: ModelKind) -> str:
    """Return the engine that runs every model of a kind."""
    return next(each.name for each in built_in_engines() if each.model_kind == kind)


def built_in_engines() -> Sequence[EngineEntry]:
    """Return the entries of the built-in engines, in the order of `BUILT_IN`."""
    return tuple(map(_built_in, BUILT_IN))


@cache
def _built_in(name: str) -> EngineEntry:
    entries: Sequence[EngineEntry] = import_module(_ENTRIES).ENTRIES
    return next(each for each in entries if each.name == name)


def _registered() -> list[EntryPoint]:
    """Entry points of other packages; one whose name is built in is ignored."""
    return [each for each in entry_points(group=GROUP) if each.name not in BUILT_IN]


def _loaded(point: EntryPoint) -> EngineEntry:
    where = f"the engine {point.name!r} of {_package(point)} cannot be used"
    hint = f"update or uninstall {_package(point)}"
    try:
        entry = point.load()
    except Exception as error:  # any code may run at import
        raise EngineError(f"{where}: {type(error).__name__}: {first_line(error)}", hint) from error
    if not isinstance(entry, EngineEntry):
        raise EngineError(f"{where}: {point.value} is no EngineEntry", hint)
    if entry.name != point.name:
        raise EngineError(f"{where}: its entry is named {entry.name!r}", hint)
    return entry


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.module
