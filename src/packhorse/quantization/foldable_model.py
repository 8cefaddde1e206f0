"""The linear layers of a model, by one set of names for all families.

A linear group is a set of projections that read the same activation, which int8 rounds (q, k and v;
gate and up). Its channels can be divided by any positive scales without changing the model, if the
tensors that produce the activation are linear in them (the gain of a norm, the rows of a
projection), and the columns of the group's projections are multiplied by the same scales.
SmoothQuant's implementations call the producers "smooth layer" and the projections "balance
layers".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from packhorse.decoders import Decoder, describe

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
        offset: What the model adds to the first producer: 1 for the gain of Gemma's norms.
    """

    layer: int
    kind: Kind
    producers: tuple[Tensor, ...]
    projections: tuple[Projection, ...]
    heads: tuple[int, int] | None = None
    offset: float = 0.0

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
        for place, producer in enumerate(self.producers):
            offset = 0.0 if place else self.offset
            divisors = scales.view(-1, *[1] * (producer.dim() - 1))
            producer.add_(offset).div_(divisors).sub_(offset)
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
        decoder: Its description.
        norms: Gain of each norm of the residual stream, and the projections that read it; () if the
            stream cannot be rotated.
        writers: Projections that add to the residual stream.
        attentions: Layers whose values can be rotated within their heads.
    """

    model: Any
    body: Any
    embedding: nn.Embedding
    groups: tuple[LinearGroup, ...]
    decoder: Decoder
    norms: tuple[tuple[Tensor, tuple[Projection, ...]], ...] = ()
    writers: tuple[Projection, ...] = ()
    attentions: tuple[Attention, ...] = ()

    @property
    def hidden_size(self) -> int:
        return self.embedding.embedding_dim

    @property
    def head(self) -> LinearGroup:
        return self.groups[-1]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of the last hidden states."""
        logits: Tensor = self.head.projections[0].module(hidden) * self.decoder.logit_scale
        cap = self.decoder.logit_cap
        return cap * torch.tanh(logits / cap) if cap else logits

    def scalable_groups(self) -> list[LinearGroup]:
        """Return the groups that can be smoothed."""
        return [group for group in self.groups if group.producers]


def make_foldable(model: Any) -> FoldableModel:
    """Describe a loaded transformers model of a family in `methods.FAMILIES`.

    A head that is tied to the embedding gets its own weights: `tie_word_embeddings` of the config
    becomes False.
    """
    _untie(model)
    decoder = describe(model.config)
    body = model.base_model
    layers = body.get_submodule(decoder.names.layer.rpartition(".")[0])
    groups: list[LinearGroup] = []
    norms: list[tuple[Tensor, tuple[Projection, ...]]] = []
    writers: list[Projection] = []
    attentions: list[Attention] = []
    for number, layer in enumerate(layers):
        place = _LayerParts(decoder, layer)
        v, output, gate, up, down = map(place.projection, ("value", "output", "gate", "up", "down"))
        qkv, mlp = place.modules("query", "key", "value"), place.modules("gate", "up")
        before, between = place.norm("attention_norm"), place.norm("mlp_norm")
        norms += [(before[0], qkv), (between[0], mlp)] if decoder.rotates_residual else []
        writers += [*output, *down]
        if decoder.norm == "rms":
            attentions.append(Attention(v[0], output[0], decoder.head_size))
        shared = decoder.kv_heads, decoder.heads // decoder.kv_heads
        groups += [
            LinearGroup(number, "qkv", before, qkv, offset=decoder.norm_offset),
            LinearGroup(number, "o", _output_tensors(v[0]), output, shared),
            LinearGroup(number, "mlp", between, mlp, offset=decoder.norm_offset),
            LinearGroup(number, "down", _output_tensors(up[0]) if gate else (), down),
        ]
    head = (_as_projection(model.get_output_embeddings()),)
    last = _gain_and_bias(body.get_submodule(decoder.names.final_norm), decoder)
    norms += [(last[0], head)] if decoder.rotates_residual else []
    groups.append(LinearGroup(decoder.layers, "head", last, head, offset=decoder.norm_offset))
    return FoldableModel(
        model, body, model.get_input_embeddings(), tuple(groups), decoder, tuple(norms),
        tuple(writers), tuple(attentions),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _LayerParts:
    """Projections and norms of a layer of a transformers model by the names of `Names`."""

    decoder: Decoder
    layer: nn.Module

    def projection(self, part: str) -> tuple[Projection, ...]:
        """Return a projection, which may be some rows of a module; () if there is none."""
        if not (name := getattr(self.decoder.names, part)):
            return ()
        whole, rows = _as_projection(self.layer.get_submodule(name)), self.decoder.stored_rows(part)
        bias = None if whole.bias is None else whole.bias[rows]
        return (Projection(whole.module, whole.weight[rows], bias),)

    def modules(self, *parts: str) -> tuple[Projection, ...]:
        """Return the modules of projections, each once."""
        names = dict.fromkeys(getattr(self.decoder.names, part) for part in parts)
        return tuple(_as_projection(self.layer.get_submodule(name)) for name in names if name)

    def norm(self, part: str) -> tuple[Tensor, ...]:
        """Return the gain, and bias, of a norm; () if there is none."""
        name = getattr(self.decoder.names, part)
        return _gain_and_bias(self.layer.get_submodule(name), self.decoder) if name else ()


def _untie(model: Any) -> None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight.data_ptr() == embedding.weight.data_ptr():
        head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False


def _as_projection(module: Any) -> Projection:
    weight = module.weight.data
    bias = None if module.bias is None else module.bias.data
    return Projection(module, weight if isinstance(module, nn.Linear) else weight.T, bias)


def _output_tensors(projection: Projection) -> tuple[Tensor, ...]:
    """Return the tensors to divide in order to divide the projection's output."""
    bias = projection.bias
    return (projection.weight,) if bias is None else (projection.weight, bias)


def _gain_and_bias(norm: nn.Module, decoder: Decoder) -> tuple[Tensor, ...]:
    """Return the tensors to divide in order to divide the output of a norm."""
    gain: Any = norm.weight
    bias: Any = norm.bias if decoder.norm_bias else None
    return (gain.data,) if bias is None else (gain.data, bias.data)
