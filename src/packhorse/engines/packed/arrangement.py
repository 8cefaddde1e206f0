"""Arrange the weights of a checkpoint for the engine, and round them to int8.

Layers are arranged one after the other, so that only a few are held in float32.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packhorse.engines.packed.architecture import Architecture
from packhorse.engines.packed.checkpoint_tensors import (
    CheckpointTensors,
    ModelTensors,
    RotatedTensors,
    row_slices,
)
from packhorse.engines.packed.layers import (
    HEAD_COLUMNS,
    LOW_DIGIT_STEPS,
    Floats,
    Layer,
    Linear,
    Norm,
    Weights,
)
from packhorse.engines.packed.panels import (
    PANEL,
    column_offsets,
    pack_float_panels,
    pack_panels,
    panels_shape,
)
from packhorse.profiling.cores import usable_cores
from packhorse.quantization.online_hadamard import fuse_inverse_hadamard

_ROUNDED_AT_ONCE = 16 * PANEL
_AT_ONCE = 2
"""Layers that are arranged at the same time, each by a part of the cores."""
T = TypeVar("T")


def open_tensors(folder: Path, arch: Architecture, *, rotated: bool) -> CheckpointTensors:
    """Open the tensors of a checkpoint, `rotated` if the family allows it."""
    kind = RotatedTensors if rotated and arch.family != "gpt2" else CheckpointTensors
    return kind(folder, arch)


def arrange(tensors: CheckpointTensors, quantized: bool, native: bool) -> Weights:
    """Return all weights of a model, arranged one layer at a time."""
    build, arch = WeightBuilder(tensors, quantized, native), tensors.arch
    layers = tuple(in_order(build.layers()))
    positions = build.position_embeddings()
    norm = build.final_norm()
    if quantized:
        return Weights(
            np.concatenate(list(in_order(build.half_embeddings()))),
            positions, layers, norm, tuple(in_order(build.head())),
        )  # fmt: skip
    if native:
        panels, linears = build.float_head()
        table = panels if tensors.ties_head else tensors.embeddings().numpy()
        return Weights(table, positions, layers, norm, linears)
    embeddings = tensors.embeddings()
    head = embeddings if tensors.ties_head else tensors.head()
    parts = [build.linear(head[rows]) for rows in row_slices(arch.vocabulary, HEAD_COLUMNS)]
    return Weights(embeddings.numpy(), positions, layers, norm, tuple(parts))


def in_order(tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield the results of tasks in order; _AT_ONCE of them are computed at the same time.

    At most one result waits to be taken, which bounds memory.
    """
    cores = min(usable_cores(), torch.get_num_threads())
    count = min(_AT_ONCE, cores)
    if count == 1:
        yield from (task() for task in tasks)
        return
    local = threading.local()

    def compute(task: Callable[[], T]) -> T:
        if not hasattr(local, "threads"):
            local.threads = cores // count
            torch.set_num_threads(local.threads)
        with torch.no_grad():
            return task()

    with ThreadPoolExecutor(count) as pool:
        running: deque[Future[T]] = deque()
        try:
            for task in tasks:
                running.append(pool.submit(compute, task))
                if len(running) > count:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for each in running:
                each.cancel()


def _with_float_panels(panels: Floats, outputs: int, bias: Floats) -> Linear:
    """Return a float32 layer with weights in panels [panels, inputs, PANEL]."""
    ones, zeros = np.ones(outputs, np.float32), np.zeros(len(panels) * PANEL, np.int32)
    return Linear(outputs, panels.shape[1], ones, bias, panels=panels, offsets=zeros)


