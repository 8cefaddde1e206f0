"""Reference logits: logits of a short text by which a converted model is checked.

A converter silently drops what it does not know: experts, scales, the epsilon of a norm. Logits
reveal it, whatever was dropped. They are stored beside the converted model, so that an engine can
compare its own with them on every load:

    reference_logits.npz    token_ids [tokens], columns [some of the vocabulary],
                            logits [tokens, columns] float32, totals [tokens] log of the sum of exp

An evenly spread part of the vocabulary is stored; every logit depends on all layers.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from packhorse.errors import ModelError, first_line
from packhorse.models.cache import REFERENCE_LOGITS

if TYPE_CHECKING:
    from packhorse.models.checkpoint import Checkpoint

FILE = REFERENCE_LOGITS
_HEAD_ROWS = 8192
TEXT_TOKENS = 24
MOST_TOKENS = 96
"""Maximum length of a text that must be longer than a small attention window (tokens)."""
KEPT_COLUMNS = 1024
_SPREAD = (0.02, 0.9)
"""Part of the vocabulary that the text is drawn from: special tokens are at its ends."""
_LOWEST_SPREAD = 1e-6
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Allowed difference from a reference, as a share of the reference's standard deviation.

    Attributes:
        largest: Difference of any logit.
        typical: Root mean square of all differences.
    """

    largest: float
    typical: float


EXACT = Tolerance(largest=2e-3, typical=5e-4)
"""For float32: rounding errors of 30 layers are a tenth of this."""


@dataclass(frozen=True, slots=True)
class ReferenceLogits:
    """Logits of a text in part of the vocabulary.

    Attributes:
        token_ids: The text, [tokens].
        columns: Token ids whose logits are stored, [columns].
        logits: [tokens, columns] in float32.
        totals: Logarithm of the sum of exp over the whole vocabulary, [tokens].
    """

    token_ids: tuple[int, ...]
    columns: NDArray[np.int64]
    logits: Floats
    totals: Floats

    @classmethod
    def of(cls, token_ids: tuple[int, ...], logits: Floats) -> ReferenceLogits:
        """Return the part of `logits` [tokens, vocabulary] to store."""
        vocabulary = logits.shape[1]
        columns = np.unique(np.linspace(0, vocabulary - 1, KEPT_COLUMNS).astype(np.int64))
        return cls(token_ids, columns, logits[:, columns], log_sum_exp(logits))

    def save(self, folder: Path) -> None:
        np.savez(
            folder / FILE,
            token_ids=np.array(self.token_ids, np.int64),
            columns=self.columns,
            logits=self.logits,
            totals=self.totals,
        )

    def is_near(self, logits: Floats, first: int, tolerance: Tolerance) -> bool:
        """Return whether logits [tokens, vocabulary] of the text from token `first` on agree."""
        some = slice(first, first + len(logits))
        if int(self.columns[-1]) >= logits.shape[1]:
            return False
        given = np.column_stack([logits[:, self.columns], log_sum_exp(logits)])
        wanted = np.column_stack([self.logits[some], self.totals[some]])
        return are_near(given, wanted, tolerance)


