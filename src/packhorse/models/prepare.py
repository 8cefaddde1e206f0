"""From what a person calls a model to a verified folder that an engine can load."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from packhorse.config import DEVICES, QUANTIZATIONS
from packhorse.engine_protocol.registry import (
    CTRANSLATE2,
    HUGGINGFACE,
    default_engine,
    engine_entry,
)
from packhorse.errors import ConfigError, ModelError, model_errors
from packhorse.models import cache
from packhorse.models import ctranslate2_folder as ready
from packhorse.models.catalog import CATALOG, names
from packhorse.models.checkpoint import require_unquantized
from packhorse.models.convert import convert_checkpoint, converter_version
from packhorse.models.engine_support import engines_of_folder
from packhorse.models.fetch import fetch_members
from packhorse.models.hashing import file_digests, fingerprint
from packhorse.models.int8_folder import is_int8_folder
from packhorse.models.original import Original, find_source, say_if_long
from packhorse.models.prepared import PreparedModel, Report, model_without_files
from packhorse.models.quantized import (
    CannotFoldError,
    QuantizationMethodChoice,
    convert_ready,
    method_of,
    way_for,
    write_int8,
)
from packhorse.models.resolve import (
    CTranslate2Folder,
    HubModel,
    HuggingFaceFolder,
    Source,
    engine_for,
    resolve,
)
from packhorse.quantization.methods import AUTO, PLAIN, methods_for, require_known

_warn: Report = logging.getLogger("packhorse.models").warning


def prepare(
    model: str,
    *,
    engine: str = "auto",
    quantization: str = "auto",
    device: str = "cpu",
    quantization_method: str = AUTO,
    allow_pickle: bool = False,
    report: Report = _warn,
) -> PreparedModel:
    """The verified folder of `model` in the form that `engine` loads.

    model: see `resolve`. What has to be fetched or converted lands in the cache; a folder of the
    person's own stays where it is. quantization: of the weights a conversion to CTranslate2
    stores; transformers converts while it loads. quantization_method: how it is made ready for
    int8 (`packhorse.quantization.methods`); "auto" is what `packhorse quantize` found for it,
    else the best its family can have. report: is told what takes long.

    Raises ModelError for a model that cannot be found, fetched, converted or verified, and
    ConfigError for an engine and a quantization that do not go together.
    """
    if engine != AUTO and not engine_entry(engine).runs_model:
        return model_without_files(model, engine)
    _check_names(quantization, device)
    require_known(quantization_method)
    asked = _PrepareRequest(
        model, engine, quantization, device, quantization_method, allow_pickle, report
    )
    with model_errors(f"{model} cannot be prepared", "copy or fetch the model again"):
        try:
            return _prepare(asked)
        except OSError as error:
            where = error.filename or model
            raise ModelError(
                f"{where} cannot be read: {error.strerror or error}", "check that you may read it"
            ) from error


@dataclass(frozen=True, slots=True)
class _PrepareRequest:
    """What `prepare` was asked for; see there."""

    model: str
    engine: str
    quantization: str
    device: str
    method: str
    allow_pickle: bool
    report: Report


def _prepare(asked: _PrepareRequest) -> PreparedModel:
    if isinstance(resolve(asked.model), HubModel):
        _check_formats(asked.engine, asked.quantization)
    source = find_source(asked.model, allow_pickle=asked.allow_pickle, report=asked.report)
    chosen = engine_for(source, asked.engine)
    _check_formats(chosen, asked.quantization, source)
    if isinstance(source, CTranslate2Folder):
        return _ready(asked.model, source.path, chosen, asked.report)
    assert not isinstance(source, HubModel)
    _check_method(asked)
    original = Original(source, asked.allow_pickle, asked.report)
    entry = engine_entry(chosen)
    if entry.model_kind == CTRANSLATE2:
        return _for_ctranslate2(original, asked, chosen)
    if entry.loads_int8_folders:
        if (own := original.own_folder()) and not is_int8_folder(own.config):
            require_unquantized(own)
        if asked.quantization == "int8":
            return _int8_folder(original, asked, chosen)
    return replace(original.prepared(asked.model), asked_engine=chosen)


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
    return "float16" if torch_device(device) == "cuda" else "float32"


def torch_device(asked: str) -> str:
    """`asked` with "auto" decided: a GPU where torch sees one."""
    if asked != "auto":
        return asked
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _for_ctranslate2(original: Original, asked: _PrepareRequest, engine: str) -> PreparedModel:
    form = resolve_quantization(asked.quantization, asked.device)
    identity = original.identity()
    is_int8 = form.startswith("int8")
    plain = QuantizationMethodChoice(PLAIN)
    way = way_for(asked.method, original.title, identity, asked.report) if is_int8 else plain
    try:
        entry = _converted(original, identity, form, way)
    except CannotFoldError as error:
        if asked.method != AUTO:
            raise
        asked.report(f"{error}: it is converted as it is, and may lose much of its accuracy")
        entry = _converted(original, identity, form, plain)
    return PreparedModel(
        name=asked.model,
        kind=CTRANSLATE2,
        folder=entry.folder,
        tokenizer_folder=ready.tokenizer_folder(entry.folder),
        quantization=form,
        fingerprint=entry.fingerprint,
        bytes_on_disk=entry.size_bytes,
        quantization_method=method_of(entry.folder) or (PLAIN if is_int8 else ""),
        asked_engine=engine,
    )


def _converted(
    original: Original, identity: tuple[str, ...], form: str, way: QuantizationMethodChoice
) -> cache.Entry:
    """The cached CTranslate2 folder of a model, its weights stored in `form`."""
    report = original.report

    def build(contents: Path, _: Path) -> None:
        checkpoint = original.checkpoint()
        if way.is_plain:
            report(f"converting {original.title} to CTranslate2 {form}")
            convert_checkpoint(checkpoint, form, contents)
        else:
            convert_ready(checkpoint, form, way, contents, original.title, report)

    decides = (*identity, converter_version(), *way.decides())
    key = cache.Key(original.title, "ctranslate2", way.variant(form), form, decides)
    return cache.obtain(key, build, report)


def _int8_folder(original: Original, asked: _PrepareRequest, engine: str) -> PreparedModel:
    """A folder of int8 weights; the model's own where it is one already, where its way is plain,
    and where it cannot be folded: the engine then rounds while it loads.

    What is in the cache needs no original: nothing is unpacked before something is to be built.
    """
    identity, own = original.identity(), original.own_folder()
    if own and is_int8_folder(own.config):
        return _int8(asked, engine, own.folder, identity[-1], own.bytes_on_disk)

    def as_it_is() -> PreparedModel:
        return replace(original.prepared(asked.model, PLAIN), asked_engine=engine)

    way = way_for(asked.method, original.title, identity, asked.report)
    if way.is_plain or (own and not methods_for(str(own.config["model_type"]), asked.method)):
        return as_it_is()

    def build(contents: Path, _: Path) -> None:
        write_int8(original.checkpoint(), way, contents, original.title, asked.report)

    decides = (*identity, version("transformers"), *way.decides())
    key = cache.Key(original.title, "huggingface", way.variant("packed-int8"), "int8", decides)
    try:
        entry = cache.obtain(key, build, asked.report)
    except CannotFoldError as error:
        if asked.method != AUTO:
            raise
        asked.report(f"{error}: its weights are rounded to nearest, which is less accurate")
        return as_it_is()
    return _int8(asked, engine, entry.folder, entry.fingerprint, entry.size_bytes)


def _int8(
    asked: _PrepareRequest, engine: str, folder: Path, digest: str, size: int
) -> PreparedModel:
    return PreparedModel(
        name=asked.model,
        kind=HUGGINGFACE,
        folder=folder,
        tokenizer_folder=folder,
        quantization="int8",
        fingerprint=digest,
        bytes_on_disk=size,
        quantization_method=method_of(folder),
        asked_engine=engine,
    )


def _ready(model: str, folder: Path, engine: str, report: Report) -> PreparedModel:
    """A CTranslate2 folder of the person's own."""
    from packhorse.models.ct2_spec import require_faithful_folder

    variables = ready.read_variables(folder)
    ready.require_readable(folder)
    require_faithful_folder(folder, variables)
    tokenizer = ready.tokenizer_folder(folder)
    files = ready.deciding_files(folder)
    size = sum((folder / name).stat().st_size for name in files)
    say_if_long(folder, size, report)
    return PreparedModel(
        name=model,
        kind=CTRANSLATE2,
        folder=folder,
        tokenizer_folder=tokenizer,
        quantization=ready.stored_quantization(variables),
        fingerprint=fingerprint(file_digests(folder, files)),
        bytes_on_disk=size,
        quantization_method=method_of(folder),
        asked_engine=engine,
    )


