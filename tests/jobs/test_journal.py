from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from types import FrameType

import pytest

from packhorse.data import Completion, Failure, NumberId, Request, Timing, id_to_json
from packhorse.errors import InputError, JobChangedError, OutputError
from packhorse.jobs.journal import Journal
from packhorse.storage import sqlite_store


def request(index: int, key: str = "", id_: str | int = "") -> Request:
    return Request(index, id_ or f"r{index}", index + 1, "text", key=key or f"k{index}")


def answer(key: str, text: str = "hello") -> Completion:
    timing = Timing(submitted=1.0, finished=3.0, first_token=2.0)
    return Completion(0, "r0", key, text, (7, 40_000), "stop", 5, timing)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite3") as opened:
        yield opened


def test_pending_is_a_set_difference(journal: Journal) -> None:
    journal.register_rows([request(0), request(1), request(2)])
    journal.record(answer("k1"))
    assert list(journal.pending_positions()) == [0, 2]


def test_rows_edited_added_and_reordered_are_recognised_by_key(journal: Journal) -> None:
    journal.register_rows([request(0, "a"), request(1, "b"), request(2, "c")])
    for key in "abc":
        journal.record(answer(key, text=f"answer {key}"))
    journal.register_rows(
        [request(0, "c"), request(1, "B edited"), request(2, "a"), request(3, "new")]
    )
    assert list(journal.pending_positions()) == [1, 3]
    assert [record.text for record in journal.records()] == ["answer c", None, "answer a", None]


def test_a_record_keeps_what_was_generated(journal: Journal) -> None:
    journal.register_rows([request(0, "k", id_=17)])
    journal.record(answer("k"))
    (record,) = journal.records()
    assert (record.id, record.text, record.token_ids) == (17, "hello", (7, 40_000))
    assert (record.finish_reason, record.prompt_tokens, record.completion_tokens) == ("stop", 5, 2)


def test_counts_reconcile(journal: Journal) -> None:
    unreadable = Failure(1, "malformed_json", "line 2", "line-2", 2, "k1")
    journal.register_rows([request(0), unreadable, request(2), request(3)])
    journal.record(answer("k0"))
    journal.record(Failure(2, "prompt_too_long", "too long", "r2", 3, "k2"))
    counts = journal.counts()
    assert (counts.rows, counts.completed, counts.failed, counts.pending) == (4, 1, 2, 1)
    assert counts.failed_by_code == {"malformed_json": 1, "prompt_too_long": 1}


def test_failed_rows_can_be_made_pending_again(journal: Journal) -> None:
    journal.register_rows([request(0), request(1)])
    journal.record(answer("k0"))
    journal.record(Failure(1, "engine_error", "lightning", "r1", 2, "k1"))
    journal.delete_failures()
    assert list(journal.pending_positions()) == [1]


def test_duplicate_ids_name_both_lines_and_leave_the_old_list(journal: Journal) -> None:
    journal.register_rows([request(0)])
    with pytest.raises(InputError, match=r"lines 1 and 3 have the same id '7'"):
        journal.register_rows([request(0, id_=7), request(1), request(2, id_="7")])
    assert [record.id for record in journal.records()] == ["r0"]


def row_without_id(index: int, fallback: str) -> Request:
    return replace(request(index, id_=fallback), has_own_id=False)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([request(0, id_="line-2"), row_without_id(1, "line-2")], ["line-2", "line-2-2"]),
        ([row_without_id(0, "line-1"), request(1, id_="line-1")], ["line-1-2", "line-1"]),
        (
            [
                row_without_id(0, "row-1"),
                request(1, id_="row-1-2"),
                request(2, id_="row-1"),
                request(3, id_="row-1-3"),
            ],
            ["row-1-3-2", "row-1-2", "row-1", "row-1-3"],
        ),
        (
            [
                request(0, id_="line-2"),
                Failure(1, "malformed_json", "", "line-2", 2, "k1", has_own_id=False),
            ],
            ["line-2", "line-2-2"],
        ),
    ],
)
def test_a_row_without_an_id_clashes_with_no_other(
    journal: Journal, rows: list[Request | Failure], expected: list[str]
) -> None:
    journal.register_rows(rows)
    journal.register_rows(rows)
    assert [record.id for record in journal.records()] == expected
    assert journal.counts().rows == len(rows)


def test_rows_that_bring_one_id_are_duplicates_whatever_it_looks_like(journal: Journal) -> None:
    with pytest.raises(InputError, match="lines 1 and 3 have the same id 'line-1'"):
        journal.register_rows([request(0, id_="line-1"), row_without_id(1, "line-2"),
                        request(2, id_="line-1")])  # fmt: skip


