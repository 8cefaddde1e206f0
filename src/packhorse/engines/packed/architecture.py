"""What a model looks like inside, from its config; models of other families are refused here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.engines.packed.vectors import LANES
from packhorse.errors import EngineError
from packhorse.models.int8_folder import is_int8_folder
from packhorse.models.loading import load_config
from packhorse.quantization.turning import turned_together

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
FAMILIES = (*LLAMA_LIKE, "gpt2")
_ROTATIONS = ("default", "linear", "llama3", "yarn")
_ELSEWHERE = "use --engine transformers or --engine ctranslate2, which run more families"


@dataclass(frozen=True)
class Architecture:
    """Sizes and kinds of a decoder-only transformer.

    hidden, inner: numbers of the residual stream and inside the MLP. heads, kv_heads, head_size: of
    attention; padded_head: numbers a head takes in memory, its halves padded to whole vectors.
    windows: positions a layer's attention reaches back at most, 0 for all. positions: learned
    positions there are, 0 where positions rotate. is_gated: SiLU(gate) x up, else GELU of one
    product. has_head_norms: queries and keys are normed head by head. ties_head: as the config
    says, the logits are computed with the embeddings. config: what transformers made of
    config.json.
    """

    family: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    epsilon: float
    windows: tuple[int, ...]
    positions: int
    is_gated: bool
    has_head_norms: bool
    ties_head: bool
    config: Any

    @property
    def holds_int8(self) -> bool:
        """The folder's weights are int8 already, made ready (`models.int8_folder`)."""
        return getattr(self.config, "quantization_config", None) is not None

    @property
    def qkv_digits(self) -> int:
        """Of the int8 weights of queries, keys and values: those rounded while they are loaded have
        a second one."""
        return 1 if self.holds_int8 else 2

    @property
    def padded_head(self) -> int:
        half = -(-self.head_size // 2)
        return 2 * -(-half // LANES) * LANES

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads

    @property
    def qkv_width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.padded_head

    @property
    def activation_width(self) -> int:
        return self.inner * (2 if self.is_gated else 1)

    @property
    def hadamard(self) -> int:
        """Vectors that are turned together before the MLP's second product in int8."""
        return turned_together(self.inner)


def read_architecture(folder: Path) -> Architecture:
    """The architecture of a Hugging Face folder.

    Raises ModelError for a config that cannot be read, EngineError for what this engine cannot run,
    naming engines that may.
    """
    config = load_config(folder)
    family = str(config.model_type)
    if family not in FAMILIES:
        raise _cannot(f"models of family {family!r}, only {', '.join(FAMILIES)}")
    quantized = getattr(config, "quantization_config", None)
    if quantized is not None and not is_int8_folder({"quantization_config": quantized}):
        raise _cannot("checkpoints that are quantized already")
    built = _gpt2(config) if family == "gpt2" else _llama_like(family, config)
    _require_whole_vectors(built)
    return built


def _llama_like(family: str, config: Any) -> Architecture:
    rotation = config.rope_parameters["rope_type"]
    if rotation not in _ROTATIONS:
        raise _cannot(f"rotary positions of type {rotation!r}, only {', '.join(_ROTATIONS)}")
    if config.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise _cannot("heads that are rotated in part")
    if config.hidden_act != "silu":
        raise _cannot(f"the activation {config.hidden_act!r} in a {family} model, only silu")
    head_size = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    return Architecture(
        family=family,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_size=head_size,
        vocabulary=config.vocab_size,
        epsilon=config.rms_norm_eps,
        windows=_windows(config),
        positions=0,
        is_gated=True,
        has_head_norms=family == "qwen3",
        ties_head=config.tie_word_embeddings,
        config=config,
    )


def _windows(config: Any) -> tuple[int, ...]:
    window = getattr(config, "sliding_window", None) or 0
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def _gpt2(config: Any) -> Architecture:
    if config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
        raise _cannot(f"the activation {config.activation_function!r} in a gpt2 model")
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        raise _cannot("GPT-2 attention that is scaled in another way than by 1/sqrt(head size)")
    if getattr(config, "add_cross_attention", False):
        raise _cannot("GPT-2 with cross-attention")
    return Architecture(
        family="gpt2",
        layers=config.n_layer,
        hidden=config.n_embd,
        inner=config.n_inner or 4 * config.n_embd,
        heads=config.n_head,
        kv_heads=config.n_head,
        head_size=config.n_embd // config.n_head,
        vocabulary=config.vocab_size,
        epsilon=config.layer_norm_epsilon,
        windows=(0,) * config.n_layer,
        positions=config.n_positions,
        is_gated=False,
        has_head_norms=False,
        ties_head=config.tie_word_embeddings,
        config=config,
    )


def _require_whole_vectors(built: Architecture) -> None:
    for name in ("hidden", "inner"):
        if getattr(built, name) % LANES:
            raise _cannot(f"{name} sizes of {getattr(built, name)}, only multiples of {LANES}")


def _cannot(what: str) -> EngineError:
    return EngineError(f"the packed engine does not run {what}", _ELSEWHERE)
