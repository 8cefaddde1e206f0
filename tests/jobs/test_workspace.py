"""Outputs that cannot be written are refused before any row runs, and say why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import packhorse
from packhorse import EngineConfig, JobConfig, SamplingParams
from packhorse.errors import OutputError, PackhorseError
from packhorse.jobs.workspace import SQLITE_PATH_BYTES, Workspace


def job_into(folder: Path, output: Path) -> JobConfig:
    source = folder / "in.jsonl"
    source.write_text('{"id": 1, "prompt": "one"}\n{"id": 2, "prompt": "two"}\n')
    return JobConfig(
        model="tiny",
        input=str(source),
        output=output,
        engine=EngineConfig(engine="fake"),
        decoding=SamplingParams(max_new_tokens=2),
    )


def named(length: int) -> str:
    return "o" * (length - len(".jsonl")) + ".jsonl"


LONGEST_NAME = 255 - len(".manifest.json")


@pytest.mark.parametrize("length", [228, 229, LONGEST_NAME])
def test_a_long_output_name_works(tmp_path: Path, length: int) -> None:
    output = tmp_path / named(length)
    packhorse.run(job_into(tmp_path, output))
    assert len(output.read_text().splitlines()) == 2


@pytest.mark.parametrize("length", [LONGEST_NAME + 1, 245, 246, 255, 256, 257])
def test_a_name_too_long_for_the_files_beside_it_is_refused(tmp_path: Path, length: int) -> None:
    job = job_into(tmp_path, tmp_path / named(length))
    with pytest.raises(OutputError, match="File name too long") as refused:
        packhorse.run(job)
    assert "shorter name" in refused.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("length", [SQLITE_PATH_BYTES + 1, 4000, 4090, 4096, 5000])
def test_a_path_too_long_for_the_journal_is_refused(tmp_path: Path, length: int) -> None:
    """Longer ones than PATH_MAX among them, 4,096 bytes on Linux."""
    folder = tmp_path
    while len(os.fsencode(folder)) + 210 < length:
        folder /= "d" * 200
    rest = length - len(os.fsencode(folder)) - len("/o.jsonl.packhorse/journal.sqlite3")
    folder /= "d" * max(1, rest - 1)
    try:
        folder.mkdir(parents=True)
    except OSError:
        assert length > 4000
    with pytest.raises(PackhorseError):
        packhorse.run(job_into(tmp_path, folder / "o.jsonl"))
    assert not list(tmp_path.rglob("*.packhorse"))


@pytest.mark.parametrize("kind", ["other kind", "dangling link"])
@pytest.mark.parametrize("name", ["manifest", "folder", "journal", "lock", "spooled_input"])
def test_a_side_file_of_the_wrong_kind_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    output = tmp_path / "o.jsonl"
    path: Path = getattr(Workspace(output), name)
    path.parent.mkdir(exist_ok=True)
    if kind == "dangling link":
        path.symlink_to(tmp_path / "absent")
    elif name == "folder":
        path.write_text("")
    else:
        path.mkdir()
    with pytest.raises(OutputError, match=r"must be a (file|folder) for this output"):
        packhorse.run(job_into(tmp_path, output))
    assert not output.exists()


NOBODY = """
import pwd, sys
def unknown(user):
    raise KeyError(f"getpwuid(): uid not found: {user}")
pwd.getpwuid = unknown
from packhorse.cli import main
sys.exit(main())
"""


def test_a_user_without_home_and_passwd_entry_runs_the_fake_engine(tmp_path: Path) -> None:
    job = job_into(tmp_path, tmp_path / "o.jsonl")
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    command = ["run", "fake", job.input, "-o", str(job.output), "--engine", "fake"]
    done = subprocess.run(
        [sys.executable, "-c", NOBODY, *command],
        env=kept, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(Path(job.output).read_text().splitlines()) == 2


@pytest.fixture(params=["8k", "24k", "40k", "100k", "200k"])
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(folder)]
    if (
        sys.platform != "linux"
        or subprocess.run(mount, check=False, capture_output=True).returncode
    ):
        pytest.skip("only root mounts a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)  # noqa: S607


def test_a_disk_that_is_full_at_the_start_is_one_clear_line(
    small_disk: Path, tmp_path: Path
) -> None:
    job = job_into(tmp_path, small_disk / "o.jsonl")
    rows = [{"id": i, "prompt": f"{i} {'word ' * 40}"} for i in range(2000)]
    Path(job.input).write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["run", "fake", job.input, "-o", str(job.output), "--engine", "fake"]
    done = subprocess.run(
        [sys.executable, "-m", "packhorse", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stdout
    assert "the disk is full" in done.stderr or "No space left on device" in done.stderr
    assert "free some" in done.stderr
    assert "Traceback" not in done.stderr