@pytest.mark.parametrize("text", ["1.0", "-0", "1e3", "18446744073709551616"])
def test_numbers_that_are_ids_keep_their_text(journal: Journal, text: str) -> None:
    journal.register_rows([request(0, id_=NumberId(text))])
    (record,) = journal.records()
    assert id_to_json(record.id) == text
    with pytest.raises(InputError, match=f"the same id {text}"):
        journal.register_rows([request(0, id_=text), request(1, id_=NumberId(text))])


def test_other_settings_are_refused_and_shown(journal: Journal) -> None:
    journal.store_settings({"temperature": 0.0, "seed": None})
    journal.record(answer("k0"))
    journal.store_settings({"temperature": 0.0, "seed": None})
    with pytest.raises(JobChangedError, match=r"temperature was 0\.0, is 0\.7"):
        journal.store_settings({"temperature": 0.7, "seed": None})


def test_settings_without_results_bind_nothing(journal: Journal) -> None:
    journal.store_settings({"temperature": 0.0, "seed": None})
    journal.store_settings({"temperature": 0.7, "seed": None})
    assert journal.meta("settings") == {"temperature": 0.7, "seed": None}
    journal.record(Failure(0, "engine_error", "lightning", "r0", 1, "k0"))
    with pytest.raises(JobChangedError, match=r"temperature was 0\.7, is 0\.0"):
        journal.store_settings({"temperature": 0.0, "seed": None})


def test_results_survive_without_closing(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"
    first = Journal(path)
    first.register_rows([request(0)])
    first.record(answer("k0"))
    first.commit()
    with Journal(path) as second:
        assert second.counts().completed == 1
    first.close()


def wait_until(is_so: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not (so := is_so()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return so


def test_results_become_durable_without_another_call(journal: Journal, tmp_path: Path) -> None:
    """An engine may compute for minutes between two results."""
    journal.register_rows([request(index) for index in range(5)])
    for index in range(5):
        journal.record(answer(f"k{index}"))
    path = tmp_path / "journal.sqlite3"
    with Journal(path, read_only=True) as other:
        assert wait_until(lambda: other.counts().completed == 5)
    with closing(sqlite3.connect(path, timeout=0)) as writer:
        writer.execute("BEGIN IMMEDIATE")  # nobody keeps the write lock


def test_a_commit_while_rows_are_enlisted_makes_no_half_list(tmp_path: Path) -> None:
    """A second Ctrl-C commits and ends the process, wherever it is."""
    path = tmp_path / "journal.sqlite3"
    with Journal(path) as journal, Journal(path, read_only=True) as other:
        journal.register_rows([request(0), request(1)])
        journal.record(answer("k0"))

        def rows() -> Iterator[Request]:
            yield request(0, id_="new")
            journal.commit()
            assert [record.id for record in other.records()] == ["r0", "r1"]
            assert other.counts().completed == 1

        journal.register_rows(rows())
        assert [record.id for record in journal.records()] == ["new"]


def test_signal_handlers_and_regular_commits_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "COMMIT_SECONDS", 0.001)
    rows = 3000
    commits = 0
    with Journal(tmp_path / "journal.sqlite3") as journal:
        journal.register_rows(request(index) for index in range(rows))

        def commit(number: int, frame: FrameType | None) -> None:
            nonlocal commits
            journal.commit()
            commits += 1

        previous = signal.signal(signal.SIGVTALRM, commit)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.002, 0.002)
        try:
            for index in range(rows):
                journal.record(answer(f"k{index}"), {"number": index})
                if index % 500 == 0:
                    assert journal.counts().completed == index + 1
                    found = [record.note for record in journal.records() if record.text]
                    assert found == [{"number": place} for place in range(index + 1)]
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, previous)
    assert commits > 5
    with Journal(tmp_path / "journal.sqlite3", read_only=True) as journal:
        assert journal.counts().completed == rows


@contextmanager
def full_disk() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def record_and_commit(journal: Journal) -> None:
    journal.record(answer("k1"))
    journal.commit()


def record_until_it_is_refused(journal: Journal) -> None:
    """Only the journal's own thread commits."""
    for _ in range(1000):
        journal.record(answer("k1"))
        time.sleep(0.02)


WRITES: list[Callable[[Journal], None]] = [
    lambda journal: journal.register_rows([request(7)]),
    lambda journal: journal.set_meta("name", "value"),
    lambda journal: journal.store_settings({"seed": 1}),
    lambda journal: journal.delete_failures(),
    lambda journal: journal.add_session({"rows": 1}),
    record_and_commit,
    record_until_it_is_refused,
]