@dataclass(frozen=True, slots=True)
class WeightBuilder:
    """Arranges the weights of a model.

    Attributes:
        tensors: The tensors of its checkpoint.
        quantized: Whether linear layers become int8.
        native: Whether int8 weights stay in panels.
        qkv_digits: int8 digits of QKV weights.
    """

    tensors: CheckpointTensors
    quantized: bool
    native: bool
    qkv_digits: int = 2

    @property
    def arch(self) -> Architecture:
        return self.tensors.arch

    def layers(self) -> Iterator[Callable[[], Layer]]:
        """Yield one task per layer that returns it."""
        layer = _gpt2_layer if self.arch.family == "gpt2" else _llama_layer
        for number in range(self.arch.layers):
            yield partial(layer, self.tensors, self, number)

    def half_embeddings(self) -> Iterator[Callable[[], NDArray[np.int16]]]:
        """Yield tasks that return rows of the embeddings as the bits of float16."""

        def convert(rows: slice) -> NDArray[np.int16]:
            found: NDArray[np.int16] = (
                self.tensors.embeddings(rows).half().view(torch.int16).numpy()
            )
            return found

        for rows in row_slices(self.arch.vocabulary, HEAD_COLUMNS):
            yield partial(convert, rows)

    def head(self) -> Iterator[Callable[[], Linear]]:
        """Yield one task per part of the int8 head."""
        for rows in row_slices(self.arch.vocabulary, HEAD_COLUMNS):
            yield partial(lambda rows: self.linear(self.tensors.head(rows)), rows)

    def float_head(self) -> tuple[Floats, tuple[Linear, ...]]:
        """Return the panels of the float32 head, and its parts, which share their memory."""
        vocabulary, hidden = self.arch.vocabulary, self.arch.hidden
        panels = np.empty((-(-vocabulary // PANEL), hidden, PANEL), np.float32)
        parts = []
        for rows in row_slices(vocabulary, HEAD_COLUMNS):
            first, count = rows.start // PANEL, rows.stop - rows.start
            some = panels[first : first - (-count // PANEL)]
            some[:] = pack_float_panels(self.tensors.head(rows).numpy())
            parts.append(_with_float_panels(some, count, np.zeros(count, np.float32)))
        return panels, tuple(parts)

    def final_norm(self) -> Norm:
        return self.norm("ln_f" if self.arch.family == "gpt2" else "norm")

    def position_embeddings(self) -> Floats:
        if self.arch.family != "gpt2":
            return np.empty((0, 0), np.float32)
        positions = self.arch.positions, self.arch.hidden
        found: Floats = self.tensors.get("wpe.weight", *positions).numpy()
        return found

    def linear(self, weight: Tensor, bias: Tensor | None = None, *, digits: int = 1) -> Linear:
        """Return the layer with weights [outputs, inputs], rounded to nearest in int8."""
        outputs, inputs = weight.shape
        if not self.quantized:
            offsets = np.zeros(outputs, np.float32) if bias is None else bias.contiguous().numpy()
            if not self.native:
                ones = np.ones(outputs, np.float32)
                return Linear(outputs, inputs, ones, offsets, weight.t())
            return _with_float_panels(pack_float_panels(weight.numpy()), outputs, offsets)
        shape = panels_shape(outputs, inputs)
        padded = shape[0] * PANEL
        panels = [np.empty(shape, np.int8) for _ in range(digits)]
        sums = [np.zeros(padded, np.int32) for _ in range(digits)]
        scales, biases = np.ones(padded, np.float32), np.zeros(padded, np.float32)
        if bias is not None:
            biases[:outputs] = bias.numpy()
        for rows in row_slices(outputs, _ROUNDED_AT_ONCE):
            steps = weight[rows]
            step = steps.abs().amax(dim=1).clamp_min_(1e-30) / 127
            steps = steps / step[:, None]
            whole = steps.round()
            numbers = [whole]
            if digits > 1:
                numbers.append(((steps - whole) * LOW_DIGIT_STEPS).round())
                step /= LOW_DIGIT_STEPS
            scales[rows] = step.numpy()
            for place, number in enumerate(numbers):
                digit = number.to(torch.int8).numpy()
                first = rows.start // PANEL
                some = pack_panels(digit)
                panels[place][first : first + len(some)] = some
                sums[place][rows] = column_offsets(digit)
        low = {"low_panels": panels[1], "low_offsets": sums[1]} if digits > 1 else {}
        found = Linear(outputs, inputs, scales, biases, panels=panels[0], offsets=sums[0], **low)  # type: ignore[arg-type]
        return found if self.native else found.for_torch()

    def norm(self, name: str) -> Norm:
        hidden = self.arch.hidden
        return Norm(
            self.tensors.get(f"{name}.weight", hidden).numpy(),
            self.tensors.bias(name, hidden, has_bias=self.arch.family == "gpt2").numpy(),
        )

    def head_norm(self, name: str) -> Floats:
        if not self.arch.has_head_norms:
            return np.empty(0, np.float32)
        weight = self.tensors.get(f"{name}.weight", self.arch.head_size)
        found: Floats = self.pad_heads(weight[:, None])[:, 0].contiguous().numpy()
        return found

    def pad_heads(self, rows: Tensor) -> Tensor:
        """Pad both halves of each head: [heads x head size, n] -> [heads x padded head, n]."""
        arch, inputs = self.arch, rows.shape[1]
        half, whole = arch.head_size // 2, arch.padded_head // 2
        if half == whole:
            return rows
        halves = rows.reshape(-1, half, inputs)
        return torch.nn.functional.pad(halves, (0, 0, 0, whole - half)).reshape(-1, inputs)

    def down(self, weight: Tensor, bias: Tensor) -> Linear:
        """Return the down projection [hidden, inner]; in int8 its input is Hadamard-rotated."""
        rotates = self.quantized and not isinstance(self.tensors, ModelTensors)
        return self.linear(fuse_inverse_hadamard(weight) if rotates else weight, bias)


def _llama_layer(tensors: CheckpointTensors, build: WeightBuilder, number: int) -> Layer:
    arch, start = build.arch, f"layers.{number}."
    width, hidden, inner = arch.heads * arch.head_size, arch.hidden, arch.inner
    kv_width = arch.kv_heads * arch.head_size
    qkv, output, mlp = arch.biases

    def concatenate(names: tuple[str, ...], widths: tuple[int, ...]) -> Linear:
        weights, biases = [], []
        for name, outputs in zip(names, widths, strict=True):
            weight = tensors.get(f"{start}{name}.weight", outputs, hidden)
            is_head = name.startswith("self_attn")
            bias = tensors.bias(f"{start}{name}", outputs, has_bias=qkv if is_head else mlp)[
                :, None
            ]
            weights.append(build.pad_heads(weight) if is_head else weight)
            biases.append(build.pad_heads(bias) if is_head else bias)
        digits = build.qkv_digits if names[0].startswith("self_attn") else 1
        return build.linear(torch.cat(weights), torch.cat(biases)[:, 0], digits=digits)

    out = tensors.get(f"{start}self_attn.o_proj.weight", hidden, width)
    down = tensors.get(f"{start}mlp.down_proj.weight", hidden, inner)
    return Layer(
        attention_norm=build.norm(f"{start}input_layernorm"),
        qkv=concatenate(
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            (width, kv_width, kv_width),
        ),
        out=build.linear(
            build.pad_heads(out.t().contiguous()).t().contiguous(),
            tensors.bias(f"{start}self_attn.o_proj", hidden, has_bias=output),
        ),
        mlp_norm=build.norm(f"{start}post_attention_layernorm"),
        up=concatenate(("mlp.gate_proj", "mlp.up_proj"), (inner, inner)),
        down=build.down(down, tensors.bias(f"{start}mlp.down_proj", hidden, has_bias=mlp)),
        query_norm=build.head_norm(f"{start}self_attn.q_norm"),
        key_norm=build.head_norm(f"{start}self_attn.k_norm"),
    )


def _gpt2_layer(tensors: CheckpointTensors, build: WeightBuilder, number: int) -> Layer:
    """Return a GPT-2 layer; its weights are stored as [inputs, outputs] and QKV as one."""
    arch, start = build.arch, f"h.{number}."
    hidden, inner = arch.hidden, arch.inner

    def weight(name: str, inputs: int, outputs: int) -> Tensor:
        return tensors.get(f"{start}{name}.weight", inputs, outputs).t().contiguous()

    def bias(name: str, outputs: int) -> Tensor:
        return tensors.get(f"{start}{name}.bias", outputs)

    qkv = build.pad_heads(weight("attn.c_attn", hidden, 3 * hidden))
    qkv_bias = build.pad_heads(bias("attn.c_attn", 3 * hidden)[:, None])[:, 0]
    out = (
        build.pad_heads(tensors.get(f"{start}attn.c_proj.weight", hidden, hidden)).t().contiguous()
    )
    none = np.empty(0, np.float32)
    return Layer(
        attention_norm=build.norm(f"{start}ln_1"),
        qkv=build.linear(qkv, qkv_bias, digits=build.qkv_digits),
        out=build.linear(out, bias("attn.c_proj", hidden)),
        mlp_norm=build.norm(f"{start}ln_2"),
        up=build.linear(weight("mlp.c_fc", hidden, inner), bias("mlp.c_fc", inner)),
        down=build.down(weight("mlp.c_proj", inner, hidden), bias("mlp.c_proj", hidden)),
        query_norm=none,
        key_norm=none,
    )
