"""A process forked after a model was loaded gets an error on every engine, and ends."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import packhorse
from packhorse.config import EngineConfig
from packhorse.data import Completion, Failure
from packhorse.errors import EngineError
from packhorse.inference.model import Model

SECONDS = 60


@pytest.fixture(params=["transformers", "ctranslate2", "packed", "fake"])
def model(
    request: pytest.FixtureRequest, built: dict[str, Path], tmp_path: Path
) -> Iterator[Model]:
    engine = EngineConfig(engine=request.param, device="cpu", threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACKHORSE_HOME", str(tmp_path / "home"))
        with packhorse.load(str(built["llama"]), engine=engine) as loaded:
            yield loaded


def in_fork(use: Callable[[], Any]) -> str:
    """Return what `use` raises in a forked process; "" for nothing."""

    def child(sender: Any) -> None:
        try:
            use()
        except EngineError as error:
            sender.send(f"{error}: {error.hint}")
        else:
            sender.send("")

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(sender,))
    process.start()
    try:
        assert receiver.poll(SECONDS), "the child hangs"
        found = str(receiver.recv())
        process.join(SECONDS)
        assert process.exitcode == 0
        return found
    finally:
        process.kill()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_to_load_the_model_itself(model: Model) -> None:
    expected = list(model.generate(["one", "two"], max_new_tokens=4))
    running = model.generate(["three"] * 50, max_new_tokens=8)
    next(running)
    uses: list[Callable[[], Any]] = [
        lambda: list(model.generate(["one"], max_new_tokens=4)),
        lambda: list(model.score(["one"], [" two"])),
        lambda: next(running),
    ]
    for use in uses:
        message = in_fork(use)
        assert "was loaded in process" in message
        assert "load it in this process" in message
    assert in_fork(model.close) == in_fork(running.close) == ""  # type: ignore[attr-defined]
    assert len(list(running)) == 49
    again = list(model.generate(["one", "two"], max_new_tokens=4))
    assert texts(again) == texts(expected)


def texts(outcomes: list[Completion | Failure]) -> dict[int, str]:
    return {each.index: each.text for each in outcomes if isinstance(each, Completion)}
