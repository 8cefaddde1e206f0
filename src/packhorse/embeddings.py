"""Compute sentence embeddings from a sentence-transformers folder, with plain transformers.

Supported are Transformer + Pooling (mean or cls) [+ Normalize], which nearly every published
sentence-embedding model consists of; anything else is refused, never approximated. Embeddings are
always scaled to length 1, so that a dot product is a cosine similarity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from packhorse.errors import ModelError, model_errors
from packhorse.models.checkpoint import require_sound_folder
from packhorse.models.quiet import quiet_transformers
from packhorse.models.resolved_config import load_config
from packhorse.profiling.cores import limit_torch_threads
from packhorse.storage.json_files import decode, read_json

if TYPE_CHECKING:
    import torch

BATCH_ROWS = 32
_HINT = "give a sentence-transformers folder made of Transformer, Pooling (mean or cls), Normalize"
_ACCEPTED = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])


@dataclass(frozen=True, slots=True)
class Layout:
    """Settings of a sentence-transformers folder.

    Attributes:
        transformer: Folder of weights and tokenizer.
        pooling: "mean" or "cls".
        max_tokens: Maximum length of a text; longer texts are truncated (tokens). None leaves it to
            the tokenizer and the model.
        lowercase: Convert texts to lower case.
        prefix: Text put before each text.
    """

    transformer: Path
    pooling: str
    max_tokens: int | None
    lowercase: bool
    prefix: str


@dataclass(frozen=True, slots=True)
class _Module:
    """An entry of modules.json."""

    type: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class _Settings:
    """The settings read from sentence_bert_config.json."""

    max_seq_length: int | None = None
    do_lower_case: bool | None = None


@dataclass(frozen=True, slots=True)
class _Prompts:
    """The settings read from config_sentence_transformers.json."""

    prompts: dict[str, str] | None = None
    default_prompt_name: str | None = None


def read_layout(folder: Path) -> Layout:
    """Return the settings of a sentence-transformers folder; ModelError for another folder."""
    modules = _read(folder / "modules.json", list[_Module], required=True)
    kinds = [module.type.rpartition(".")[2] for module in modules]
    if kinds not in _ACCEPTED:
        found = " + ".join(kinds) or "no modules"
        raise ModelError(f"cannot embed with {folder}: it is made of {found}", _HINT)
    if any(".." in Path(each.path).parts or Path(each.path).is_absolute() for each in modules):
        raise ModelError(f"{folder / 'modules.json'} names a folder outside its own", _HINT)
    paths = [folder / module.path for module in modules]
    settings = _read(paths[0] / "sentence_bert_config.json", _Settings)
    if settings.max_seq_length is not None and settings.max_seq_length < 1:
        raise ModelError(f"{paths[0]} cuts texts at {settings.max_seq_length} tokens", _HINT)
    prompts = _read(folder / "config_sentence_transformers.json", _Prompts)
    prefix = (prompts.prompts or {}).get(prompts.default_prompt_name or "", "")
    return Layout(
        transformer=paths[0],
        pooling=_pooling(paths[1] / "config.json", bool(prefix)),
        max_tokens=settings.max_seq_length,
        lowercase=bool(settings.do_lower_case),
        prefix=prefix,
    )


class SentenceEncoder:
    """A loaded sentence-embedding model on the CPU, float32."""

    def __init__(self, folder: Path) -> None:
        """Load a folder; ModelError if it is of another kind or cannot be loaded."""
        from transformers import AutoModel, AutoTokenizer

        self.layout = read_layout(folder)
        options = {"local_files_only": True, "trust_remote_code": False}
        require_sound_folder(self.layout.transformer)
        limit_torch_threads()
        with model_errors(f"cannot load the sentence model {folder}", _HINT), quiet_transformers():
            self._tokenizer: Any = AutoTokenizer.from_pretrained(self.layout.transformer, **options)
            self._model: Any = AutoModel.from_pretrained(
                self.layout.transformer,
                config=load_config(self.layout.transformer),
                use_safetensors=True,
                dtype="float32",
                **options,
            )

    @property
    def dimensions(self) -> int:
        return int(self._model.config.hidden_size)

    @property
    def max_tokens(self) -> int:
        """Maximum length of a text (tokens), special tokens included; the rest is truncated."""
        limits = (
            self.layout.max_tokens,
            self._tokenizer.model_max_length,
            getattr(self._model.config, "max_position_embeddings", None),
        )
        return min(int(limit) for limit in limits if limit)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return embeddings of length 1, [texts, dimensions], in the order of `texts`.

        Texts are batched by length, longest first. An embedding does not depend on the other texts
        of its batch beyond float32 rounding.
        """
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        if not texts:
            return vectors
        ids = self._token_ids(texts, truncation=True, max_length=self.max_tokens)
        for rows in batches_by_length(list(map(len, ids))):
            vectors[rows] = self.forward([ids[row] for row in rows])
        return vectors

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, special tokens included, never truncated."""
        return self._token_ids(texts, truncation=False)

    def _token_ids(self, texts: Sequence[str], **options: Any) -> list[list[int]]:
        prepared = [self.layout.prefix + text for text in texts]
        if self.layout.lowercase:
            prepared = [text.lower() for text in prepared]
        found: list[list[int]] = self._tokenizer(prepared, verbose=False, **options)["input_ids"]
        return found

    def forward(self, rows: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Return embeddings of length 1 of one batch, [rows, dimensions].

        Args:
            rows: Token ids, at most `max_tokens` each.
        """
        import torch
        from torch.nn.functional import normalize

        batch = self._tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
        with torch.inference_mode():
            states: torch.Tensor = self._model(**batch).last_hidden_state
            if self.layout.pooling == "cls":
                pooled = states[:, 0]
            else:
                mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
                pooled = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
            result: npt.NDArray[np.float32] = normalize(pooled, dim=-1).numpy()
        return result


def batches_by_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield positions of texts of near-equal length, BATCH_ROWS at a time, longest first."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    for start in range(0, len(order), BATCH_ROWS):
        yield order[start : start + BATCH_ROWS]


def embed(texts: Sequence[str], folder: Path) -> npt.NDArray[np.float32]:
    """Return embeddings of length 1, [texts, dimensions] in float32, with the model in `folder`.

    Source: Reimers and Gurevych 2019 (Sentence-BERT), mean pooling over the tokens of a text.
    """
    return SentenceEncoder(folder).embed(texts)


def _pooling(path: Path, prefixed: bool) -> str:
    """Return "mean" or "cls" by the settings of a Pooling module: a name, or one flag per mode."""
    settings = _read(path, dict[str, Any], required=True)
    named = settings.get("pooling_mode")
    flags = [
        key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for key, on in settings.items()
        if key.startswith("pooling_mode_") and on is True
    ]
    modes = [named] if isinstance(named, str) else flags
    if modes not in (["mean"], ["cls"]):
        raise ModelError(f"{path} asks for pooling by {modes or 'nothing'}", _HINT)
    if prefixed and settings.get("include_prompt") is False:
        raise ModelError(f"{path} leaves the prompt out of the pooling", _HINT)
    return str(modes[0])


def _read(path: Path, kind: Any, *, required: bool = False) -> Any:
    """Read a JSON file as `kind`; a missing file that is not required is `kind()`."""
    if not path.exists():
        if required:
            raise ModelError(f"{path} is missing: no sentence-transformers folder", _HINT)
        return kind()
    try:
        return decode(kind, read_json(path, hint=_HINT), path.name)
    except ValueError as error:
        raise ModelError(f"{path} is damaged: {error}", _HINT) from error
