"""docs/how-to/add-a-model-family.md, executed."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from decoder_families import Family
from decoder_models import Judge, build, prompts, token_ids_of
from docs_code import code_blocks
from packhorse.data import Batch, EngineOutput, Prompt, SamplingParams
from packhorse.decoders import describers, families
from packhorse.engines.packed import PackedEngine


def test_the_family_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    function, registration, row = code_blocks("how-to/add-a-model-family.md", "python")
    namespace: dict[str, Any] = {**vars(describers), **vars(families), "FAMILIES": {}}
    exec(function + registration, namespace)  # noqa: S102
    monkeypatch.setattr(families, "FAMILIES", namespace["FAMILIES"])
    ((_, (model_type, settings)),) = ast.literal_eval(row).items()
    build(Family(model_type, settings), tmp_path)
    (ids, *_) = token_ids_of(tmp_path, prompts())
    engine = PackedEngine(tmp_path, end_ids=(), max_context=256, threads=1, max_num_seqs=2)
    batch = Batch((Prompt(0, tuple(ids), SamplingParams(max_new_tokens=10)),))
    (result,) = engine.run(iter([batch]))
    engine.close()
    assert isinstance(result, EngineOutput)
    expected = Judge(tmp_path).expected(ids).token_ids
    assert result.token_ids[: len(expected)] == expected
