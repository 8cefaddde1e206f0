"""The linear layers of a model, by one set of names for all families.

A linear group is a set of projections that read the same activation, which int8 rounds (q, k and v;
gate and up). Its channels can be divided by any positive scales without changing the model, if the
tensors that produce the activation are linear in them (the gain of a norm, the rows of a
projection), and the columns of the group's projections are multiplied by the same scales.
SmoothQuant's implementations call the producers "smooth layer" and the projections "balance
layers".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["qkv", "o", "mlp", "down", "head"]


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear layer y = x Wᵀ + b.

    Attributes:
        module: transformers' module.
        weight: View of the module's weight as [out, in], however transformers stores it.
        bias: View of the module's bias, [out], or None.
    """

    module: nn.Module
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class LinearGroup:
    """Projections that read the same activation, and the tensors that produce it.

    Attributes:
        layer: Number of the layer from 0; the number of layers for the head.
        kind: Place in the layer.
        producers: Tensors [channels, ...] whose division by s divides the activation by s; () if
            the activation is the output of a nonlinearity.
        projections: Projections that read the activation.
        heads: (key/value heads, query heads per key/value head) if the activation is the output of
            attention: its producer is the value projection, whose channels occur several times.
    """

    layer: int
    kind: Kind
    producers: tuple[Tensor, ...]
    projections: tuple[Projection, ...]
    heads: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        return f"{self.layer}.{self.kind}"

    def to_producer_channels(self, maxima: Tensor) -> Tensor:
        """Convert maxima of the activation's channels to maxima of the producers' channels."""
        if self.heads is None:
            return maxima
        return maxima.view(*self.heads, -1).amax(1).flatten()

    def to_input_channels(self, scales: Tensor) -> Tensor:
        """Convert scales of the producers' channels to scales of the activation's channels."""
        if self.heads is None:
            return scales
        shared, sharing = self.heads
        return scales.view(shared, 1, -1).expand(shared, sharing, -1).flatten()

    @torch.no_grad()
    def scale(self, scales: Tensor) -> None:
        """Divide the producers by `scales` (their channels), and multiply the projections."""
        for producer in self.producers:
            producer.div_(scales.view(-1, *[1] * (producer.dim() - 1)))
        for projection in self.projections:
            projection.weight.mul_(self.to_input_channels(scales))


@dataclass(frozen=True, slots=True)
class Attention:
    """Value and output projection of one layer's attention; `head_dim` channels per head."""

    values: Projection
    output: Projection
    head_dim: int


@dataclass(frozen=True, slots=True)
class FoldableModel:
    """A model and the places where it can be changed without changing its results.

    Attributes:
        model: The transformers model.
        body: The model without its head, which reads the last hidden state.
        embedding: Token embedding.
        groups: Linear groups; the head's is the last one.
        norms: Gain of each norm of the residual stream, and the projections that read it; () if the
            stream cannot be rotated.
        writers: Projections that add to the residual stream.
        attentions: Layers whose values can be rotated within their heads.
    """

    model: Any
    body: Any
    embedding: nn.Embedding
    groups: tuple[LinearGroup, ...]
    norms: tuple[tuple[Tensor, tuple[Projection, ...]], ...] = ()
    writers: tuple[Projection, ...] = ()
    attentions: tuple[Attention, ...] = ()

    @property
    def hidden_size(self) -> int:
        return self.embedding.embedding_dim

    @property
    def head(self) -> LinearGroup:
        return self.groups[-1]

    def scalable_groups(self) -> list[LinearGroup]:
        """Return the groups that can be smoothed."""
        return [group for group in self.groups if group.producers]


def make_foldable(model: Any) -> FoldableModel:
    """Describe a loaded transformers model of a family in `methods.FAMILIES`.

    A head that is tied to the embedding gets its own weights: `tie_word_embeddings` of the config
    becomes False.
    """
    _untie(model)
    return _BUILDERS[model.config.model_type](model)


def _untie(model: Any) -> None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight.data_ptr() == embedding.weight.data_ptr():
        head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False


def _llama(model: Any) -> FoldableModel:
    """Llama, Mistral, Qwen2 and Qwen3: RMSNorm, gated MLP, grouped key/value heads."""
    config = model.config
    kv_heads = config.num_key_value_heads
    heads = kv_heads, config.num_attention_heads // kv_heads
    groups: list[LinearGroup] = []
    norms: list[tuple[Tensor, tuple[Projection, ...]]] = []
    writers: list[Projection] = []
    attentions: list[Attention] = []
    for number, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        q, k, v, o = (_as_projection(getattr(attention, f"{name}_proj")) for name in "qkvo")
        gate, up, down = (
            _as_projection(getattr(mlp, f"{name}_proj")) for name in ("gate", "up", "down")
        )
        before, between = (
            norm.weight.data for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        )
        norms += [(before, (q, k, v)), (between, (gate, up))]
        writers += [o, down]
        attentions.append(Attention(v, o, attention.head_dim))
        groups += [
            LinearGroup(number, "qkv", (before,), (q, k, v)),
            LinearGroup(number, "o", _output_tensors(v), (o,), heads),
            LinearGroup(number, "mlp", (between,), (gate, up)),
            LinearGroup(number, "down", _output_tensors(up), (down,)),
        ]
    head, last = _as_projection(model.lm_head), model.model.norm.weight.data
    norms.append((last, (head,)))
    groups.append(LinearGroup(len(model.model.layers), "head", (last,), (head,)))
    return FoldableModel(
        model, model.model, model.model.embed_tokens, tuple(groups), tuple(norms), tuple(writers),
        tuple(attentions),
    )  # fmt: skip


def _gpt2(model: Any) -> FoldableModel:
    """GPT-2: LayerNorm with bias, GELU (so the input of `down` has no linear producer), weights
    stored as [in, out], queries, keys and values in one projection."""
    body, width = model.transformer, model.config.n_embd
    groups: list[LinearGroup] = []
    for number, block in enumerate(body.h):
        qkv, o = _as_projection(block.attn.c_attn), _as_projection(block.attn.c_proj)
        up, down = _as_projection(block.mlp.c_fc), _as_projection(block.mlp.c_proj)
        assert qkv.bias is not None
        values = qkv.weight[2 * width :], qkv.bias[2 * width :]
        groups += [
            LinearGroup(number, "qkv", _gain_and_bias(block.ln_1), (qkv,)),
            LinearGroup(number, "o", values, (o,)),
            LinearGroup(number, "mlp", _gain_and_bias(block.ln_2), (up,)),
            LinearGroup(number, "down", (), (down,)),
        ]
    head = _as_projection(model.lm_head)
    groups.append(LinearGroup(len(body.h), "head", _gain_and_bias(body.ln_f), (head,)))
    return FoldableModel(model, body, body.wte, tuple(groups))


_BUILDERS: Mapping[str, Callable[[Any], FoldableModel]] = {
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "gpt2": _gpt2,
}


def _as_projection(module: Any) -> Projection:
    weight = module.weight.data
    bias = None if module.bias is None else module.bias.data
    return Projection(module, weight if isinstance(module, nn.Linear) else weight.T, bias)


def _output_tensors(projection: Projection) -> tuple[Tensor, ...]:
    """Return the tensors to divide in order to divide the projection's output."""
    bias = projection.bias
    return (projection.weight,) if bias is None else (projection.weight, bias)


def _gain_and_bias(norm: nn.LayerNorm) -> tuple[Tensor, ...]:
    return norm.weight.data, norm.bias.data
