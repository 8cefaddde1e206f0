"""Prepare a model: resolve its name, fetch, convert, cache and verify it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from packhorse.batching.memory import available_bytes
from packhorse.config import DEVICES, QUANTIZATIONS
from packhorse.engine_protocol.registry import (
    CTRANSLATE2,
    HUGGINGFACE,
    default_engine,
    engine_entry,
)
from packhorse.errors import ConfigError, ModelError, model_errors
from packhorse.models import cache, ctranslate2_folder
from packhorse.models.checkpoint import require_unquantized
from packhorse.models.convert import convert_checkpoint, converter_version
from packhorse.models.engine_support import (
    EngineRequest,
    choose_engine,
    config_of,
    engines_of_folder,
)
from packhorse.models.hashing import file_digests, fingerprint, verify_all
from packhorse.models.int8_folder import INT8_VERSION, is_int8_folder
from packhorse.models.int8_preparation import (
    CannotFoldError,
    QuantizationMethodChoice,
    choose_method,
    convert_to_int8,
    read_quantization_method,
    write_packed_int8,
)
from packhorse.models.original import Original, find_source, report_if_long
from packhorse.models.prepared import PreparedModel, Report, model_without_files
from packhorse.models.resolve import (
    CTranslate2Folder,
    HubModel,
    HuggingFaceFolder,
    Source,
    check_engine,
    resolve,
)
from packhorse.models.resolved_config import read_config
from packhorse.quantization.methods import AUTO, PLAIN, require_known, supported_methods

_warn: Report = logging.getLogger("packhorse.models").warning


def prepare(
    model: str,
    *,
    engine: str = "auto",
    quantization: str = "auto",
    device: str = "cpu",
    quantization_method: str = AUTO,
    policy: str = AUTO,
    workers: int | None = None,
    allow_pickle: bool = False,
    verify: bool = False,
    report: Report = _warn,
) -> PreparedModel:
    """Return the verified folder of a model in the form that an engine loads.

    Fetched and converted models are stored in the cache; a user's own folder stays where it is.

    Args:
        model: Name or path, see `resolve`.
        engine: Name of an engine; "auto" chooses one, see `engine_support.choose_engine`.
        quantization: Number format of the weights that a conversion to CTranslate2 stores;
            transformers converts them while it loads.
        device: "cpu", "cuda" or "auto"; determines the format that "auto" stands for.
        quantization_method: How the model is prepared for int8 (`quantization.methods`). "auto" is
            the recipe that `packhorse quantize` stored, or the best method for the model's family.
        policy, workers: Batching policy and workers that the engine "auto" must be able to run.
        allow_pickle: Accept PyTorch pickles as weights.
        verify: Read every byte of the files, even of those that did not change (`hashing`).
        report: Receives a line before each long step.

    Raises:
        ModelError: The model cannot be found, fetched, converted or verified.
        ConfigError: The engine does not run the quantization.
    """
    if engine != AUTO and not engine_entry(engine).runs_model:
        return model_without_files(model, engine)
    _check_names(quantization, device)
    require_known(quantization_method)
    request = PrepareRequest(
        model,
        engine,
        quantization,
        device,
        quantization_method,
        policy,
        workers,
        allow_pickle,
        report,
    )
    what = f"{model} cannot be prepared"
    with model_errors(what, "copy or fetch the model again"), verify_all(verify):
        try:
            return _prepare(request)
        except OSError as error:
            where = error.filename or model
            raise ModelError(
                f"{where} cannot be read: {error.strerror or error}", "check that you may read it"
            ) from error


@dataclass(frozen=True, slots=True)
class PrepareRequest:
    """Arguments of `prepare`."""

    model: str
    engine: str
    quantization: str
    device: str
    method: str
    policy: str
    workers: int | None
    allow_pickle: bool
    report: Report


def _prepare(request: PrepareRequest) -> PreparedModel:
    if isinstance(resolve(request.model), HubModel):
        _check_formats(request.engine, request.quantization)
    source = find_source(request.model, allow_pickle=request.allow_pickle, report=request.report)
    chosen = request.engine
    if chosen == AUTO and isinstance(source, CTranslate2Folder):
        chosen = default_engine(CTRANSLATE2)
        request.report(f"engine {chosen}: the model is a CTranslate2 folder")
    if chosen != AUTO:
        check_engine(source, chosen)
        _check_formats(chosen, request.quantization, source)
    if isinstance(source, CTranslate2Folder):
        return _prepare_ctranslate2_folder(request.model, source.path, chosen, request.report)
    assert not isinstance(source, HubModel)
    _check_method(request)
    original = Original(source, request.allow_pickle, request.report)
    if chosen == AUTO:
        return _prepare_for_best(original, request)
    return _prepare_for(original, request, chosen)


def _prepare_for_best(original: Original, request: PrepareRequest) -> PreparedModel:
    """Return the model in the form of the engine that "auto" stands for, and report which it is.

    If the model cannot be converted for one engine, the next one is chosen.
    """
    wanted = EngineRequest(
        torch_device(request.device), request.quantization, request.policy, request.workers
    )
    config = config_of(original.checkpoint().folder)
    failures: dict[str, str] = {}
    while True:
        chosen = choose_engine(config, wanted, failures)
        request.report(f"engine {chosen.name}: {chosen.reason}")
        try:
            return _prepare_for(original, request, chosen.name)
        except ModelError as error:
            if engine_entry(chosen.name).model_kind == HUGGINGFACE:
                raise
            failures[chosen.name] = f"does not run it: {error}"
            try:
                choose_engine(config, wanted, failures)
            except ConfigError:
                raise error from None


def _prepare_for(original: Original, request: PrepareRequest, engine: str) -> PreparedModel:
    """Return the model in the form that a named engine loads."""
    entry = engine_entry(engine)
    if entry.model_kind == CTRANSLATE2:
        return _prepare_for_ctranslate2(original, request, engine)
    if entry.loads_int8_folders:
        if (own := original.own_folder()) and not is_int8_folder(own.config):
            require_unquantized(own)
        if request.quantization == "int8":
            return _prepare_int8_folder(original, request, engine)
    return replace(original.prepared(request.model), asked_engine=engine)


def resolve_quantization(quantization: str, device: str, engine: str = AUTO) -> str:
    """Return `quantization`, with "auto" replaced by float32 on a CPU and float16 on a GPU.

    Device "auto" is a GPU if torch finds one; torch is not loaded for engines that run on the CPU
    only.
    """
    _check_names(quantization, device)
    if quantization != "auto":
        return quantization
    if device == "auto" and engine != AUTO and not engine_entry(engine).device_rule:
        return "float32"
    return "float16" if torch_device(device) == "cuda" else "float32"


def torch_device(device: str) -> str:
    """Return `device`, with "auto" replaced by "cuda" if torch finds a GPU, else by "cpu"."""
    if device != "auto":
        return device
    if version("torch").endswith("+cpu"):
        return "cpu"  # without loading torch, which takes a second
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _prepare_for_ctranslate2(
    original: Original, request: PrepareRequest, engine: str
) -> PreparedModel:
    form = resolve_quantization(request.quantization, request.device)
    identity = original.identity()
    is_int8 = form.startswith("int8")
    plain = QuantizationMethodChoice(PLAIN)
    choice = plain
    if is_int8:
        choice = choose_method(request.method, original.title, identity, request.report)
    is_checked = request.engine == AUTO
    try:
        entry = _obtain_converted(original, identity, form, choice, is_checked)
    except CannotFoldError as error:
        if request.method != AUTO:
            raise
        request.report(f"{error}: it is converted as it is, and may lose much of its accuracy")
        entry = _obtain_converted(original, identity, form, plain, is_checked)
    return PreparedModel(
        name=request.model,
        kind=CTRANSLATE2,
        folder=entry.folder,
        tokenizer_folder=ctranslate2_folder.tokenizer_folder(entry.folder),
        quantization=form,
        fingerprint=entry.fingerprint,
        bytes_on_disk=entry.size_bytes,
        quantization_method=read_quantization_method(entry.folder) or (PLAIN if is_int8 else ""),
        asked_engine=engine,
    )


def _obtain_converted(
    original: Original,
    identity: tuple[str, ...],
    form: str,
    choice: QuantizationMethodChoice,
    is_checked: bool,
) -> cache.Entry:
    """Return the cached CTranslate2 folder of a model with weights in `form`, built if missing.

    With `is_checked`, ModelError is raised before a conversion that memory may not hold: two copies
    of the weights in float32.
    """
    report = original.report

    def build(contents: Path, _: Path) -> None:
        checkpoint = original.checkpoint()
        needed, free = 8 * checkpoint.weight_count, available_bytes()
        if is_checked and needed > free:
            raise ModelError(
                f"its conversion takes {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB "
                "are free",
                "free some memory",
            )
        if choice.is_plain:
            report(f"converting {original.title} to CTranslate2 {form}")
            convert_checkpoint(checkpoint, form, contents)
        else:
            convert_to_int8(checkpoint, form, choice, contents, original.title, report)

    origin = (*identity, converter_version(), *choice.cache_key_parts())
    key = cache.Key(original.title, "ctranslate2", choice.variant(form), form, origin)
    return cache.obtain(key, build, report)


def _prepare_int8_folder(original: Original, request: PrepareRequest, engine: str) -> PreparedModel:
    """Return a folder of int8 weights.

    The model's own folder is returned if it holds such weights, or if the engine does not run the
    model, which it then reports. A GGUF file is unpacked only if the int8 folder is not in the
    cache.
    """
    identity, own = original.identity(), original.own_folder()
    if own and is_int8_folder(own.config):
        return _int8_model(request, engine, own.folder, identity[-1], own.bytes_on_disk)
    entry = engine_entry(engine)
    if own and entry.refusal and entry.function(entry.refusal)(read_config(own.folder)):
        return replace(original.prepared(request.model, PLAIN), asked_engine=engine)
    choice = choose_method(request.method, original.title, identity, request.report)
    if own and not choice.is_plain:
        supported_methods(str(own.config["model_type"]), request.method)
    try:
        held = _obtain_int8_folder(original, identity, choice, engine)
    except CannotFoldError as error:
        if request.method != AUTO or choice.is_plain:
            raise
        request.report(f"{error}: its weights are rounded to nearest, which is less accurate")
        plain = QuantizationMethodChoice(PLAIN)
        held = _obtain_int8_folder(original, identity, plain, engine)
    return _int8_model(request, engine, held.folder, held.fingerprint, held.size_bytes)


def _obtain_int8_folder(
    original: Original, identity: tuple[str, ...], choice: QuantizationMethodChoice, engine: str
) -> cache.Entry:
    """Return the cached folder of int8 weights of a model, built if missing."""
    entry = engine_entry(engine)

    def build(contents: Path, _: Path) -> None:
        writer = entry.function(entry.int8_writer)
        checkpoint = original.checkpoint()
        write_packed_int8(checkpoint, choice, writer, contents, original.title, original.report)

    parts = choice.cache_key_parts()
    origin = (*identity, version("transformers"), f"int8-{INT8_VERSION}", *parts)
    key = cache.Key(original.title, "huggingface", choice.variant("packed-int8"), "int8", origin)
    return cache.obtain(key, build, original.report)


def _int8_model(
    request: PrepareRequest, engine: str, folder: Path, digest: str, size: int
) -> PreparedModel:
    return PreparedModel(
        name=request.model,
        kind=HUGGINGFACE,
        folder=folder,
        tokenizer_folder=folder,
        quantization="int8",
        fingerprint=digest,
        bytes_on_disk=size,
        quantization_method=read_quantization_method(folder),
        asked_engine=engine,
    )


def _prepare_ctranslate2_folder(
    model: str, folder: Path, engine: str, report: Report
) -> PreparedModel:
    """Return a user's own CTranslate2 folder after checking it."""
    from packhorse.models.ct2_spec import require_faithful_folder

    variables = ctranslate2_folder.read_variables(folder)
    ctranslate2_folder.require_readable(folder)
    require_faithful_folder(folder, variables)
    tokenizer = ctranslate2_folder.tokenizer_folder(folder)
    files = ctranslate2_folder.deciding_files(folder)
    size = sum((folder / name).stat().st_size for name in files)
    report_if_long(folder, files, report)
    return PreparedModel(
        name=model,
        kind=CTRANSLATE2,
        folder=folder,
        tokenizer_folder=tokenizer,
        quantization=ctranslate2_folder.stored_quantization(variables),
        fingerprint=fingerprint(file_digests(folder, files)),
        bytes_on_disk=size,
        quantization_method=read_quantization_method(folder),
        asked_engine=engine,
    )


def _check_names(quantization: str, device: str) -> None:
    if quantization not in QUANTIZATIONS:
        raise ConfigError(
            f"there is no quantization {quantization!r}",
            f"choose one of {', '.join(QUANTIZATIONS)}",
        )
    if device not in DEVICES:
        raise ConfigError(f"there is no device {device!r}", f"choose one of {', '.join(DEVICES)}")


def _check_method(request: PrepareRequest) -> None:
    form = resolve_quantization(request.quantization, request.device)
    if request.method not in (AUTO, PLAIN) and not form.startswith("int8"):
        raise ConfigError(
            f"the quantization method {request.method} is for int8, not for {form}",
            "add --quantization int8, or remove --quantization-method",
        )


def _check_formats(engine: str, quantization: str, source: Source | None = None) -> None:
    """Raise ConfigError if an engine does not run a format; with `source`, name one that does."""
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
