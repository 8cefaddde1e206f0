"""Tensors of a checkpoint by name, unchanged or rotated to reduce the int8 error.

A few channels of the residual stream are a hundred times larger than the others, which costs int8
with one scale per row most of its accuracy. RMSNorm commutes with an orthogonal matrix Q. So a
model whose norm weights were folded into the projections that read them computes the same if
everything that writes to the residual stream is multiplied by Q and everything that reads it by
Q^T; a signed Hadamard matrix spreads those channels over all others. Values and the output
projection are rotated in the same way within each head (QuaRot, Ashkboos et al. 2024, arXiv
2404.00456, section 4). Both need no calibration data and cost nothing at run time.
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

    rotates = False
    """Whether `get` rotates the residual stream."""

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

    def get(self, name: str, *shape: int, rows: slice = _ALL) -> Tensor:
        """Return a tensor, or some of its rows, as the model computes with it."""
        return self.read(name, *shape, rows=rows)

    def bias(self, name: str, outputs: int, *, has_bias: bool) -> Tensor:
        """Return the bias of a module, or zeros if the model has none, whatever is stored."""
        return self.get(f"{name}.bias", outputs) if has_bias else torch.zeros(outputs)

    def embeddings(self, rows: slice = _ALL) -> Tensor:
        """Return rows of the embeddings [vocabulary, hidden]."""
        return self.get(self.embedding_name, self.arch.vocabulary, self.arch.hidden, rows=rows)

    def head(self, rows: slice = _ALL) -> Tensor:
        """Return rows of the output head [vocabulary, hidden]."""
        return self.get(self.head_name, self.arch.vocabulary, self.arch.hidden, rows=rows)

    @property
    def embedding_name(self) -> str:
        return "wte.weight" if self.arch.family == "gpt2" else "embed_tokens.weight"

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
        shape = self.arch.vocabulary, self.arch.hidden
        return all(
            torch.equal(
                self.read(self.embedding_name, *shape, rows=rows),
                self.read(_HEAD, *shape, rows=rows),
            )
            for rows in row_slices(self.arch.vocabulary, _ROWS_AT_ONCE)
        )


class RotatedTensors(CheckpointTensors):
    """Tensors of a Llama-like model with rotated residual stream and values; see the module."""

    rotates = True

    def __init__(self, folder: Path, arch: Architecture) -> None:
        super().__init__(folder, arch)
        self._residual = Rotation.of(arch.hidden, seed=0)
        self._values = Rotation.of(arch.head_size, None)

    def get(self, name: str, *shape: int, rows: slice = _ALL) -> Tensor:
        tensor, owner = self.read(name, *shape, rows=rows), name.split(".")[-2]
        if name == "norm.weight" or owner in ("input_layernorm", "post_attention_layernorm"):
            return torch.ones_like(tensor)
        if owner in ("v_proj", "o_proj"):
            tensor = self._rotate_heads(tensor, owner)
        if owner == "embed_tokens":
            return self._residual.rotate_inputs(tensor)
        if owner in ("o_proj", "down_proj"):
            columns = tensor if tensor.dim() > 1 else tensor[:, None]
            return self._residual.rotate_outputs(columns).view(tensor.shape)
        if name.endswith(".bias") or owner in ("q_norm", "k_norm"):
            return tensor
        norm = "input_layernorm" if "self_attn" in name else "post_attention_layernorm"
        return self._fold_norm_and_rotate(tensor, f"{name.rsplit('.', 3)[0]}.{norm}.weight")

    def head(self, rows: slice = _ALL) -> Tensor:
        shape = self.arch.vocabulary, self.arch.hidden
        return self._fold_norm_and_rotate(
            self.read(self.head_name, *shape, rows=rows), "norm.weight"
        )

    def _fold_norm_and_rotate(self, weight: Tensor, norm: str) -> Tensor:
        """Fold the norm before a projection into its weights [outputs, hidden], and rotate."""
        return self._residual.rotate_inputs(weight.mul_(self.read(norm, weight.shape[1])))

    def _rotate_heads(self, tensor: Tensor, owner: str) -> Tensor:
        """Rotate each head: outputs of v_proj, inputs of o_proj."""
        size = self.arch.head_size
        if owner == "v_proj":
            heads = tensor.reshape(-1, size, tensor.numel() // len(tensor)).transpose(1, 2)
            rotated = self._values.rotate_inputs(heads.reshape(-1, size))
            return rotated.view(heads.shape).transpose(1, 2).reshape(tensor.shape)
        if tensor.dim() == 1:
            return tensor
        return self._values.rotate_inputs(tensor.reshape(-1, size)).view(tensor.shape)


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
