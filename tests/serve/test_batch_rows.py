"""Which rows of batches share the engine, and which are tried again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from in_process import running, until
from packhorse.engines.fake import DELAY_VARIABLE
from packhorse.serve.batch_rows import SharedExclusiveLock


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_company() -> None:
    """Rows that are to be alone come one by one, after those that share the engine and before those
    that want to; one that gives up holds up nobody."""
    company = SharedExclusiveLock()
    inside: set[str] = set()
    may_leave = {name: asyncio.Event() for name in ("a", "b", "lone", "other", "late")}

    async def row(name: str, *, alone: bool) -> None:
        async with company.exclusive() if alone else company.shared():
            inside.add(name)
            await may_leave[name].wait()
            inside.remove(name)

    async def test() -> None:
        tasks = {name: asyncio.create_task(row(name, alone=False)) for name in ("a", "b")}
        await settled()
        assert inside == {"a", "b"}
        for name in ("lone", "other"):
            tasks[name] = asyncio.create_task(row(name, alone=True))
        await settled()
        tasks["late"] = asyncio.create_task(row("late", alone=False))
        may_leave["a"].set()
        await settled()
        assert inside == {"b"}
        may_leave["b"].set()
        await settled()
        assert inside == {"lone"}
        quitter = asyncio.create_task(company.exclusive().__aenter__())
        await settled()
        quitter.cancel()
        may_leave["lone"].set()
        await settled()
        assert inside == {"other"}
        may_leave["other"].set()
        await settled()
        assert inside == {"late"}
        may_leave["late"].set()
        await asyncio.gather(*tasks.values())

    asyncio.run(asyncio.wait_for(test(), 10))


def test_rows_that_never_ran_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are turned away while they wait, as when a server ends."""
    monkeypatch.setenv(DELAY_VARIABLE, "0.005")

    async def test() -> None:
        async with running(tmp_path) as server:
            rows = [{"id": number, "prompt": f"row {number}"} for number in range(100)]
            identifier = await server.begun(rows, tmp_path)
            await until(lambda: server.document(identifier)["request_counts"]["completed"] >= 10)
            supervisor = server.batches.service.supervisor
            assert not await supervisor.drain(0.0, asyncio.Event())
            await asyncio.sleep(0.1)
            supervisor.state = "ready"
            document = await server.ended(identifier)
            assert document["request_counts"] == {"total": 100, "completed": 100, "failed": 0}

    asyncio.run(asyncio.wait_for(test(), 60))
