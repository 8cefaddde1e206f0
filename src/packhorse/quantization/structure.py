"""The parts of a model that can be folded into each other, by one set of names for all families.

A *site* is an activation that int8 rounds: what one or more projections read. Its channels can be
divided by any positive numbers without changing the model, if what makes the activation is linear
in them (the gain of a norm, the rows of a projection) and the columns of the projections that read
it are multiplied by the same numbers.
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
    """A linear layer y = x Wᵀ + b. weight (out, in) and bias (out) or None are views of the model's
    own numbers, whichever way round transformers stores them."""

    module: nn.Module
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Site:
    """An activation that `readers` read.

    layer: from 0; the number of layers for the head. makers: tensors whose first dimension is the
    channel, and whose division by s divides the activation by s; () where something nonlinear
    makes it. heads: (key/value heads, query heads that share each) where the activation is the
    output of attention: its makers are the values, and their channels reach it several times.
    """

    layer: int
    kind: Kind
    makers: tuple[Tensor, ...]
    readers: tuple[Projection, ...]
    heads: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        return f"{self.layer}.{self.kind}"

    def to_makers(self, maxima: Tensor) -> Tensor:
        """Maxima of the activation's channels as maxima of the makers' channels."""
        if self.heads is None:
            return maxima
        return maxima.view(*self.heads, -1).amax(1).flatten()

    def to_readers(self, scales: Tensor) -> Tensor:
        """Scales of the makers' channels as scales of the activation's channels."""
        if self.heads is None:
            return scales
        shared, sharing = self.heads
        return scales.view(shared, 1, -1).expand(shared, sharing, -1).flatten()

    @torch.no_grad()
    def scale(self, scales: Tensor) -> None:
        """Divides the activation by `scales` (makers' channels), and multiplies what reads it."""
        for maker in self.makers:
            maker.div_(scales.view(-1, *[1] * (maker.dim() - 1)))
        for reader in self.readers:
            reader.weight.mul_(self.to_readers(scales))


@dataclass(frozen=True, slots=True)
class Attention:
    """Projections to and from the values of one layer's heads, `head_dim` numbers a head."""

    values: Projection
    output: Projection
    head_dim: int


@dataclass(frozen=True, slots=True)
class Structure:
    """A model, and what can be done to it without changing what it computes.

    body: all of the model but its head; its last hidden state is what the head reads.
    sites: the head's is the last.
    norms: gain of each norm of the residual stream and what reads it; () where the stream cannot
        be rotated.
    writers: projections that add to the residual stream.
    attentions: where values can be rotated within their heads.
    """

    model: Any
    body: Any
    embedding: nn.Embedding
    sites: tuple[Site, ...]
    norms: tuple[tuple[Tensor, tuple[Projection, ...]], ...] = ()
    writers: tuple[Projection, ...] = ()
    attentions: tuple[Attention, ...] = ()

    @property
    def hidden_size(self) -> int:
        return self.embedding.embedding_dim

    @property
    def head(self) -> Site:
        return self.sites[-1]

    def scalable_sites(self) -> list[Site]:
        return [site for site in self.sites if site.makers]


def structure_of(model: Any) -> Structure:
    """The structure of a loaded transformers model of a family in `methods.FAMILIES`.

    A head that shares its numbers with the embedding gets its own: `tie_word_embeddings` of the
    config becomes False.
    """
    _untie(model)
    return _BUILDERS[model.config.model_type](model)


def _untie(model: Any) -> None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight.data_ptr() == embedding.weight.data_ptr():
        head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False


def _llama(model: Any) -> Structure:
    """Llama, Mistral, Qwen2 and Qwen3: RMSNorm, gated MLP, grouped key/value heads."""
    config = model.config
    kv_heads = config.num_key_value_heads
    heads = kv_heads, config.num_attention_heads // kv_heads
    sites: list[Site] = []
    norms: list[tuple[Tensor, tuple[Projection, ...]]] = []
    writers: list[Projection] = []
    attentions: list[Attention] = []
    for number, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        q, k, v, o = (_linear(getattr(attention, f"{name}_proj")) for name in "qkvo")
        gate, up, down = (_linear(getattr(mlp, f"{name}_proj")) for name in ("gate", "up", "down"))
        before, between = (
            norm.weight.data for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        )
        norms += [(before, (q, k, v)), (between, (gate, up))]
        writers += [o, down]
        attentions.append(Attention(v, o, attention.head_dim))
        sites += [
            Site(number, "qkv", (before,), (q, k, v)),
            Site(number, "o", _rows(v), (o,), heads),
            Site(number, "mlp", (between,), (gate, up)),
            Site(number, "down", _rows(up), (down,)),
        ]
    head, last = _linear(model.lm_head), model.model.norm.weight.data
    norms.append((last, (head,)))
    sites.append(Site(len(model.model.layers), "head", (last,), (head,)))
    return Structure(
        model, model.model, model.model.embed_tokens, tuple(sites), tuple(norms), tuple(writers),
        tuple(attentions),
    )  # fmt: skip


def _gpt2(model: Any) -> Structure:
    """GPT-2: LayerNorm with bias, GELU (so nothing makes the input of the MLP's second projection
    linearly), weights stored (in, out), queries, keys and values in one projection."""
    body, width = model.transformer, model.config.n_embd
    sites: list[Site] = []
    for number, block in enumerate(body.h):
        qkv, o = _linear(block.attn.c_attn), _linear(block.attn.c_proj)
        up, down = _linear(block.mlp.c_fc), _linear(block.mlp.c_proj)
        assert qkv.bias is not None
        values = qkv.weight[2 * width :], qkv.bias[2 * width :]
        sites += [
            Site(number, "qkv", _gain_and_bias(block.ln_1), (qkv,)),
            Site(number, "o", values, (o,)),
            Site(number, "mlp", _gain_and_bias(block.ln_2), (up,)),
            Site(number, "down", (), (down,)),
        ]
    head = _linear(model.lm_head)
    sites.append(Site(len(body.h), "head", _gain_and_bias(body.ln_f), (head,)))
    return Structure(model, body, body.wte, tuple(sites))


_BUILDERS: Mapping[str, Callable[[Any], Structure]] = {
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "gpt2": _gpt2,
}


def _linear(module: Any) -> Projection:
    weight = module.weight.data
    bias = None if module.bias is None else module.bias.data
    return Projection(module, weight if isinstance(module, nn.Linear) else weight.T, bias)


def _rows(projection: Projection) -> tuple[Tensor, ...]:
    """What has to be divided to divide the projection's output."""
    bias = projection.bias
    return (projection.weight,) if bias is None else (projection.weight, bias)


def _gain_and_bias(norm: nn.LayerNorm) -> tuple[Tensor, ...]:
    return norm.weight.data, norm.bias.data
