"""What a model looks like inside, from its config; models of other families are refused here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.engines.packed.vectors import LANES
from packhorse.errors import EngineError
from packhorse.models.engine_support import (
    PACKED_FAMILIES,
    PACKED_LLAMA_LIKE,
    inner_size,
    instead_of,
    packed_refusal,
)
from packhorse.models.int8_folder import is_int8_folder
from packhorse.models.loading import load_config
from packhorse.quantization.online_hadamard import hadamard_order

LLAMA_LIKE = PACKED_LLAMA_LIKE
FAMILIES = PACKED_FAMILIES


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
    def biases(self) -> tuple[bool, bool, bool]:
        """Whether queries, keys and values, the output of attention, and the MLP have biases, as
        transformers has it: others that a file holds are not read."""
        if self.family == "gpt2":
            return True, True, True
        attention = self.family in ("llama", "qwen3") and bool(self.config.attention_bias)
        mlp = self.family == "llama" and bool(self.config.mlp_bias)
        return attention or self.family == "qwen2", attention, mlp

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
        return hadamard_order(self.inner)


def read_architecture(folder: Path, quantization: str = "auto") -> Architecture:
    """The architecture of a Hugging Face folder that is to run in `quantization`.

    Raises ModelError for a config that cannot be read, EngineError for what this engine cannot run,
    naming engines that do.
    """
    config = load_config(folder)
    family = str(config.model_type)
    is_int8_folder({"quantization_config": getattr(config, "quantization_config", None)})
    if refusal := packed_refusal(config):
        raise EngineError(
            f"the packed engine does not run {refusal}", instead_of(config, "packed", quantization)
        )
    return _gpt2(config) if family == "gpt2" else _llama_like(family, config)


def _llama_like(family: str, config: Any) -> Architecture:
    head_size = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    return Architecture(
        family=family,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        inner=inner_size(config),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_size=head_size,
        vocabulary=config.vocab_size,
        epsilon=config.rms_norm_eps,
        windows=_windows(family, config),
        positions=0,
        is_gated=True,
        has_head_norms=family == "qwen3",
        ties_head=config.tie_word_embeddings,
        config=config,
    )


def _windows(family: str, config: Any) -> tuple[int, ...]:
    """Of each layer, as transformers has it: Llama reads no window, Mistral no kinds of layers."""
    window = 0 if family == "llama" else int(config.sliding_window or 0)
    if family in ("llama", "mistral"):
        return (window,) * int(config.num_hidden_layers)
    kinds = config.layer_types
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def _gpt2(config: Any) -> Architecture:
    return Architecture(
        family="gpt2",
        layers=config.n_layer,
        hidden=config.n_embd,
        inner=inner_size(config),
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
