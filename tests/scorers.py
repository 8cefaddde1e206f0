"""Engines that score texts, loaded from a folder without preparing it."""

from __future__ import annotations

from pathlib import Path

from packhorse.evaluation.teacher_forcing import EngineLogProbs


def transformers_scorer(folder: Path, quantization: str = "float32") -> EngineLogProbs:
    from packhorse.engines.transformers.engine import TransformersEngine

    engine = TransformersEngine(
        folder, end_ids=(), max_context=256, quantization=quantization, device="cpu"
    )
    return EngineLogProbs(engine)


def ctranslate2_scorer(folder: Path, quantization: str = "auto") -> EngineLogProbs:
    from packhorse.engines.ctranslate2.engine import CTranslate2Engine

    engine = CTranslate2Engine(
        folder, end_ids=(), max_context=256, quantization=quantization, device="cpu", workers=1
    )
    return EngineLogProbs(engine)


def packed_scorer(folder: Path, quantization: str = "float32") -> EngineLogProbs:
    from packhorse.engines.packed import PackedEngine, read_architecture

    context = read_architecture(folder).config.max_position_embeddings
    engine = PackedEngine(
        folder, end_ids=(), max_context=context, quantization=quantization, threads=1
    )
    return EngineLogProbs(engine)
