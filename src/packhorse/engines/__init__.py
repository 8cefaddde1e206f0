"""Engines run batches of token ids; `packhorse.engine_protocol` is the interface of all of them.

The registry (`packhorse.engine_protocol.registry`) has an entry per engine. The module of an
engine, and with it the library that it wraps, is imported when that engine is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from packhorse.config import EngineConfig
from packhorse.engine_protocol import Engine
from packhorse.engine_protocol.registry import engine_entry
from packhorse.engines.common.allocator import keep_freed_memory
from packhorse.errors import model_errors

if TYPE_CHECKING:
    from packhorse.models import ModelFacts, PreparedModel

_HINT = "the files are damaged, incomplete or of another kind: fetch or prepare them again"


class Loader(Protocol):
    def __call__(
        self, prepared: PreparedModel, facts: ModelFacts, config: EngineConfig
    ) -> Engine: ...


def loader_named(name: str) -> Loader:
    """Return the loader of an engine.

    Raises:
        ConfigError: there is no such engine; the hint lists the known ones.
        EngineError: the package that registers it is broken.
    """
    entry = engine_entry(name)
    return cast(Loader, entry.function(entry.loader))


def load_engine(prepared: PreparedModel, facts: ModelFacts, config: EngineConfig) -> Engine:
    """Load a prepared model into the engine it was prepared for.

    Raises:
        ModelError: files of the model are damaged.
        EngineError: the engine or this machine cannot do what `config` asks for, for example a
            number format or a device.
    """
    if prepared.has_files:
        keep_freed_memory()
    loader = loader_named(prepared.engine)
    with model_errors(f"{prepared.folder} cannot be loaded by the engine {prepared.engine}", _HINT):
        return loader(prepared, facts, config)
