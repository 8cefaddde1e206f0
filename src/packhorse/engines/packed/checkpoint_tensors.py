"""Tensors of a checkpoint as the engine computes with them, or rotated to reduce the int8 error.

`Decoder` says how a family stores them. Here every family gets the form of Llama: queries, keys and
values apart, channels of a head in the order of `Decoder.head_order`, scale factors folded into
weights or gains.

A few channels of the residual stream are a hundred times larger than the others, which costs int8
with one scale per row most of its accuracy. RMSNorm commutes with an orthogonal matrix Q. So a
model whose norm weights were folded into the projections that read them computes the same if
everything that writes to the residual stream is multiplied by Q and everything that reads it by
Q^T; a signed Hadamard matrix spreads those channels over all others. Values and the output
projection are rotated in the same way within each head (QuaRot, Ashkboos et al. 2024, arXiv
2404.00456, section 4). Both need no calibration data and cost nothing at run time. A model whose
residual stream cannot be rotated (`Decoder.rotates_residual`) gets the second one alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from packhorse.engines.packed.architecture import Architecture
from packhorse.errors import ModelError, first_line
from packhorse.models.checkpoint import open_checkpoint
from packhorse.models.safetensors_data import SafetensorsReader
from packhorse.quantization.hadamard import Rotation

_HEAD = "lm_head.weight"
_ALL = slice(None)
_BIAS = {
    **dict.fromkeys(("query", "key", "value"), "qkv_bias"), "output": "output_bias",
    **dict.fromkeys(("gate", "up", "down"), "mlp_bias"),
}  # fmt: skip
"""Field of `Decoder` that says whether a projection has a bias."""
_ROWS_AT_ONCE = 4096
_AGAIN = "copy or fetch the model again, preferably as safetensors"
_DAMAGED = "the files do not match their config: copy or fetch the model again"


class CheckpointTensors:
    """Tensors of a Hugging Face folder as float32, each read when it is asked for.

    Nothing is kept in memory and no safetensors file is mapped: the peak is that of one tensor.

    Args:
        folder: The folder.
        arch: Sizes of the model.
    """

    def __init__(self, folder: Path, arch: Architecture) -> None:
        self._folder, self.arch = folder, arch
        self._tensors: dict[str, tuple[Any, str]] = {}
        checkpoint = open_checkpoint(folder, allow_pickle=True)
        for file in checkpoint.weights:
            if checkpoint.pickled:
                opened: Any = _unpickled(folder / file)
                names = list(opened)
            else:
                opened = SafetensorsReader(folder / file)
                names = list(opened.entries)
            self._tensors |= {_bare(name): (opened, name) for name in names}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def _shape(self, name: str) -> tuple[int, ...]:
        opened, full = self._tensors[name]
        return tuple(opened[full].shape if isinstance(opened, dict) else opened.entries[full].shape)

    def read(self, name: str, *shape: int, rows: slice = _ALL) -> Tensor:
        """Read a stored tensor, or some of its rows, into newly allocated memory.

        Args:
            name: Name without the prefix of the model.
            shape: The expected shape.
            rows: Part of the first dimension.

        Raises:
            ModelError: The tensor is missing or has another shape.
        """
        if name not in self:
            raise ModelError(f"{self._folder} lacks the weights {name}", _DAMAGED)
        if self._shape(name) != shape:
            raise ModelError(
                f"the weights {name} in {self._folder} have shape {list(self._shape(name))}, "
                f"expected {list(shape)}",
                _DAMAGED,
            )
        opened, full = self._tensors[name]
        if isinstance(opened, SafetensorsReader):
            return opened.read(full, rows)
        found: Tensor = opened[full][rows] if shape else opened[full]
        # A view of the mapped file would keep the whole file in memory and change with it.
        return found.detach().to(torch.float32, copy=True).contiguous()

    def projection(self, layer: int, part: str, expert: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the weights [outputs, inputs] and the bias [outputs] of a projection.

        Args:
            layer: Number of the layer.
            part: Field of `Names`: "query", "key", "value", "output", "gate", "up", "down" or
                "router".
            expert: Number of the expert; None for a projection that is not one of an expert.
        """
        decoder, name = self.arch.decoder, getattr(self.arch.decoder.names, part)
        stored = f"{decoder.names.layer.format(layer)}.{name.format(expert)}"
        rows, inputs = decoder.stored_rows(part), decoder.inputs(part)
        total = sum(map(decoder.outputs, decoder.stored_with(part)))
        if expert is not None and "{}" not in name:
            one = slice(expert, expert + 1)
            shape = decoder.experts, total, inputs
            weight = self.read(f"{stored}.weight", *shape, rows=one)[0, rows].contiguous()
        elif decoder.is_transposed:
            weight = self.read(f"{stored}.weight", inputs, total)[:, rows].t().contiguous()
        else:
            weight = self.read(f"{stored}.weight", total, inputs, rows=rows)
        if getattr(decoder, _BIAS.get(part, ""), False):
            bias = self.read(f"{stored}.bias", total)[rows]
        else:
            bias = torch.zeros(len(weight))
        if part in ("query", "key"):
            weight, bias = self._in_head_order(weight), self._in_head_order(bias)
        if (scale := self._scale(part)) != 1:
            weight, bias = weight.mul_(scale), bias.mul_(scale)
        return weight, bias

    def _name(self, part: str) -> str:
        return str(getattr(self.arch.decoder.names, part))

    def _scale(self, part: str) -> float:
        """Return the factor of a projection; it goes into the gain of the norm after it, if any."""
        decoder, names = self.arch.decoder, self.arch.decoder.names
        if part in ("query", "query_norm"):
            factor = decoder.attention_scale * decoder.head_size**0.5
            return factor if bool(names.query_norm) == (part == "query_norm") else 1.0
        norms = {"output": "attention_post_norm", "down": "mlp_post_norm"}
        if part in norms:
            return 1.0 if self._name(norms[part]) else decoder.residual_scale
        return decoder.residual_scale if part in norms.values() else 1.0

    def _in_head_order(self, rows: Tensor) -> Tensor:
        """Return rows [heads x head size, ...] with the channels of each head in order."""
        order = self.arch.decoder.head_order
        if order is None:
            return rows
        heads = rows.reshape(-1, self.arch.head_size, rows.numel() // len(rows))
        return heads[:, list(order)].reshape(rows.shape)

    def norm(self, part: str, layer: int | None = None) -> tuple[Tensor, Tensor] | None:
        """Return the gain and the bias [hidden] of a norm; None if the family has none there.

        Args:
            part: Field of `Names`.
            layer: Number of the layer; None for the norm before the head.
        """
        decoder = self.arch.decoder
        if not (name := self._name(part)):
            return None
        stored = name if layer is None else f"{decoder.names.layer.format(layer)}.{name}"
        gain = self.read(f"{stored}.weight", decoder.hidden) + decoder.norm_offset
        has_bias = decoder.norm_bias
        bias = self.read(f"{stored}.bias", decoder.hidden) if has_bias else torch.zeros_like(gain)
        scale = self._scale(part)
        if part == "final_norm":
            scale = decoder.logit_scale / (decoder.embedding_scale if self.ties_head else 1.0)
        return gain * scale, bias * scale

    def head_norm(self, part: str, layer: int) -> Tensor:
        """Return the gain of the query or key norm, [head size] or [heads x head size]."""
        decoder = self.arch.decoder
        size, name = decoder.head_size, self._name(part)
        if decoder.norms_whole_rows:
            size *= decoder.heads if part == "query_norm" else decoder.kv_heads
        stored = f"{decoder.names.layer.format(layer)}.{name}.weight"
        gain = self._in_head_order(self.read(stored, size) + decoder.norm_offset)
        return gain * self._scale(part)

    def embeddings(self, rows: slice = _ALL) -> Tensor:
        """Return rows of the embeddings [vocabulary, hidden]."""
        return self._read_table(self.embedding_name, rows, self.arch.decoder.embedding_scale)

    def head(self, rows: slice = _ALL) -> Tensor:
        """Return rows of the output head [vocabulary, hidden]."""
        scale = self.arch.decoder.embedding_scale if self.ties_head else 1.0
        return self._read_table(self.head_name, rows, scale)

    def position_embeddings(self) -> Tensor:
        """Return the learned position embeddings [positions, hidden]."""
        decoder = self.arch.decoder
        return self.read(f"{decoder.names.positions}.weight", decoder.positions, decoder.hidden)

    def _read_table(self, name: str, rows: slice, scale: float) -> Tensor:
        table = self.read(name, self.arch.vocabulary, self.arch.decoder.hidden, rows=rows)
        return table if scale == 1 else table.mul_(scale)

    @property
    def embedding_name(self) -> str:
        return f"{self.arch.decoder.names.embedding}.weight"

    @property
    def head_name(self) -> str:
        return self.embedding_name if self.ties_head else _HEAD

    @cached_property
    def ties_head(self) -> bool:
        """Whether the head is tied, following transformers.

        A head that is stored although the config ties it is tied only if it equals the embeddings.
        """
        if not self.arch.ties_head or _HEAD not in self:
            return self.arch.ties_head
        shape = self.arch.vocabulary, self.arch.decoder.hidden
        return all(
            torch.equal(
                self.read(self.embedding_name, *shape, rows=rows),
                self.read(_HEAD, *shape, rows=rows),
            )
            for rows in row_slices(self.arch.vocabulary, _ROWS_AT_ONCE)
        )


class RotatedTensors(CheckpointTensors):
    """Tensors with the residual stream, if possible, and values rotated; see the module."""

    def __init__(self, folder: Path, arch: Architecture) -> None:
        super().__init__(folder, arch)
        self._residual = (
            Rotation.of(arch.decoder.hidden, seed=0) if arch.decoder.rotates_residual else None
        )
        self._values = Rotation.of(arch.head_size, None)

    def projection(self, layer: int, part: str, expert: int | None = None) -> tuple[Tensor, Tensor]:
        weight, bias = super().projection(layer, part, expert)
        if part == "value":
            weight, bias = self._rotate_values(weight), self._rotate_values(bias)
        if part == "output":
            weight = self._values.rotate_inputs(weight.reshape(-1, self.arch.head_size)).view(
                weight.shape
            )
        if self._residual is None:
            return weight, bias
        if part in ("output", "down"):
            bias = self._residual.rotate_outputs(bias[:, None])[:, 0]
            return self._residual.rotate_outputs(weight), bias
        norm = "mlp_norm" if part in ("gate", "up", "router") else "attention_norm"
        return self._fold_norm_and_rotate(weight, super().norm(norm, layer)), bias

    def norm(self, part: str, layer: int | None = None) -> tuple[Tensor, Tensor] | None:
        found = super().norm(part, layer)
        if found is None or self._residual is None:
            return found
        return torch.ones_like(found[0]), found[1]

    def embeddings(self, rows: slice = _ALL) -> Tensor:
        table = super().embeddings(rows)
        return table if self._residual is None else self._residual.rotate_inputs(table)

    def head(self, rows: slice = _ALL) -> Tensor:
        table = super().head(rows)
        if self._residual is None:
            return table
        return self._fold_norm_and_rotate(table, super().norm("final_norm"))

    def _fold_norm_and_rotate(self, weight: Tensor, norm: tuple[Tensor, Tensor] | None) -> Tensor:
        """Fold the norm before a projection into its weights [outputs, hidden], and rotate."""
        assert self._residual is not None
        return self._residual.rotate_inputs(weight if norm is None else weight.mul_(norm[0]))

    def _rotate_values(self, rows: Tensor) -> Tensor:
        """Rotate the outputs [heads x head size, ...] of the value projection within each head."""
        size = self.arch.head_size
        heads = rows.reshape(-1, size, rows.numel() // len(rows)).transpose(1, 2)
        rotated = self._values.rotate_inputs(heads.reshape(-1, size))
        return rotated.view(heads.shape).transpose(1, 2).reshape(rows.shape)


class ModelTensors(CheckpointTensors):
    """Tensors of a transformers model whose weights are changed and rounded already.

    Args:
        tensors: Its parameters by name, float32.
        arch: Sizes of the model.
    """

    def __init__(self, tensors: Mapping[str, Tensor], arch: Architecture) -> None:
        self._folder, self.arch = Path("model"), arch
        opened = dict(tensors)
        self._tensors = {_bare(name): (opened, name) for name in opened}


def row_slices(count: int, step: int) -> list[slice]:
    """Return the parts of `count` rows, `step` at a time."""
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _bare(name: str) -> str:
    return name.removeprefix("model.").removeprefix("transformer.")


def _unpickled(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a .bin file, memory-mapped if its format allows. No code of it is run.

    Raises:
        ModelError: The file is damaged or holds no tensors.
    """
    try:
        try:
            loaded: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before torch 1.6 cannot be mapped
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling can raise anything
        raise ModelError(f"{file} cannot be read: {first_line(error)}", _AGAIN) from error
    if not isinstance(loaded, dict):
        raise ModelError(f"{file} holds no weights by name", _AGAIN)
    return {name: each for name, each in loaded.items() if isinstance(each, Tensor)}
