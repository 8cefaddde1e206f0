"""A model's description with the sizes it has in this engine's memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.decoders import Decoder, describe
from packhorse.engines.packed.panels import PANEL
from packhorse.engines.packed.vectors import LANES
from packhorse.errors import EngineError
from packhorse.models.engine_support import instead_of, packed_refusal
from packhorse.models.int8_folder import is_int8_folder
from packhorse.models.resolved_config import read_config
from packhorse.quantization.online_hadamard import hadamard_order


@dataclass(frozen=True)
class Architecture:
    """A decoder in memory: widths are padded to whole vectors.

    Attributes:
        decoder: Its description, with the sizes of the checkpoint.
        ties_head: Whether the output head shares the embedding weights.
    """

    decoder: Decoder
    ties_head: bool

    @property
    def config(self) -> Any:
        """The config as transformers parsed it."""
        return self.decoder.config

    @property
    def layers(self) -> int:
        return self.decoder.layers

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.decoder.heads

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.decoder.kv_heads

    @property
    def head_size(self) -> int:
        return self.decoder.head_size

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return self.decoder.vocabulary

    @property
    def windows(self) -> tuple[int, ...]:
        """Sliding attention window of each layer (positions); 0 for full attention."""
        return self.decoder.windows

    @property
    def positions(self) -> int:
        """Number of learned position embeddings; 0 if there are none."""
        return self.decoder.positions

    @property
    def hidden(self) -> int:
        """Width of the residual stream in memory."""
        return _padded(self.decoder.hidden, self.multiple)

    @property
    def inner(self) -> int:
        """Width of the MLP's activation in memory."""
        return _padded(self.decoder.inner, self.multiple)

    @property
    def holds_int8(self) -> bool:
        """Whether the folder already stores prepared int8 weights (`models.int8_folder`)."""
        return getattr(self.config, "quantization_config", None) is not None

    @property
    def qkv_digits(self) -> int:
        """Number of int8 digits per QKV weight: 2 if the weights were rounded to nearest."""
        prepared = getattr(self.config, "quantization_config", None)
        return int(prepared["qkv_digits"]) if prepared is not None else 2

    @property
    def padded_head(self) -> int:
        """Width of a head in memory: each half is padded to whole vectors."""
        return 2 * _padded(-(-self.head_size // 2), LANES)

    @property
    def group(self) -> int:
        """Number of query heads that share one key/value head."""
        return self.heads // self.kv_heads

    @property
    def qkv_width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.padded_head

    @property
    def head_norm_widths(self) -> tuple[int, int]:
        """Widths of the query and the key norm in memory; 0 without."""
        if not self.decoder.names.query_norm:
            return 0, 0
        if self.decoder.norms_whole_rows:
            return self.heads * self.padded_head, self.kv_heads * self.padded_head
        return self.padded_head, self.padded_head

    @property
    def activation_width(self) -> int:
        return self.inner * (2 if self.decoder.is_gated else 1)

    @property
    def multiple(self) -> int:
        """Widths in memory are multiples of it; the products of an expert fill whole panels."""
        return PANEL if self.decoder.experts else LANES

    @property
    def mlps(self) -> int:
        """Number of MLPs per layer: the experts, or 1."""
        return self.decoder.experts or 1

    @property
    def router_width(self) -> int:
        """Number of outputs of the router in memory; 0 without experts."""
        return _padded(self.decoder.experts, LANES)

    @property
    def hadamard_order(self) -> int:
        """Number of vectors that the online Hadamard rotation of int8 mixes."""
        return hadamard_order(self.decoder.inner)


def _padded(width: int, multiple: int) -> int:
    return -(-width // multiple) * multiple


def read_architecture(folder: Path, quantization: str = "auto") -> Architecture:
    """Return the architecture of a Hugging Face folder that will run in `quantization`.

    Raises:
        ModelError: The config cannot be read.
        EngineError: This engine cannot run the model; the hint names engines that can.
    """
    config = read_config(folder)
    is_int8_folder({"quantization_config": getattr(config, "quantization_config", None)})
    if reason := packed_refusal(config):
        raise EngineError(
            f"the packed engine does not run {reason}", instead_of(config, "packed", quantization)
        )
    decoder = describe(config)
    return Architecture(decoder, decoder.ties_head)
