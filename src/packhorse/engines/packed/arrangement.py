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
    ROUTER_DIGITS,
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
from packhorse.engines.packed.vectors import LANES
from packhorse.profiling.cores import usable_cores
from packhorse.quantization.online_hadamard import fuse_inverse_hadamard

_ROUNDED_AT_ONCE = 16 * PANEL
_AT_ONCE = 2
"""Layers that are arranged at the same time, each by a part of the cores."""
T = TypeVar("T")


def open_tensors(folder: Path, arch: Architecture, *, rotated: bool) -> CheckpointTensors:
    """Open the tensors of a checkpoint, `rotated` if the family allows it."""
    kind = RotatedTensors if rotated and arch.decoder.norm == "rms" else CheckpointTensors
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
        table = panels if tensors.ties_head else build.pad(tensors.embeddings()).numpy()
        return Weights(table, positions, layers, norm, linears)
    embeddings = build.pad(tensors.embeddings())
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
        for number in range(self.arch.layers):
            yield partial(self.layer, number)

    def layer(self, number: int) -> Layer:
        """Return a layer."""
        tensors, hidden, inner = self.tensors, self.arch.hidden, self.arch.inner
        decoder = self.arch.decoder
        inputs = ("gate", "up") if decoder.is_gated else ("up",)
        experts = range(decoder.experts) if decoder.experts else (None,)
        up = [tensors.projection(number, part, each) for each in experts for part in inputs]
        downs = [tensors.projection(number, "down", each) for each in experts]
        out, out_bias = tensors.projection(number, "output")
        qkv = [tensors.projection(number, part) for part in ("query", "key", "value")]
        return Layer(
            attention_norm=self.norm("attention_norm", number),
            qkv=self.linear(
                torch.cat([self.pad_heads(weight) for weight, _ in qkv]),
                torch.cat([self.pad_heads(bias[:, None])[:, 0] for _, bias in qkv]),
                digits=self.qkv_digits,
            ),
            out=self.linear(
                self.pad_heads(out.t().contiguous()).t().contiguous(),
                out_bias,
                outputs=hidden,
                multiple=LANES,
            ),
            attention_post_norm=self.norm("attention_post_norm", number),
            mlp_norm=self.norm("mlp_norm", number),
            router=self._router(number) if decoder.experts else None,
            up=self.linear(
                torch.cat([self.pad(weight, inner) for weight, _ in up]),
                torch.cat([self.pad(bias, inner) for _, bias in up]),
            ),
            down=self.linear(
                torch.cat([self.pad(self._rotated_inputs(weight), hidden) for weight, _ in downs]),
                torch.cat([self.pad(bias, hidden) for _, bias in downs]),
            ),
            mlp_post_norm=self.norm("mlp_post_norm", number),
            query_norm=self.head_norm("query_norm", number),
            key_norm=self.head_norm("key_norm", number),
        )

    def _router(self, number: int) -> Linear:
        weight, bias = self.tensors.projection(number, "router")
        return self.linear(weight, bias, digits=ROUTER_DIGITS, outputs=self.arch.router_width)

    def half_embeddings(self) -> Iterator[Callable[[], NDArray[np.int16]]]:
        """Yield tasks that return rows of the embeddings as the bits of float16."""

        def convert(rows: slice) -> NDArray[np.int16]:
            found: NDArray[np.int16] = (
                self.pad(self.tensors.embeddings(rows)).half().view(torch.int16).numpy()
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
            some[:] = pack_float_panels(self.pad(self.tensors.head(rows)).numpy())
            parts.append(_with_float_panels(some, count, np.zeros(count, np.float32)))
        return panels, tuple(parts)

    def final_norm(self) -> Norm:
        return self.norm("final_norm")

    def position_embeddings(self) -> Floats:
        if not self.arch.positions:
            return np.empty((0, 0), np.float32)
        found: Floats = self.pad(self.tensors.position_embeddings()).numpy()
        return found

    def linear(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        digits: int = 1,
        outputs: int = 0,
        multiple: int = 0,
    ) -> Linear:
        """Return the layer with weights [outputs, inputs], rounded to nearest in int8.

        Args:
            weight: The weights; inputs are padded to whole vectors.
            bias: [outputs] or None.
            digits: Number of int8 digits.
            outputs: Number of outputs in memory; 0 for those of `weight`.
            multiple: See `pad`.
        """
        weight = self.pad(weight, outputs, multiple)
        bias = None if bias is None else self.pad(bias, outputs)
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

    def norm(self, part: str, layer: int | None = None) -> Norm:
        """Return a norm; see `CheckpointTensors.norm`."""
        found = self.tensors.norm(part, layer)
        if found is None:
            return Norm(np.empty(0, np.float32), np.empty(0, np.float32))
        gain, bias = (self.pad(each, self.arch.hidden).numpy() for each in found)
        return Norm(gain, bias)

    def head_norm(self, part: str, layer: int) -> Floats:
        """Return the gain of the query or key norm with padded heads; empty if there is none."""
        if not getattr(self.arch.decoder.names, part):
            return np.empty(0, np.float32)
        gain = self.tensors.head_norm(part, layer)
        found: Floats = self.pad_heads(gain[:, None])[:, 0].contiguous().numpy()
        return found

    def pad(self, rows: Tensor, outputs: int = 0, multiple: int = 0) -> Tensor:
        """Pad [outputs, inputs] or [outputs] with zeros: inputs to whole vectors.

        Args:
            rows: Weights, or a bias.
            outputs: Number of rows in the result; 0 for those of `rows`.
            multiple: Inputs are padded to multiples of it; 0 for `Architecture.multiple`.
        """
        below = max(0, outputs - len(rows))
        right = -rows.shape[1] % (multiple or self.arch.multiple) if rows.dim() > 1 else 0
        if not below and not right:
            return rows.contiguous()
        return torch.nn.functional.pad(rows, (0, right, 0, below)[-2 * rows.dim() :])

    def pad_heads(self, rows: Tensor) -> Tensor:
        """Pad both halves of each head: [heads x head size, n] -> [heads x padded head, n]."""
        arch, inputs = self.arch, rows.shape[1]
        half, whole = arch.head_size // 2, arch.padded_head // 2
        if half == whole:
            return rows
        halves = rows.reshape(-1, half, inputs)
        return torch.nn.functional.pad(halves, (0, 0, 0, whole - half)).reshape(-1, inputs)

    def _rotated_inputs(self, down: Tensor) -> Tensor:
        """Return the weights of the down projection; in int8 its input is Hadamard-rotated."""
        rotates = self.quantized and not isinstance(self.tensors, ModelTensors)
        return fuse_inverse_hadamard(down) if rotates else down
