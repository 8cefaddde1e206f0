"""The tensors of a checkpoint by name: as they are, or turned so that int8 loses little.

A few channels of the residual stream are a hundred times larger than the rest, which costs int8
with one scale a row most of its accuracy. RMSNorm commutes with an orthogonal matrix Q, so a model
whose gains were multiplied into the weights that read them computes the same when all that writes
to the stream is multiplied by Q and all that reads it by Q^T; a signed Hadamard matrix spreads
those channels over all. Values and what reads them are turned in the same way within each head
(QuaRot, Ashkboos et al. 2024, arXiv 2404.00456, section 4). Both need no calibration and cost
nothing later.
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
_AGAIN = "copy or fetch the model again, best as safetensors"
_DAMAGED = "the files do not belong to their config; copy or fetch the model again"


class CheckpointTensors:
    """The tensors of a Hugging Face folder as float32, read when they are asked for."""

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
        """A tensor as it is stored, int8 times its scales; ModelError where it is missing or has
        another shape."""
        if name not in self:
            raise ModelError(f"{self._folder} lacks the weights {name}", _DAMAGED)
        opened, full = self._tensors[name]
        tensor = self._tensor(opened, full)
        if tuple(tensor.shape) != shape:
            raise ModelError(
                f"the weights {name} in {self._folder} are {list(tensor.shape)}, not {list(shape)}",
                _DAMAGED,
            )
        if f"{name}_scale" in self:
            opened, full = self._tensors[f"{name}_scale"]
            return (tensor * self._tensor(opened, full)).contiguous()
        floats = tensor.float().contiguous()
        # A tensor of the file's memory would keep all of the file in memory, and change with it.
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
        """A tensor as the model is to compute with it."""
        return self.read(name, *shape)

    def bias(self, name: str, outputs: int, *, has_bias: bool) -> Tensor:
        """The bias of a module where the model has one (`held`), else zeros, whatever is stored."""
        return self.get(f"{name}.bias", outputs) if has_bias else torch.zeros(outputs)

    def head(self, arch: Architecture, embeddings: Tensor) -> Tensor:
        """What the logits are computed with, [vocabulary, hidden]; `embeddings` as `get` gave."""
        if self._ties_head(arch):
            return embeddings
        return self.get(_HEAD, arch.vocabulary, arch.hidden)

    def _ties_head(self, arch: Architecture) -> bool:
        """As transformers has it: a head that is stored though the config ties it is tied only
        where it equals the embeddings."""
        if not arch.ties_head or _HEAD not in self:
            return arch.ties_head
        name = "wte.weight" if arch.family == "gpt2" else "embed_tokens.weight"
        shape = arch.vocabulary, arch.hidden
        return torch.equal(self.read(name, *shape), self.read(_HEAD, *shape))


class RotatedTensors(CheckpointTensors):
    """A model of the Llama kind whose residual stream and values are turned; see the module."""

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
        """A head that shares its numbers with the embeddings gets its own."""
        name = "embed_tokens.weight" if self._ties_head(arch) else _HEAD
        return self._fold_norm_and_rotate(self.read(name, *embeddings.shape), "norm.weight")

    def _fold_norm_and_rotate(self, weight: Tensor, norm: str) -> Tensor:
        """Weights [outputs, hidden] of a product of what `norm` gives."""
        return (weight * self.read(norm, weight.shape[1])) @ self._residual_rotation

    def _rotate_heads(self, tensor: Tensor, owner: str) -> Tensor:
        """The numbers of each head: outputs of v_proj, inputs of o_proj."""
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
        yield from ((name, opened) for name in opened.keys())  # noqa: SIM118 - no dict


def _unpickled(file: Path) -> dict[str, Tensor]:
    """The tensors of a .bin file, mapped into memory where its format allows; no code of it is run.
    ModelError for what holds none or is damaged."""
    try:
        try:
            loaded: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files in the format before torch 1.6 cannot be mapped
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises what it meets
        raise ModelError(f"{file} cannot be read: {first_line(error)}", _AGAIN) from error
    if not isinstance(loaded, dict):
        raise ModelError(f"{file} holds no weights by name", _AGAIN)
    return {name: each for name, each in loaded.items() if isinstance(each, Tensor)}