def _check_names(quantization: str, device: str) -> None:
    if quantization not in QUANTIZATIONS:
        raise ConfigError(
            f"there is no quantization {quantization!r}", f"one of {', '.join(QUANTIZATIONS)}"
        )
    if device not in DEVICES:
        raise ConfigError(f"there is no device {device!r}", f"one of {', '.join(DEVICES)}")


def _check_method(asked: _PrepareRequest) -> None:
    form = resolve_quantization(asked.quantization, asked.device)
    if asked.method not in (AUTO, PLAIN) and not form.startswith("int8"):
        raise ConfigError(
            f"the quantization method {asked.method} is for int8, not for {form}",
            "add --quantization int8, or leave the method out",
        )


def _check_formats(engine: str, quantization: str, source: Source | None = None) -> None:
    """source: the model, once it is here; engines are named that run it in this format."""
    if engine == AUTO:
        return
    entry = engine_entry(engine)
    if entry.runs_format(quantization):
        return
    hint = f"choose {', '.join(entry.number_formats)}"
    if isinstance(source, HuggingFaceFolder):
        others = engines_of_folder(source.path, engine, quantization)
    else:  # the models of the catalog, and those that GGUF files hold for the most part
        others = () if source is None else (default_engine(CTRANSLATE2),)
    if others:
        hint = f"add --engine {others[-1]}, or {hint}"
    raise ConfigError(f"the {engine} engine does not run {quantization}", hint)