@pytest.mark.parametrize("write", WRITES)
def test_a_full_disk_is_one_clear_line(tmp_path: Path, write: Callable[[Journal], None]) -> None:
    path = tmp_path / "journal.sqlite3"
    journal = Journal(path)
    journal.register_rows([request(0), request(1)])
    journal.record(answer("k0"))
    journal.record(Failure(1, "engine_error", "lightning", "r1", 2, "k1"))
    journal.commit()
    with full_disk(), pytest.raises(OutputError, match="cannot be used"):
        write(journal)
    with pytest.raises(OutputError, match="cannot be used"):
        record_and_commit(journal)  # what was undone is not known: there is no way on
    with pytest.raises(OutputError, match="cannot be used"):
        journal.close()
    with Journal(path) as journal:
        assert [record.id for record in journal.records()] == ["r0", "r1"]
        assert (journal.counts().completed, journal.counts().failed) == (1, 1)


def test_a_damaged_journal_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"
    with Journal(path) as journal:
        journal.register_rows(request(index) for index in range(1000))
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(OutputError, match=r"sqlite3 is damaged: .*malformed"):
        Journal(path).counts()


def damage(path: Path, statement: str, *values: object) -> None:
    """What a bit that flips does, past the checks of SQLite itself."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(statement, values)


DAMAGED_ROWS = [
    "UPDATE results SET text = 'hellp' WHERE key = 'k1'",
    "UPDATE results SET text = CAST(x'68ff' AS TEXT) WHERE key = 'k1'",
    "UPDATE results SET text = NULL WHERE key = 'k1'",
    "UPDATE results SET token_ids = x'0700' WHERE key = 'k1'",
    "UPDATE results SET finish_reason = NULL WHERE key = 'k1'",
    "UPDATE results SET error_code = x'00' WHERE key = 'k1'",
    "UPDATE results SET note = '{\"number\": 2}' WHERE key = 'k1'",
    "UPDATE results SET note = '{\"num' WHERE key = 'k1'",
    "UPDATE results SET checksum = x'' WHERE key = 'k1'",
    "UPDATE results SET key = 'k7' WHERE key = 'k1'",
]


@pytest.mark.parametrize("statement", DAMAGED_ROWS)
def test_a_damaged_result_is_not_exported_and_computed_again(
    tmp_path: Path, statement: str
) -> None:
    path = tmp_path / "journal.sqlite3"
    with Journal(path) as journal:
        journal.register_rows([request(0), request(1), request(2)])
        for key in ("k0", "k1", "k2"):
            journal.record(answer(key), {"number": 1})
        journal.add_session({"rows": 3})
    damage(path, statement)
    if "SET key" not in statement:  # a result that belongs to no row is no result of one
        with (
            Journal(path, read_only=True) as journal,
            pytest.raises(OutputError, match=r"is damaged in 1 of 3 rows: 'r1'"),
        ):
            list(journal.records())
    with (
        Journal(path, read_only=True) as journal,
        pytest.raises(OutputError, match="is damaged: 1 of 3 stored results"),
    ):
        journal.verify()
    with Journal(path) as journal:
        assert journal.discard_damaged() == 1
        assert list(journal.pending_positions()) == [1]
        journal.record(answer("k1"), {"number": 1})
        assert journal.discard_damaged() == 0
        journal.verify()
        assert [record.note for record in journal.records()] == [{"number": 1}] * 3
        assert journal.sessions() == [{"rows": 3}]


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE rows SET id_json = '\"r9\"' WHERE position = 1", "row 2"),
        ("UPDATE rows SET id_json = '\"r' WHERE position = 1", "row 2"),
        ("UPDATE rows SET line = NULL WHERE position = 1", "row 2"),
        ("DELETE FROM rows WHERE position = 1", "1 of 2 rows are found"),
        ("UPDATE meta SET value = '3' WHERE name = 'rows'", "its rows cannot be trusted"),
        ("UPDATE meta SET value = 'x' WHERE name = 'format'", "does not say its format"),
        ("DROP TABLE results", "no such table"),
    ],
)
def test_a_damaged_list_of_rows_is_one_clear_line(
    tmp_path: Path, statement: str, said: str
) -> None:
    path = tmp_path / "journal.sqlite3"
    with Journal(path) as journal:
        journal.register_rows([request(0), request(1)])
    damage(path, statement)
    with pytest.raises(OutputError, match=said) as raised, Journal(path, read_only=True) as journal:
        list(journal.records())
    assert "is damaged" in str(raised.value)


def test_results_that_cannot_be_found_by_their_key_are_computed_again(tmp_path: Path) -> None:
    """Two pages that changed places: every row is whole, but not where it is looked for."""
    path = tmp_path / "journal.sqlite3"
    keys = [f"k{index:04}" for index in range(2000)]
    with Journal(path) as journal:
        journal.register_rows(request(index, key) for index, key in enumerate(keys))
        for key in keys:
            journal.record(answer(key, text=f"answer {key}"))
    content = path.read_bytes()
    pages = [content[start : start + 4096] for start in range(0, len(content), 4096)]
    leaves = [n for n, page in enumerate(pages) if page[0] == 10 and page.count(b"answer k") > 9]
    first, second = leaves[1], leaves[-2]
    pages[first], pages[second] = pages[second], pages[first]
    path.write_bytes(b"".join(pages))
    with Journal(path) as journal:
        journal.discard_damaged()
        for position in journal.pending_positions():
            journal.record(answer(keys[position], text=f"answer {keys[position]}"))
        assert [record.text for record in journal.records()] == [f"answer {key}" for key in keys]


@pytest.mark.parametrize("seed", range(30))
def test_any_damage_is_one_clear_line_or_none(tmp_path: Path, seed: int) -> None:
    """Bits, pages, zeroes, a cut: what is exported is what was recorded."""
    path = tmp_path / "journal.sqlite3"
    with Journal(path) as journal:
        journal.register_rows(request(index) for index in range(60))
        for index in range(0, 60, 2):
            journal.record(answer(f"k{index}", text=f"answer {index} " * 20), {"number": index})
    random = Random(seed)
    content = bytearray(path.read_bytes())
    where = random.randrange(len(content))
    match seed % 3:
        case 0:
            content[where] ^= 1 << random.randrange(8)
        case 1:
            content[where : where + 64] = random.randbytes(min(64, len(content) - where))
        case _:
            del content[where:]
    path.write_bytes(content)
    try:
        with Journal(path, read_only=True) as journal:
            journal.counts()
            journal.meta("rows")
            records = list(journal.records())
    except OutputError:
        return
    assert [record.id for record in records] == [f"r{index}" for index in range(60)]
    for index, record in enumerate(records):
        assert record.text in (None, f"answer {index} " * 20)


def test_only_its_owner_reads_a_journal(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with Journal(tmp_path / "journal.sqlite3") as journal:
            journal.register_rows([request(0)])
            modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
            names = {path.name for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {0o600}
    assert names >= {"journal.sqlite3", "journal.sqlite3-wal"}


def begun(folder: Path, *, is_killed: bool) -> Path:
    folder.mkdir()
    path = folder / "journal.sqlite3"
    with Journal(path) as journal:
        journal.register_rows([request(0), request(1)])
        journal.record(answer("k0"))
        journal.commit()
        if is_killed:
            copy = folder.with_name("copy")
            shutil.copytree(folder, copy)
    if is_killed:
        shutil.rmtree(folder)
        copy.rename(folder)
    return path


READING = """
import sys
from pathlib import Path
from packhorse.jobs.journal import Journal
with Journal(Path(sys.argv[1]), read_only=True) as journal:
    print(journal.counts().completed, len(list(journal.records())))
