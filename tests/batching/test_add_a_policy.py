"""docs/how-to/add-a-batching-policy.md, executed."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import test_policies

import packhorse
from docs_code import code_blocks
from packhorse.batching import policies
from packhorse.batching.sizes import Limits, RowSize
from packhorse.config import BatchingConfig, EngineConfig


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The policy of the page, registered; its row of the truth table."""
    function, registration, row = code_blocks("how-to/add-a-batching-policy.md", "python")
    namespace = {**vars(policies), "POLICIES": {}}
    exec(function + registration, namespace)  # noqa: S102
    for name, policy in namespace["POLICIES"].items():
        monkeypatch.setitem(policies.POLICIES, name, policy)
    return ast.literal_eval(row)


def test_the_policy_of_the_page(row: tuple[Any, ...]) -> None:
    test_policies.test_batches(*row)
    test_policies.test_laws(policy=row[0])
    alone = policies.POLICIES[row[0]]([RowSize(5, 4), RowSize(99, 4), RowSize(5, 4)], Limits(9, 20))
    assert alone == [[0, 2], [1]]


def test_a_model_runs_with_it(row: tuple[Any, ...]) -> None:
    engine, batching = EngineConfig("fake"), BatchingConfig(policy=row[0])
    with packhorse.load("any", engine=engine, batching=batching) as model:
        assert len(list(model.generate(["one", "two", "three"]))) == 3
