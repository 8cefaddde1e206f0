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

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from packhorse.engines.packed.architecture import Architecture
from packhorse.errors import ModelError, first_line
from packhorse.models.checkpoint import open_checkpoint
from packhorse.quantization.hadamard import rotation_matrix

_HEAD = "lm_head.weight"
_AGAIN = "copy or fetch the model again, preferably as safetensors"
_DAMAGED = "the files do not match their config: copy or fetch the model again"


class CheckpointTensors:
    """Tensors of a Hugging Face folder as float32, read on demand."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tensors: dict[str, tuple[Any, str]] = {}
        checkpoint = open_checkpoint(folder, allow_pickle=True)
        for file in checkpoint.weights:
            for name, opened in _open(folder / file, checkpoint.pickled):
                bare = name.removeprefix("model.").removeprefix("transformer.")
                self._tensors[bare] = (opened, name)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def read(self, name: str, *shape: int) -> Tensor:
        """Return a stored tensor; int8 is multiplied by its scales.

        Raises:
            ModelError: The tensor is missing or has another shape.
        """
        if name not in self:
            raise ModelError(f"{self._folder} lacks the weights {name}", _DAMAGED)
        opened, full = self._tensors[name]
        tensor = self._tensor(opened, full)
        if tuple(tensor.shape) != shape:
            raise ModelError(
                f"the weights {name} in {self._folder} have shape {list(tensor.shape)}, "
                f"expected {list(shape)}",
                _DAMAGED,
            )
        if f"{name}_scale" in self:
            opened, full = self._tensors[f"{name}_scale"]
            return (tensor * self._tensor(opened, full)).contiguous()
        floats = tensor.float().contiguous()
        # A view of the mapped file would keep the whole file in memory and change with it.
        return floats.clone() if floats.data_ptr() == tensor.data_ptr() else floats

    def _tensor(self, opened: Any, full: str) -> Tensor:
        from safetensors import SafetensorError

        try:
            found: Tensor = opened[full] if isinstance(opened, dict) else opened.get_tensor(full)
        except SafetensorError as error:
            raise ModelError(
                f"the weights {full} in {self._folder} cannot be read: {first_line(error)}", _AGAIN
            ) from error
        return found

    def get(self, name: str, *shape: int) -> Tensor:
        """Return a tensor as the model computes with it."""
        return self.read(name, *shape)

    def bias(self, name: str, outputs: int, *, has_bias: bool) -> Tensor:
        """Return the bias of a module, or zeros if the model has none, whatever is stored."""
        return self.get(f"{name}.bias", outputs) if has_bias else torch.zeros(outputs)

    def head(self, arch: Architecture, embeddings: Tensor) -> Tensor:
        """Return the weights [vocabulary, hidden] of the output head.

        Args:
            arch: Sizes of the model.
            embeddings: The embeddings that `get` returned.
        """
        if self._ties_head(arch):
            return embeddings
        return self.get(_HEAD, arch.vocabulary, arch.hidden)

    def _ties_head(self, arch: Architecture) -> bool:
        """Return whether the head is tied, following transformers.

        A head that is stored although the config ties it is tied only if it equals the embeddings.
        """
        if not arch.ties_head or _HEAD not in self:
            return arch.ties_head
        name = "wte.weight" if arch.family == "gpt2" else "embed_tokens.weight"
        shape = arch.vocabulary, arch.hidden
        return torch.equal(self.read(name, *shape), self.read(_HEAD, *shape))


class RotatedTensors(CheckpointTensors):
    """Tensors of a Llama-like model with rotated residual stream and values; see the module."""

    def __init__(self, folder: Path, arch: Architecture) -> None:
        super().__init__(folder)
        self._residual_rotation = rotation_matrix(arch.hidden, seed=0).float()
        self._head_rotation = rotation_matrix(arch.head_size, None).float()

    def get(self, name: str, *shape: int) -> Tensor:
        tensor, owner = self.read(name, *shape), name.split(".")[-2]
        if name == "norm.weight" or owner in ("input_layernorm", "post_attention_layernorm"):
            return torch.ones_like(tensor)
        if owner in ("v_proj", "o_proj"):
            tensor = self._rotate_heads(tensor, owner)
        if owner == "embed_tokens":
            return tensor @ self._residual_rotation
        if owner in ("o_proj", "down_proj"):
            return (tensor.t() @ self._residual_rotation).t().contiguous()
        if name.endswith(".bias") or owner in ("q_norm", "k_norm"):
            return tensor
        norm = "input_layernorm" if "self_attn" in name else "post_attention_layernorm"
        return self._fold_norm_and_rotate(tensor, f"{name.rsplit('.', 3)[0]}.{norm}.weight")

    def head(self, arch: Architecture, embeddings: Tensor) -> Tensor:
        """Return the rotated head; a tied head gets weights of its own."""
        name = "embed_tokens.weight" if self._ties_head(arch) else _HEAD
        return self._fold_norm_and_rotate(self.read(name, *embeddings.shape), "norm.weight")

    def _fold_norm_and_rotate(self, weight: Tensor, norm: str) -> Tensor:
        """Fold the norm before a projection into its weights [outputs, hidden], and rotate."""
        return (weight * self.read(norm, weight.shape[1])) @ self._residual_rotation

    def _rotate_heads(self, tensor: Tensor, owner: str) -> Tensor:
        """Rotate each head: outputs of v_proj, inputs of o_proj."""
        size = len(self._head_rotation)
        if owner == "v_proj":
            heads = tensor.reshape(-1, size, tensor.numel() // len(tensor))
            return torch.einsum("hdi,de->hei", heads, self._head_rotation).reshape(tensor.shape)
        if tensor.dim() == 1:
            return tensor
        return (tensor.reshape(-1, size) @ self._head_rotation).reshape(tensor.shape)


def _open(file: Path, pickled: bool) -> Iterator[tuple[str, Any]]:
    if pickled:
        loaded = _unpickled(file)
        yield from ((name, loaded) for name in loaded)
    else:
        from safetensors import SafetensorError, safe_open

        try:
            opened: Any = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} cannot be read: {first_line(error)}", _AGAIN) from error
        yield from ((name, opened) for name in opened.keys())  # noqa: SIM118 - not a dict


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