"""


@pytest.mark.parametrize("left_behind", ["", "-wal and -shm", "-wal"])
def test_a_journal_that_cannot_be_written_is_read(tmp_path: Path, left_behind: str) -> None:
    """Of read-only media: what a run that ended wrote, and what a killed one left behind."""
    path = begun(tmp_path / "folder", is_killed=bool(left_behind))
    if left_behind == "-wal":
        path.with_name("journal.sqlite3-shm").unlink()
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    command = [sys.executable, "-c", READING, str(path)]
    for each in (*path.parent.iterdir(), path.parent):
        each.chmod(0o555 if each.is_dir() else 0o444)
    if os.geteuid() == 0:  # for whom permissions do not count
        base = Path(tempfile.gettempdir())
        for parent in path.parent.parents:
            if parent.is_relative_to(base) and parent != base:
                parent.chmod(0o755)
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv")
        command = ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", *command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        path.parent.chmod(0o755)
    assert done.stdout.split() == ["1", "2"], done.stderr
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before


def test_sessions_are_kept_in_order(journal: Journal) -> None:
    journal.add_session({"rows": 1})
    journal.add_session({"rows": 2})
    assert journal.sessions() == [{"rows": 1}, {"rows": 2}]


def test_a_missing_journal_is_not_created_by_reading(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no journal"):
        Journal(tmp_path / "absent.sqlite3", read_only=True)
    assert not (tmp_path / "absent.sqlite3").exists()


def test_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"
    path.write_bytes(b"not a database, but long enough to be looked at " * 30)
    with pytest.raises(OutputError, match="is damaged: file is not a database"):
        Journal(path)


def test_a_journal_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"
    Journal(path).close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE meta SET value = '99' WHERE name = 'format'")
    database.close()
    with pytest.raises(OutputError, match="format 99"):
        Journal(path)


def test_many_may_open_a_new_journal_at_once(tmp_path: Path) -> None:
    """`packhorse status` may look at a job in the moment that it begins."""

    def opened(path: Path) -> int:
        with Journal(path) as journal:
            return journal.counts().rows

    with ThreadPoolExecutor(8) as threads:
        for number in range(20):
            assert list(threads.map(opened, [tmp_path / f"{number}.sqlite3"] * 8)) == [0] * 8
