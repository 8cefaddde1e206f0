"""Resolve the name of a model by names and folders alone; nothing is fetched or loaded."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from packhorse.engine_protocol.registry import (
    CTRANSLATE2,
    HUGGINGFACE,
    default_engine,
    engine_entry,
    model_engines,
)
from packhorse.errors import ConfigError, ModelError
from packhorse.models.catalog import CATALOG, CatalogEntry, names
from packhorse.models.recognize import DECODER_ONLY, describe_folder, unknown_file

HUB_ID = re.compile(r"(?P<repository>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w][\w./-]*))?")
GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class CTranslate2Folder:
    """A folder with model.bin, config.json and a vocabulary."""

    path: Path


@dataclass(frozen=True, slots=True)
class HuggingFaceFolder:
    """A folder with a config.json that names a model type."""

    path: Path


@dataclass(frozen=True, slots=True)
class GgufFile:
    path: Path


@dataclass(frozen=True, slots=True)
class CatalogModel:
    entry: CatalogEntry


@dataclass(frozen=True, slots=True)
class HubModel:
    """A repository of the model hub; `revision` None is its newest state."""

    repository: str
    revision: str | None


Source = CTranslate2Folder | HuggingFaceFolder | GgufFile | CatalogModel | HubModel


def resolve(model: str) -> Source:
    """Return the source that `model` names; an existing path takes precedence over a name.

    Raises:
        ModelError: There is no such model; the message says what was tried, and the closest name.
    """
    if not model.strip():
        raise ModelError("no model was given", _catalog_hint())
    path = _expand_user(model)
    if path.is_dir():
        return classify_folder(path)
    if path.is_file():
        return _classify_file(path)
    if _looks_like_path(model):
        raise ModelError(
            f"there is no model at {path}",
            f"a relative path is looked up from {Path.cwd()}; {_catalog_hint()}",
        )
    entry = CATALOG.get(model.lower())
    if entry is not None:
        return _generation_entry(entry)
    match = HUB_ID.fullmatch(model)
    if match:
        return HubModel(match["repository"], match["revision"])
    raise _unknown_model(model)


def default_engine_of(model: str) -> str:
    """Return the engine that runs every model of the form that `model` names.

    It is ctranslate2 for a CTranslate2 folder and transformers for everything else.
    """
    return default_engine(
        CTRANSLATE2 if isinstance(resolve(model), CTranslate2Folder) else HUGGINGFACE
    )


def check_engine(source: Source, engine: str) -> None:
    """Raise ConfigError if an engine does not run the form of `source`."""
    entry = engine_entry(engine)
    if not entry.runs_model:
        raise ConfigError(
            f"the engine {engine!r} does not run models", f"use {' or '.join(model_engines())}"
        )
    if isinstance(source, CTranslate2Folder) and entry.model_kind != CTRANSLATE2:
        raise ConfigError(
            f"a CTranslate2 folder cannot run on {engine}",
            f"use --engine {default_engine(CTRANSLATE2)}, or give the Hugging Face folder it was "
            "made from",
        )


def classify_folder(path: Path) -> CTranslate2Folder | HuggingFaceFolder:
    """Return the kind of model in an existing folder; ModelError if no engine can use it."""
    held = {item.name for item in path.iterdir()}
    vocabulary = any(name.startswith("vocabulary.") for name in held)
    if {"model.bin", "config.json"} <= held and vocabulary:
        return CTranslate2Folder(path)
    if any("_vocabulary." in name for name in held) and "model.bin" in held:
        raise ModelError(
            f"{path} is a CTranslate2 translation model, not a language model",
            DECODER_ONLY,
        )
    if "adapter_config.json" in held:
        raise ModelError(
            f"{path} holds an adapter, which changes another model, not a model of its own",
            "merge it into its base model (peft: merge_and_unload) and give the folder saved then",
        )
    if "config.json" in held:
        return HuggingFaceFolder(path)
    if found := describe_folder(path):
        raise ModelError(f"{path} {found[0]}", found[1])
    raise ModelError(
        f"{path} is not a model folder: it has no config.json",
        "give the folder that holds config.json and the weights",
    )


def _classify_file(path: Path) -> GgufFile:
    with path.open("rb") as file:
        if file.read(len(GGUF_MAGIC)) == GGUF_MAGIC:
            return GgufFile(path)
    raise unknown_file(path)


def _generation_entry(entry: CatalogEntry) -> CatalogModel:
    if entry.purpose != "generation":
        raise ModelError(f"{entry.name} computes embeddings and generates no text", _catalog_hint())
    return CatalogModel(entry)


def _expand_user(model: str) -> Path:
    try:
        return Path(model).expanduser()
    except RuntimeError:  # ~name of an unknown user
        return Path(model)


def _looks_like_path(model: str) -> bool:
    starts = model.startswith((".", "~", os.sep))
    return starts or model.partition("@")[0].count("/") > 1 or model.endswith(".gguf")


def _catalog_hint() -> str:
    return f"names that need no files: {', '.join(names('generation'))}"


def _unknown_model(model: str) -> ModelError:
    closest = difflib.get_close_matches(model.lower(), names("generation"), n=1, cutoff=0.4)
    meant = f"did you mean {closest[0]}? " if closest else ""
    return ModelError(
        f"no model {model!r}: it is not a folder, a GGUF file, a catalog name or a hub id",
        f"{meant}{_catalog_hint()}; a hub id looks like organisation/name",
    )
