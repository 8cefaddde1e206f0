"""Model sizes and options read from config.json; unsupported families are rejected here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.engines.packed.vectors import LANES
from packhorse.errors import EngineError
from packhorse.models.engine_support import (
    inner_size,
    instead_of,
    packed_refusal,
)
from packhorse.models.int8_folder import is_int8_folder
from packhorse.models.resolved_config import read_config
from packhorse.quantization.online_hadamard import hadamard_order


@dataclass(frozen=True)
class Architecture:
    """Sizes and options of a decoder-only transformer.

    Attributes:
        family: `model_type` of the config.
        layers: Number of decoder layers.
        hidden: Width of the residual stream.
        inner: Intermediate size of the MLP.
        heads: Number of query heads.
        kv_heads: Number of key/value heads.
        head_size: Width of one head.
        vocabulary: Number of token ids.
        epsilon: Epsilon of the norms.
        windows: Sliding attention window of each layer (positions); 0 for full attention.
        positions: Number of learned position embeddings; 0 if positions use RoPE.
        is_gated: Whether the MLP computes SiLU(gate) x up; otherwise GELU of one projection.
        has_head_norms: Whether each query and key head is normalized.
        ties_head: Whether the output head shares the embedding weights, according to the config.
        config: The config as transformers parsed it.
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
        """Whether the folder already stores prepared int8 weights (`models.int8_folder`)."""
        return getattr(self.config, "quantization_config", None) is not None

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        """Whether QKV, the attention output and the MLP have biases, following transformers.

        Biases that a checkpoint stores for other projections are ignored.
        """
        if self.family == "gpt2":
            return True, True, True
        attention = self.family in ("llama", "qwen3") and bool(self.config.attention_bias)
        mlp = self.family == "llama" and bool(self.config.mlp_bias)
        return attention or self.family == "qwen2", attention, mlp

    @property
    def qkv_digits(self) -> int:
        """Number of int8 digits per QKV weight: 2 if the weights were rounded to nearest."""
        prepared = getattr(self.config, "quantization_config", None)
        return int(prepared["qkv_digits"]) if prepared is not None else 2

    @property
    def padded_head(self) -> int:
        """Width of a head in memory: each half is padded to whole vectors."""
        half = -(-self.head_size // 2)
        return 2 * -(-half // LANES) * LANES

    @property
    def group(self) -> int:
        """Number of query heads that share one key/value head."""
        return self.heads // self.kv_heads

    @property
    def qkv_width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.padded_head

    @property
    def activation_width(self) -> int:
        return self.inner * (2 if self.is_gated else 1)

    @property
    def hadamard_order(self) -> int:
        """Number of vectors that the online Hadamard rotation of int8 mixes."""
        return hadamard_order(self.inner)


def read_architecture(folder: Path, quantization: str = "auto") -> Architecture:
    """Return the architecture of a Hugging Face folder that will run in `quantization`.

    Raises:
        ModelError: The config cannot be read.
        EngineError: This engine cannot run the model; the hint names engines that can.
    """
    config = read_config(folder)
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
    """Return the attention window of each layer, following transformers.

    transformers ignores the window of Llama and the layer types of Mistral.
    """
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
