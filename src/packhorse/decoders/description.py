"""What a decoder computes and how its checkpoint stores it, as data.

    x = embedding scale x embedding[token] (+ position embedding)
    per layer:
        a = attention(norm(x)),   x += residual scale x post-norm(a)
        m = MLP(norm(x)),         x += residual scale x post-norm(m)
    logits = cap(logit scale x head(norm(x)))

Every norm but the last one may be missing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

_TOGETHER = (("query", "key", "value"), ("gate", "up"))
"""Projections that a family may store as one."""
Activation = Literal["silu", "gelu_tanh", "relu2"]
Norm = Literal["rms", "layer"]


@dataclass(frozen=True, slots=True)
class Names:
    """Names of the modules of a checkpoint; "" for a module that the family lacks.

    Projections of one name are stored as one: queries, keys and values, or gate and up projection,
    one after the other. Projections of experts are stored one by one if their name has a place for
    the number of the expert, else as one tensor [experts, outputs, inputs]. All but the last four
    names are below `layer`.
    """

    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    output: str = "self_attn.o_proj"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    router: str = ""
    attention_norm: str = "input_layernorm"
    attention_post_norm: str = ""
    mlp_norm: str = "post_attention_layernorm"
    mlp_post_norm: str = ""
    query_norm: str = ""
    key_norm: str = ""
    layer: str = "layers.{}"
    embedding: str = "embed_tokens"
    positions: str = ""
    final_norm: str = "norm"


LLAMA_NAMES = Names()
GPT2_NAMES = Names(
    query="attn.c_attn", key="attn.c_attn", value="attn.c_attn", output="attn.c_proj",
    gate="", up="mlp.c_fc", down="mlp.c_proj", attention_norm="ln_1", mlp_norm="ln_2",
    layer="h.{}", embedding="wte", positions="wpe", final_norm="ln_f",
)  # fmt: skip


@dataclass(frozen=True)
class Decoder:
    """A decoder-only transformer.

    Attributes:
        family: `model_type` of the config.
        config: The config as transformers parsed it.
        layers: Number of layers.
        hidden: Width of the residual stream.
        inner: Intermediate size of the MLP.
        heads: Number of query heads.
        kv_heads: Number of key/value heads.
        head_size: Width of one head.
        vocabulary: Number of token ids.
        epsilon: Epsilon of the norms.
        ties_head: Whether the output head shares the embedding weights, according to the config.
        names: Names of its modules.
        is_transposed: Whether projections are stored as [inputs, outputs].
        qkv_bias: Whether projections of queries, keys and values have biases.
        output_bias: Whether the output projection of attention has one.
        mlp_bias: Whether the projections of the MLP have biases.
        norm: RMSNorm or LayerNorm.
        norm_offset: Added to the stored gain of every norm.
        norm_bias: Whether norms of the residual stream have biases.
        activation: Activation function of the MLP.
        is_gated: Whether the activation of one projection is multiplied by another.
        experts: Number of experts of each MLP; 0 for one MLP.
        experts_per_token: Number of experts that compute a token: the most probable by a softmax
            over the products of the router.
        normalizes_experts: Whether their probabilities are divided by the sum of them.
        windows: Sliding attention window of each layer (positions); 0 for full attention.
        rotations: Per layer the key of its settings in `rope_parameters`, "" if there are no keys;
            None if the layer does not rotate queries and keys.
        rotated: Channels of a head that are rotated, from the first on.
        is_interleaved: Whether adjacent channels are rotated together; otherwise channel i and
            channel i + rotated / 2.
        trained_length: Longest text whose rotations are the short ones (LongRoPE); 0 if there is
            one set of rotations. A longer text is computed anew with the long ones.
        query_position_scale: (beta, length): queries at position p are multiplied by
            1 + beta log(1 + floor(p / length)); beta 0 for none.
        positions: Number of learned position embeddings; 0 if there are none.
        embedding_scale: Factor of embeddings.
        residual_scale: Factor of what a layer adds to the residual stream.
        attention_scale: Factor of the products of queries and keys.
        logit_scale: Factor of logits.
        attention_cap: Products are bounded by cap x tanh(product / cap); 0 for no bound.
        logit_cap: Likewise for logits.
    """

    family: str
    config: Any
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    epsilon: float
    ties_head: bool
    names: Names = LLAMA_NAMES
    is_transposed: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    norm: Norm = "rms"
    norm_offset: float = 0.0
    norm_bias: bool = False
    activation: Activation = "silu"
    is_gated: bool = True
    experts: int = 0
    experts_per_token: int = 0
    normalizes_experts: bool = True
    windows: tuple[int, ...] = ()
    rotations: tuple[str | None, ...] = ()
    rotated: int = 0
    is_interleaved: bool = False
    trained_length: int = 0
    query_position_scale: tuple[float, int] = (0.0, 0)
    positions: int = 0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float = 1.0
    logit_scale: float = 1.0
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    norms_whole_rows: bool = field(default=False)
    """Whether the norms of queries and keys are over all heads of a token together."""

    @property
    def has_post_norms(self) -> bool:
        """Whether what a layer adds to the residual stream is normalized first."""
        return bool(self.names.attention_post_norm or self.names.mlp_post_norm)

    @property
    def rotates_residual(self) -> bool:
        """Whether the residual stream can be rotated by an orthogonal matrix (`quantization`).

        LayerNorm does not commute with one, and the gain of a post-norm cannot be folded.
        """
        return self.norm == "rms" and not self.has_post_norms

    @cached_property
    def head_order(self) -> tuple[int, ...] | None:
        """Order of a head's channels in which channel i is rotated with i + head size / 2.

        None if it is the stored one. Channels that are not rotated fill both halves.
        """
        size, rotated = self.head_size, self.rotated
        if self.positions or (rotated == size and not self.is_interleaved):
            return None
        if self.is_interleaved:
            first, second = range(0, rotated, 2), range(1, rotated, 2)
        else:
            first, second = range(rotated // 2), range(rotated // 2, rotated)
        rest, half = list(range(rotated, size)), (size - rotated) // 2
        return (*first, *rest[:half], *second, *rest[half:])

    def outputs(self, part: str) -> int:
        """Return the number of outputs of a projection, by its field of `Names`."""
        if part in ("gate", "up"):
            return self.inner
        if part == "router":
            return self.experts
        if part in ("output", "down"):
            return self.hidden
        return (self.heads if part == "query" else self.kv_heads) * self.head_size

    def inputs(self, part: str) -> int:
        """Return the number of inputs of a projection."""
        if part == "output":
            return self.heads * self.head_size
        return self.inner if part == "down" else self.hidden

    def stored_with(self, part: str) -> tuple[str, ...]:
        """Return the projections that are stored as one with `part`, in order."""
        name = getattr(self.names, part)
        together = next((each for each in _TOGETHER if part in each), (part,))
        return tuple(each for each in together if getattr(self.names, each) == name)

    def stored_rows(self, part: str) -> slice:
        """Return the outputs of `part` among those of the projections stored as one with it."""
        parts = self.stored_with(part)
        start = sum(map(self.outputs, parts[: parts.index(part)]))
        return slice(start, start + self.outputs(part))
