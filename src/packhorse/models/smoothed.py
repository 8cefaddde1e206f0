"""Checkpoints that lose little to int8, for engines that read Hugging Face folders."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path

from packhorse.models import cache
from packhorse.models.original import find_original
from packhorse.models.prepared import PreparedModel, Report
from packhorse.models.quantized import method_of, way_for, write_folded
from packhorse.quantization.methods import AUTO, PLAIN, require_known

_warn: Report = logging.getLogger("packhorse.models").warning


def smoothed_checkpoint(
    model: str,
    *,
    quantization_method: str = AUTO,
    allow_pickle: bool = False,
    report: Report = _warn,
) -> PreparedModel:
    """A Hugging Face folder that computes what `model` computes, in float32, and loses less to
    int8 with one scale a row and a column: rotated and smoothed as `prepare` does it for
    ctranslate2 (by what `packhorse quantize` found, where it ran), its weights not rounded.

    It is cached. Its head has numbers of its own (`tie_word_embeddings` is false), and after a
    rotation the gain of every norm is 1 where nothing was smoothed. transformers loads it like any
    other. Where the method is plain, it is the checkpoint itself.

    Raises ModelError for a model that cannot be had or folded (another family, no room in
    memory), ConfigError for a method that its family cannot have.
    """
    require_known(quantization_method)
    original = find_original(model, allow_pickle=allow_pickle, report=report)
    identity = original.identity()
    way = way_for(quantization_method, original.title, identity, report)
    if way.is_plain:
        return original.prepared(model, PLAIN)

    def build(contents: Path, _: Path) -> None:
        write_folded(original.checkpoint(), way, contents, original.title, report)

    decides = (*identity, version("transformers"), *way.decides())
    key = cache.Key(original.title, "huggingface", way.variant("hf"), "float32", decides)
    entry = cache.obtain(key, build, report)
    return PreparedModel(
        name=model,
        kind="huggingface",
        folder=entry.folder,
        tokenizer_folder=entry.folder,
        quantization="float32",
        fingerprint=entry.fingerprint,
        bytes_on_disk=entry.size_bytes,
        quantization_method=method_of(entry.folder),
    )
