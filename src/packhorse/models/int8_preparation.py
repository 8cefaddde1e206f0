"""Prepare checkpoints for int8 and convert them; store the recipes of `packhorse quantize`.

    $PACKHORSE_HOME/recipes/<model>-<digest>.json     the recipe of a model, used from then on

Each converted folder names the method it was prepared with (`quantization.json`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packhorse.batching.memory import available_bytes
from packhorse.errors import ModelError, OutputError
from packhorse.models.cache import slug
from packhorse.models.checkpoint import Checkpoint, require_own_class, require_unquantized
from packhorse.models.convert import convert_checkpoint
from packhorse.models.ctranslate2_folder import NOTE
from packhorse.models.facts import stated_context
from packhorse.models.loading import load_float32, loaded_size
from packhorse.models.prepared import Report
from packhorse.models.resolved_config import read_config
from packhorse.quantization.methods import AUTO, FAMILIES, PLAIN, supported_methods
from packhorse.quantization.progress import StepProgress
from packhorse.quantization.prompts import (
    MAX_PROMPT_TOKENS,
    shipped_bytes,
    shipped_requests,
    tokenize_prompts,
)
from packhorse.quantization.recipe import CODE, Recipe
from packhorse.storage.atomic_files import write_json
from packhorse.storage.cache_folder import cache_root
from packhorse.storage.json_files import read_object
from packhorse.tokenization import HuggingFaceCodec

if TYPE_CHECKING:
    from packhorse.models.reference_logits import ReferenceLogits
    from packhorse.quantization.foldable_model import FoldableModel

_STEPS = {"loading": 1, "reading prompts": 3, "rounding weights": 6, "converting": 2}
_QUICK_NOTE = (
    "preparing {0} for int8 by the quick method, once; packhorse quantize {0} may lose less "
    "accuracy (smollm2-135m-instruct: KL 0.0027 instead of 0.0042)"
)
_LAYERS_AT_ONCE = 3
_QUICK_STEPS = {"rounding weights": 4, "checking": 1}
_LIBRARIES_BYTES = 1_000_000_000
"""Memory for code and buffers of torch, and for the activations of a batch of calibration rows."""


Int8Writer = Callable[[Path, Path, Mapping[str, Any] | None, Callable[[float], None]], None]
"""See `EngineEntry.int8_writer`."""


@dataclass(frozen=True, slots=True)
class QuantizationMethodChoice:
    """How to prepare a model for int8: by the requested method, or by a recipe."""

    requested: str
    recipe: Recipe | None = None

    @property
    def is_plain(self) -> bool:
        return self.requested == PLAIN or (self.recipe is not None and self.recipe.method == PLAIN)

    def variant(self, form: str) -> str:
        """Return the variant in the name of the cache entry: "int8", "int8-auto", "int8-tuned"."""
        if self.is_plain:
            return form
        return f"{form}-tuned" if self.recipe else f"{form}-{self.requested}"

    def cache_key_parts(self) -> tuple[str, ...]:
        """Return the parts of a cache key that the choice determines, () for plain."""
        if self.is_plain:
            return ()
        if self.recipe:
            return ("recipe", self.recipe.digest)
        return ("quick", self.requested, CODE, sha256(shipped_bytes()).hexdigest())


def choose_method(
    requested: str, title: str, origin: Sequence[str], report: Report
) -> QuantizationMethodChoice:
    """Return the choice for a requested method; "auto" uses the stored recipe if there is one."""
    recipe = stored_recipe(title, origin, report) if requested == AUTO else None
    return QuantizationMethodChoice(requested, recipe)


class CannotFoldError(ModelError):
    """The model cannot be prepared for int8, on this machine or at all."""


def convert_to_int8(
    checkpoint: Checkpoint,
    form: str,
    choice: QuantizationMethodChoice,
    folder: Path,
    title: str,
    report: Report,
) -> None:
    """Prepare a checkpoint for int8 and write it as a CTranslate2 folder.

    Args:
        checkpoint: The checkpoint.
        form: An int8 format of CTranslate2.
        choice: Method or recipe.
        folder: An empty folder.
        title: Name of the model for progress lines.
        report: Receives progress lines.

    Raises:
        CannotFoldError: The model's family is not supported, or there is too little memory.
    """
    from packhorse.quantization.gptq import round_weights

    steps = StepProgress(f"preparing {title} for int8", _STEPS, report)
    foldable, recipe, reference = _load_and_fold(checkpoint, choice, steps)
    round_weights(foldable, recipe.rows, steps.begin("rounding weights"))
    steps.begin("converting")
    model = foldable.model
    del foldable  # its views keep weights alive that the converter lets go of
    convert_checkpoint(checkpoint, form, folder, model, reference)
    write_json(folder / NOTE, _describe_method(choice, recipe))


def write_packed_int8(
    checkpoint: Checkpoint,
    choice: QuantizationMethodChoice,
    writer: Int8Writer,
    folder: Path,
    title: str,
    report: Report,
) -> None:
    """Prepare a checkpoint for int8 and write it as a folder for the packed engine.

    The input of the MLP's down projection is rotated online (`quantization.online_hadamard`). The
    quick method needs no calibration: it rotates and rounds to nearest one layer at a time. It is
    `PLAIN` for this engine, and "auto" for families that can be rotated if there is no recipe.

    Args:
        checkpoint: The checkpoint.
        choice: Method or recipe.
        writer: `EngineEntry.int8_writer` of the engine.
        folder: An empty folder.
        title: Name of the model for progress lines.
        report: Receives progress lines.

    Raises:
        CannotFoldError: The model's family is not supported, or there is too little memory.
    """
    quick = choice.is_plain or _is_quick_by_default(choice, checkpoint)
    if quick:
        if not choice.is_plain:
            report(_QUICK_NOTE.format(title))
        steps = StepProgress(f"preparing {title} for int8", _QUICK_STEPS, report)
        reference = _round_to_nearest(checkpoint, writer, folder, steps)
        note = {"method": PLAIN, "recipe": "default"}
    else:
        from packhorse.quantization.gptq import round_weights
        from packhorse.quantization.online_hadamard import rotate_inputs_online

        steps = StepProgress(f"preparing {title} for int8", _STEPS, report)
        foldable, recipe, reference = _load_and_fold(checkpoint, choice, steps)
        rotate_inputs_online(foldable)
        round_weights(foldable, recipe.rows, steps.begin("rounding weights"))
        rounded = dict(foldable.model.named_parameters())
        writer(checkpoint.folder, folder, rounded, steps.begin("converting"))
        note = _describe_method(choice, recipe)
    checkpoint.copy_tokenizer(folder)
    if reference is not None:
        reference.save(folder)
    write_json(folder / NOTE, note)


def _is_quick_by_default(choice: QuantizationMethodChoice, checkpoint: Checkpoint) -> bool:
    methods = FAMILIES.get(str(checkpoint.config["model_type"]), ())
    is_default = choice.recipe is None and choice.requested == AUTO
    return is_default and any(method.startswith("rotate") for method in methods)


def _round_to_nearest(
    checkpoint: Checkpoint, writer: Int8Writer, folder: Path, steps: StepProgress
) -> ReferenceLogits | None:
    """Write int8 weights rounded to nearest; return the reference logits of the model."""
    from packhorse.models.reference_logits import stream_reference_logits

    require_own_class(checkpoint)
    require_unquantized(checkpoint)
    needed = quick_preparation_bytes(checkpoint)
    require_memory("preparing the model for int8", needed, "use a smaller model")
    writer(checkpoint.folder, folder, None, steps.begin("rounding weights"))
    steps.begin("checking")
    return stream_reference_logits(checkpoint)


def _describe_method(choice: QuantizationMethodChoice, recipe: Recipe) -> dict[str, str]:
    source = "packhorse quantize" if choice.recipe else "default"
    return {"method": recipe.method, "recipe": source}


def read_quantization_method(folder: Path) -> str:
    """Return the method by which a model was prepared for int8, "" if the folder names none."""
    try:
        return str(read_object(folder / NOTE).get("method", ""))
    except ModelError:
        return ""


def _load_and_fold(
    checkpoint: Checkpoint, choice: QuantizationMethodChoice, steps: StepProgress
) -> tuple[FoldableModel, Recipe, ReferenceLogits | None]:
    """Return the loaded and folded checkpoint, the recipe used, and the logits before folding."""
    requested = choice.recipe.method if choice.recipe else choice.requested
    methods = require_foldable(checkpoint, requested)
    needed = preparation_bytes(checkpoint)
    require_memory("preparing the model for int8", needed, "choose --quantization-method plain")
    from packhorse.models.reference_logits import reference_logits
    from packhorse.quantization.foldable_model import make_foldable
    from packhorse.quantization.folding import default_recipe, fold

    steps.begin("loading")
    foldable = make_foldable(load_float32(checkpoint))
    reference = reference_logits(foldable.model)
    recipe = choice.recipe
    if recipe is None:
        room = stated_context(checkpoint.config) or MAX_PROMPT_TOKENS
        codec = HuggingFaceCodec(checkpoint.folder)
        prompts = tokenize_prompts(codec, shipped_requests(), min(room, MAX_PROMPT_TOKENS))
        recipe = default_recipe(foldable, methods[-1], prompts)
    fold(foldable, recipe, steps.begin("reading prompts"))
    return foldable, recipe, reference


def require_foldable(checkpoint: Checkpoint, requested: str) -> tuple[str, ...]:
    """Return the methods that a request allows for a checkpoint, the best one last.

    Raises:
        CannotFoldError: No method supports the model's family.
        ConfigError: The family does not support the requested method.
        ModelError: The weights are quantized already.
    """
    require_own_class(checkpoint)
    require_unquantized(checkpoint)
    family = str(checkpoint.config["model_type"])
    methods = supported_methods(family, requested)
    if not methods:
        raise CannotFoldError(
            f"{family} models cannot be prepared for int8",
            f"supported families: {', '.join(FAMILIES)}",
        )
    return methods


def preparation_bytes(checkpoint: Checkpoint) -> int:
    """Return the most memory that preparing a model for int8 takes (bytes).

    It holds the model, and beside it first the Hessians of rounding, then the int8 weights.
    """
    from packhorse.quantization.gptq import working_bytes

    size = loaded_size(checkpoint)
    converting = size.model // 4 + 3 * size.head
    return size.model + max(working_bytes(size.channels), converting) + _LIBRARIES_BYTES


def quick_preparation_bytes(checkpoint: Checkpoint) -> int:
    """Return the most memory that rounding to nearest takes (bytes).

    Layers are read, rounded and written one after the other, a few at a time.
    """
    config = read_config(checkpoint.folder)
    size = loaded_size(checkpoint)
    layers = max(1, int(config.num_hidden_layers))
    return _LAYERS_AT_ONCE * (size.model // layers) + _LIBRARIES_BYTES


def search_bytes(checkpoint: Checkpoint, scored_tokens: int) -> int:
    """Return the most memory that `quantization.search` takes (bytes).

    It holds three models, distributions at the scored tokens, and copies of the head while it is
    rounded.
    """
    from packhorse.quantization.activations import MAX_BATCH_TOKENS

    size = loaded_size(checkpoint)
    distributions = 4 * size.vocabulary * (scored_tokens + 2 * MAX_BATCH_TOKENS)
    return 3 * size.model + distributions + 3 * size.head + _LIBRARIES_BYTES


def require_memory(work: str, needed: int, instead: str) -> None:
    """Raise CannotFoldError if fewer than `needed` bytes are free for `work`."""
    free = available_bytes()
    if needed > free:
        raise CannotFoldError(
            f"{work} takes {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free",
            f"free some memory, or {instead}",
        )


def store_recipe(
    title: str, origin: Sequence[str], recipe: Recipe, found: Mapping[str, Any]
) -> Path:
    """Store the recipe of a model in place of an earlier one, and return its path.

    Args:
        title: Name of the model.
        origin: Identity of the model, see `Original.identity`.
        recipe: The recipe.
        found: Measurements to store beside it.

    Raises:
        ModelError: The cache cannot be written.
    """
    path = _recipe_path(title, origin)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"recipe": recipe.to_json(), "found": dict(found)})
    except (OSError, OutputError) as error:
        raise ModelError(
            f"the recipe cannot be stored: {error}",
            "set PACKHORSE_HOME to a folder that you may write to",
        ) from error
    return path


def stored_recipe(title: str, origin: Sequence[str], report: Report) -> Recipe | None:
    """Return the stored recipe of a model; None if there is none or, with a report, if it is
    unusable."""
    path = _recipe_path(title, origin)
    if not path.exists():
        return None
    try:
        return Recipe.from_json(read_object(path)["recipe"])
    except (ModelError, ValueError, KeyError, TypeError, AttributeError) as error:
        report(f"{path} cannot be used ({error}): run packhorse quantize again")
        return None


def _recipe_path(title: str, origin: Sequence[str]) -> Path:
    digest = sha256(json.dumps(list(origin)).encode()).hexdigest()[:12]
    return cache_root() / "recipes" / f"{slug(title)}-{digest}.json"
