"""Sentence vectors from an ordinary sentence-transformers folder, with plain transformers.

Understood are Transformer + Pooling (mean or cls) [+ Normalize], which is what nearly every
published sentence-embedding model is; anything else is refused, never approximated. Vectors are
always scaled to length 1, so that a dot product is a cosine.
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
from packhorse.models.loading import load_config
from packhorse.models.quiet import quiet_transformers
from packhorse.profiling.cores import limit_torch_threads
from packhorse.storage.json_files import decode, read_json

if TYPE_CHECKING:
    import torch

BATCH_ROWS = 32
_HINT = "give a sentence-transformers folder made of Transformer, Pooling (mean or cls), Normalize"
_ACCEPTED = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])


@dataclass(frozen=True, slots=True)
class Layout:
    """What a sentence-transformers folder says about itself.

    transformer: folder of weights and tokenizer. pooling: "mean" or "cls". max_tokens: longer
    texts are cut; None leaves it to the tokenizer and the model. prefix: put before each text.
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
    """What is read of sentence_bert_config.json."""

    max_seq_length: int | None = None
    do_lower_case: bool | None = None


@dataclass(frozen=True, slots=True)
class _Prompts:
    """What is read of config_sentence_transformers.json."""

    prompts: dict[str, str] | None = None
    default_prompt_name: str | None = None


def read_layout(folder: Path) -> Layout:
    """The layout of a folder; ModelError for any other kind of folder."""
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
        """ModelError where the folder is of another kind or cannot be loaded."""
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
        """Tokens of a text that count, special tokens included; what is longer is cut."""
        limits = (
            self.layout.max_tokens,
            self._tokenizer.model_max_length,
            getattr(self._model.config, "max_position_embeddings", None),
        )
        return min(int(limit) for limit in limits if limit)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors of length 1, shape (texts, dimensions), in the order of `texts`.

        Texts go through in batches of near-equal length, longest first; a text's vector does not
        depend on its batch-mates beyond float32 rounding.
        """
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        if not texts:
            return vectors
        ids = self._token_ids(texts, truncation=True, max_length=self.max_tokens)
        for rows in batches_by_length(list(map(len, ids))):
            vectors[rows] = self.forward([ids[row] for row in rows])
        return vectors

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, never cut."""
        return self._token_ids(texts, truncation=False)

    def _token_ids(self, texts: Sequence[str], **options: Any) -> list[list[int]]:
        prepared = [self.layout.prefix + text for text in texts]
        if self.layout.lowercase:
            prepared = [text.lower() for text in prepared]
        found: list[list[int]] = self._tokenizer(prepared, verbose=False, **options)["input_ids"]
        return found

    def forward(self, rows: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Vectors of length 1 of one batch. rows: token ids, at most `max_tokens` each."""
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
    """Places of texts of near-equal length, BATCH_ROWS at a time, longest first."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    for start in range(0, len(order), BATCH_ROWS):
        yield order[start : start + BATCH_ROWS]


def embed(texts: Sequence[str], folder: Path) -> npt.NDArray[np.float32]:
    """`SentenceEncoder(folder).embed(texts)`: unit vectors (texts, d), float32.

    Source: Reimers and Gurevych 2019 (Sentence-BERT), mean pooling over the tokens of a text.
    """
    return SentenceEncoder(folder).embed(texts)


def _pooling(path: Path, prefixed: bool) -> str:
    """ "mean" or "cls" from a Pooling module's settings: flags a mode, or one mode by name."""
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
    """A JSON file as `kind`; one that is missing and not required is `kind()`."""
    if not path.exists():
        if required:
            raise ModelError(f"{path} is missing: no sentence-transformers folder", _HINT)
        return kind()
    try:
        return decode(kind, read_json(path, hint=_HINT), path.name)
    except ValueError as error:
        raise ModelError(f"{path} is damaged: {error}", _HINT) from error
