"""Engines run batches of token ids; `packhorse.engine_protocol` says what every one of them keeps.

A loader is a function (PreparedModel, ModelFacts, EngineConfig) -> Engine. Its module, and with it
the library it wraps, is imported when that engine is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from packhorse.config import EngineConfig
from packhorse.engine_protocol import Engine
from packhorse.engines.common.allocator import keep_freed_memory
from packhorse.errors import EngineError, model_errors

if TYPE_CHECKING:
    from packhorse.models import ModelFacts, PreparedModel

_AGAIN = "the files are damaged, incomplete or of another kind: fetch or prepare them again"

LOADERS = {
    "transformers": "packhorse.engines.transformers.engine:load",
    "ctranslate2": "packhorse.engines.ctranslate2.engine:load",
    "packed": "packhorse.engines.packed:load",
    "fake": "packhorse.engines.fake:load",
}


class Loader(Protocol):
    def __call__(
        self, prepared: PreparedModel, facts: ModelFacts, config: EngineConfig
    ) -> Engine: ...


def loader_named(name: str) -> Loader:
    """The loader of an engine; EngineError lists the known names."""
    if name not in LOADERS:
        raise EngineError(f"there is no engine {name!r}", f"one of {', '.join(LOADERS)}")
    module, function = LOADERS[name].split(":")
    return cast(Loader, getattr(import_module(module), function))


def load_engine(prepared: PreparedModel, facts: ModelFacts, config: EngineConfig) -> Engine:
    """Loads a prepared model into the engine that its kind belongs to.

    Raises ModelError for damaged files and EngineError for what the engine or this machine cannot
    do, e.g. a number format or a device.
    """
    if prepared.kind != "fake":
        keep_freed_memory()
    loader = loader_named(prepared.engine)
    with model_errors(
        f"{prepared.folder} cannot be loaded by the engine {prepared.engine}", _AGAIN
    ):
        return loader(prepared, facts, config)


def device_for(engine: str, asked: str) -> str:
    """`asked` with "auto" decided as the engine decides it."""
    if asked != "auto":
        return asked
    if engine == "transformers":
        from packhorse.models import torch_device

        return torch_device(asked)
    if engine == "ctranslate2":
        from packhorse.engines.ctranslate2.loading import available_device

        return available_device(asked)
    return "cpu"