def read_reference(folder: Path) -> ReferenceLogits | None:
    """Return the logits stored beside a model, None if there are none; ModelError if damaged."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            ids = tuple(int(token) for token in held["token_ids"])
            columns, logits, totals = held["columns"], held["logits"], held["totals"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{path} is damaged: {first_line(error)}", "convert the model again, or remove the file"
        ) from error
    if logits.shape != (len(ids), len(columns)) or totals.shape != (len(ids),) or not len(columns):
        raise ModelError(f"{path} is damaged", "convert the model again, or remove the file")
    return ReferenceLogits(ids, columns, logits, totals)


def are_near(given: Floats, wanted: Floats, tolerance: Tolerance) -> bool:
    """Return whether two sets of logits [tokens, columns] are equal up to rounding."""
    differences = np.abs(given - wanted)
    spread = max(float(wanted.std()), _LOWEST_SPREAD * float(np.abs(wanted).max()), 1e-12)
    typical = float(np.sqrt(np.square(differences).mean()))
    return bool(
        differences.max() <= tolerance.largest * spread and typical <= tolerance.typical * spread
    )


def log_sum_exp(logits: Floats) -> Floats:
    """Return the log of the sum of exp over the vocabulary, [tokens], of [tokens, vocabulary]."""
    largest = logits.max(axis=1)
    sums = np.exp(logits - largest[:, None], dtype=np.float64).sum(axis=1)
    return np.asarray(largest + np.log(sums), np.float32)


def check_text(vocabulary: int, context: int, window: int = 0) -> tuple[int, ...]:
    """Return token ids spread over the vocabulary, more than `window` of them if that is small.

    Args:
        vocabulary: Size of the vocabulary.
        context: Maximum length of a text (tokens).
        window: Attention window (tokens), 0 for full attention.
    """
    count = min(max(TEXT_TOKENS, 2 * window) if 2 * window <= MOST_TOKENS else TEXT_TOKENS, context)
    low, high = int(_SPREAD[0] * vocabulary), max(1, int(_SPREAD[1] * vocabulary))
    chosen = np.random.default_rng(0).integers(min(low, high - 1), high, count)
    return tuple(chosen.tolist())


def stream_reference_logits(checkpoint: Checkpoint) -> ReferenceLogits | None:
    """Compute the reference logits of a checkpoint without loading it as a whole.

    transformers' model is built without memory; each module gets its weights in float32 when it
    runs, and gives them back. Embeddings and head are read in parts.

    Returns:
        The logits; None if they are not finite, or if the checkpoint is pickled or its model cannot
        be built so.

    Raises:
        ModelError: transformers cannot run the model, or weights are missing.
    """
    import torch
    import transformers

    from packhorse.models.quiet import quiet_transformers
    from packhorse.models.resolved_config import load_config
    from packhorse.models.safetensors_data import SafetensorsReader

    if checkpoint.pickled:
        return None
    config = load_config(checkpoint.folder)
    loader: Any = transformers.AutoModelForCausalLM
    with quiet_transformers(), torch.device("meta"):
        model = loader.from_config(config, trust_remote_code=False).eval()
    body = model.base_model
    for name, module in list(body.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            if not name.endswith("rotary_emb"):
                return None
            body.set_submodule(name, type(module)(config))
    readers = [SafetensorsReader(checkpoint.folder / name) for name in checkpoint.weights]
    held = {name: reader for reader in readers for name in reader.entries}

    def read(name: str, rows: slice = slice(None)) -> Any:
        for full in (name, f"{model.base_model_prefix}.{name}"):
            if full in held:
                return held[full].read(full, rows)
        raise ModelError(f"{checkpoint.folder} lacks the weights {name}", "copy it again")

    table = next(n for n, m in body.named_modules() if m is model.get_input_embeddings())
    vocabulary = model.get_input_embeddings().weight.shape[0]
    token_ids = _check_text_of(config, vocabulary)
    rows = [read(f"{table}.weight", slice(token, token + 1)) for token in token_ids]
    with torch.no_grad(), _streamed_weights(body, read), _transformers_errors(config.model_type):
        last = body(inputs_embeds=torch.cat(rows)[None], use_cache=False).last_hidden_state[0]
    is_own = not config.tie_word_embeddings or "lm_head.weight" in held
    head = "lm_head.weight" if is_own else f"{table}.weight"
    parts = [
        last @ read(head, slice(start, start + _HEAD_ROWS)).T
        for start in range(0, vocabulary, _HEAD_ROWS)
    ]
    found = torch.cat(parts, dim=1).numpy()
    return ReferenceLogits.of(token_ids, found) if np.isfinite(found).all() else None


@contextmanager
def _streamed_weights(body: Any, read: Callable[[str], Any]) -> Iterator[None]:
    """Read the weights of each module while it runs."""
    import torch

    def fill(name: str, module: Any, _inputs: Any) -> None:
        for own, parameter in list(module.named_parameters(recurse=False)):
            tensor = read(f"{name}.{own}")
            if tensor.shape != parameter.shape:
                raise ModelError(f"the weights {name}.{own} have another shape", "copy it again")
            setattr(module, own, torch.nn.Parameter(tensor, requires_grad=False))

    def empty(module: Any, _inputs: Any, _output: Any) -> None:
        for own, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, own, torch.nn.Parameter(parameter.to("meta"), requires_grad=False))

    hooks = []
    for name, module in body.named_modules():
        hooks.append(module.register_forward_pre_hook(partial(fill, name)))
        hooks.append(module.register_forward_hook(empty, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_text_of(config: Any, vocabulary: int) -> tuple[int, ...]:
    """Return the check text of a model by its transformers config."""
    context = getattr(config, "max_position_embeddings", None) or MOST_TOKENS
    return check_text(vocabulary, context, getattr(config, "sliding_window", None) or 0)


@contextmanager
def _transformers_errors(model_type: str) -> Iterator[None]:
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # a forward pass may raise anything
        raise ModelError(
            f"transformers cannot compute this {model_type} model: {first_line(error)}",
            "copy or fetch the model again",
        ) from error


def reference_logits(model: Any) -> ReferenceLogits | None:
    """Compute reference logits with a transformers model on the CPU, always in float32.

    Returns:
        The logits; None if they are not finite.

    Raises:
        ModelError: transformers cannot run the model.
    """
    import torch

    text = model.config.get_text_config()
    token_ids = _check_text_of(text, model.get_input_embeddings().weight.shape[0])
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _float32_weights(model), _transformers_errors(text.model_type):
            logits = model(input_ids=torch.tensor([token_ids]), use_cache=False).logits
    finally:
        model.train(was_training)
    found = logits[0].float().numpy()
    return ReferenceLogits.of(token_ids, found) if np.isfinite(found).all() else None


@contextmanager
def _float32_weights(model: Any) -> Iterator[None]:
    """Convert the weights of each module to float32 while it runs.

    A 16-bit model then takes the memory of one converted module more.
    """
    import torch

    held: dict[int, list[tuple[Any, Any]]] = {}

    def widen(module: Any, _inputs: Any) -> None:
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        changed = held[id(module)] = []
        for name, tensor in tensors:
            if tensor.dtype in (torch.float16, torch.bfloat16):
                changed.append((tensor, tensor.data))
                tensor.data = tensor.data.float()
                exact = getattr(module, f"scalar_{name}", None)  # rounded at construction
                if exact is not None:
                    tensor.data.fill_(exact)

    def narrow(module: Any, _inputs: Any, _output: Any) -> None:
        for tensor, data in held.pop(id(module), []):
            tensor.data = data

    hooks = []
    for module in model.modules():
        hooks.append(module.register_forward_pre_hook(widen))
        hooks.append(module.register_forward_hook(narrow, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
