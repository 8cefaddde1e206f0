"""Weights of a model in the layout of the engine's matrix multiplications.

float32 weights are arranged, not changed. int8 weights have one scale per output channel and
activations one per row, so the result of a row never depends on its neighbours. The input of the MLP's down
projection is rotated at run time (`quantization.online_hadamard`). Prepared int8 weights
(`models.int8_folder`) are mapped into memory as they are. Those of another folder are rotated
(`checkpoint_tensors`) and rounded to nearest here, and the QKV weights, which lose most to
rounding, get two int8 digits.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

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
from packhorse.engines.packed.int8_matmul import (
    arrange_for_matmul,
    int8_matmul,
    int8_matmul_is_exact,
    split_in_two,
)
from packhorse.engines.packed.panels import (
    OFFSET,
    PANEL,
    pack_float_panels,
    pack_panels,
    unpack_panels,
)
from packhorse.errors import EngineError
from packhorse.models.int8_folder import map_int8_tensors
from packhorse.profiling.cores import usable_cores
from packhorse.quantization.online_hadamard import fuse_inverse_hadamard

HEAD_COLUMNS = 8192
"""Vocabulary columns that are multiplied at once, so that their logits stay in the CPU cache."""
LOW_DIGIT_STEPS = 16
"""Steps of the low digit per step of the high one; sums of up to 8,000 inputs fit into int32."""
_ROUNDED_AT_ONCE = 16 * PANEL
_AT_ONCE = 2
"""Layers that are arranged at the same time, each by a part of the cores."""
Floats = NDArray[np.float32]
T = TypeVar("T")


def _no_bytes() -> NDArray[np.int8]:
    return np.empty((0, 0, PANEL, 4), np.int8)


def _no_sums() -> NDArray[np.int32]:
    return np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer, for the panel kernels or for torch: one of the two has its weights.

    Attributes:
        outputs: Output channels.
        inputs: Input channels.
        scales: [outputs], in int8 padded to whole panels; 1 for float32.
        bias: Like `scales`.
        weight: [inputs, outputs] int8 or float32 for torch; empty if there are panels.
        low_digit: Second int8 digit of the weights, worth 1 / LOW_DIGIT_STEPS of the first; None if
            one digit suffices.
        remainder: Second part of the int8 weights if multiplying the whole would not be exact (see
            `int8_matmul`); None otherwise.
        panels: int8 or float32 weights in the layout of `panels`; empty without panel kernels.
        offsets: [padded outputs], what sums over `panels` start with (`panels.column_offsets`);
            zeros for float32.
        low_panels: Second digit like `panels`; empty if one digit suffices.
        low_offsets: Like `offsets`.
    """

    outputs: int
    inputs: int
    scales: Floats
    bias: Floats
    weight: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    low_digit: Tensor | None = None
    remainder: Tensor | None = None
    panels: NDArray[Any] = field(default_factory=_no_bytes)
    offsets: NDArray[np.int32] = field(default_factory=_no_sums)
    low_panels: NDArray[np.int8] = field(default_factory=_no_bytes)
    low_offsets: NDArray[np.int32] = field(default_factory=_no_sums)

    def for_torch(self) -> Linear:
        """Return an int8 layer with `weight` in place of `panels`."""
        first = self._unpacked(self.panels)
        remainder = None
        if not int8_matmul_is_exact():
            first, second = split_in_two(first)
            remainder = arrange_for_matmul(second)
        return Linear(
            self.outputs, self.inputs, self.scales, self.bias, arrange_for_matmul(first),
            arrange_for_matmul(self._unpacked(self.low_panels)) if self.low_panels.size else None,
            remainder,
        )  # fmt: skip

    def _unpacked(self, panels: NDArray[np.int8]) -> Tensor:
        return torch.from_numpy(unpack_panels(panels, self.outputs, self.inputs))

    def multiply(self, rows: Tensor, product: Tensor, second_product: Tensor) -> None:
        """Compute product = rows x weight.

        int8 rows give int32 sums, LOW_DIGIT_STEPS times as large if there is a second digit.

        Args:
            rows: [rows, inputs].
            product: [rows, outputs] output.
            second_product: Scratch like `product` if there is a second digit or remainder.
        """
        if self.weight.dtype != torch.int8:
            torch.mm(rows, self.weight, out=product)
            return
        int8_matmul(rows, self.weight, product)
        if self.remainder is not None:
            int8_matmul(rows, self.remainder, second_product)
            product += second_product
        if self.low_digit is not None:
            int8_matmul(rows, self.low_digit, second_product)
            torch.add(second_product, product, alpha=LOW_DIGIT_STEPS, out=product)


@dataclass(frozen=True, slots=True)
class Norm:
    weight: Floats
    bias: Floats


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one decoder layer.

    Attributes:
        query_norm: [padded head]; empty without head norms.
        key_norm: Like `query_norm`.
    """

    attention_norm: Norm
    qkv: Linear
    out: Linear
    mlp_norm: Norm
    up: Linear
    down: Linear
    query_norm: Floats
    key_norm: Floats


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of a model.

    Attributes:
        embeddings: [vocabulary, hidden] float32, or the bits of float16 with int8 weights; a tied
            float32 head in panels is used as it is, [panels, hidden, PANEL].
        position_embeddings: [positions, hidden]; empty if positions use RoPE.
        layers: Decoder layers.
        final_norm: Norm before the head.
        head: Output head in parts of HEAD_COLUMNS tokens.
    """

    embeddings: NDArray[Any]
    position_embeddings: Floats
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: tuple[Linear, ...]

    @property
    def ties_head(self) -> bool:
        """Whether the head uses the memory of the embeddings."""
        address = self.embeddings.ctypes.data
        return address in (self.head[0].weight.data_ptr(), self.head[0].panels.ctypes.data)

    @property
    def head_scales(self) -> Floats:
        return np.concatenate([part.scales[: part.outputs] for part in self.head])


def load_weights(
    folder: Path, arch: Architecture, *, quantized: bool, native: bool = False
) -> Weights:
    """Read and arrange the weights, and round them if `quantized` and not prepared.

    Args:
        folder: A Hugging Face folder, or one of prepared int8 weights, which are mapped.
        arch: Sizes of the model.
        quantized: Whether the weights become int8.
        native: Whether weights are arranged in panels.

    Raises:
        ModelError: Weights are missing or their shape differs from the config.
        EngineError: The folder holds int8 weights and float32 was requested.
    """
    if not arch.holds_int8:
        return arrange(open_tensors(folder, arch, rotated=quantized), quantized, native)
    if not quantized:
        raise EngineError(f"{folder} holds int8 weights", "add --quantization int8")
    return _mapped(folder, arch, native)


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


@dataclass(frozen=True, slots=True)
class WeightBuilder:
    """Arranges the weights of a model.

    Attributes:
        tensors: The tensors of its checkpoint.
        quantized: Whether linear layers become int8.
        native: Whether weights are arranged in panels.
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
            ones, zeros = np.ones(count, np.float32), np.zeros(count, np.float32)
            offsets = np.zeros(len(some) * PANEL, np.int32)
            parts.append(Linear(count, hidden, ones, zeros, panels=some, offsets=offsets))
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
            ones = np.ones(outputs, np.float32)
            if not self.native:
                return Linear(outputs, inputs, ones, offsets, weight.t())
            packed = pack_float_panels(weight.numpy())
            zeros = np.zeros(len(packed) * PANEL, np.int32)
            return Linear(outputs, inputs, ones, offsets, panels=packed, offsets=zeros)
        padded = -(-outputs // PANEL) * PANEL
        shape = padded // PANEL, -(-inputs // 4), PANEL, 4
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
                digit = number.to(torch.int8)
                first = rows.start // PANEL
                some = pack_panels(digit.numpy())
                panels[place][first : first + len(some)] = some
                sums[place][rows] = digit.sum(dim=1, dtype=torch.int32).mul_(-OFFSET).numpy()
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


def _mapped(folder: Path, arch: Architecture, native: bool) -> Weights:
    """Map prepared int8 weights."""
    tensors = map_int8_tensors(folder)

    def linear(name: str, outputs: int, inputs: int, digits: int = 1) -> Linear:
        padded = -(-outputs // PANEL)
        shape = padded, -(-inputs // 4), PANEL, 4
        arrays = {}
        for key, place in (("", 0), ("low_", 1)):
            if place < digits:
                arrays[f"{key}panels"] = tensors.get(f"{name}.{key}panels", np.int8, *shape)
                arrays[f"{key}offsets"] = tensors.get(
                    f"{name}.{key}offsets", np.int32, padded * PANEL
                )
        scales, bias = (
            tensors.get(f"{name}.{part}", np.float32, padded * PANEL) for part in ("scales", "bias")
        )
        found = Linear(outputs, inputs, scales, bias, **arrays)
        return found if native else found.for_torch()

    def norm(name: str) -> Norm:
        return Norm(
            *(tensors.get(f"{name}.{part}", np.float32, arch.hidden) for part in ("weight", "bias"))
        )

    def layer(number: int) -> Layer:
        start, width = f"layers.{number}.", arch.heads * arch.padded_head
        head_norms = (
            tensors.get(f"{start}{name}", np.float32, arch.padded_head)
            if arch.has_head_norms
            else np.empty(0, np.float32)
            for name in ("query_norm", "key_norm")
        )
        return Layer(
            norm(f"{start}attention_norm"),
            linear(f"{start}qkv", arch.qkv_width, arch.hidden, arch.qkv_digits),
            linear(f"{start}out", arch.hidden, width),
            norm(f"{start}mlp_norm"),
            linear(f"{start}up", arch.activation_width, arch.hidden),
            linear(f"{start}down", arch.hidden, arch.inner),
            *head_norms,
        )

    table = arch.vocabulary, arch.hidden
    positions = np.empty((0, 0), np.float32)
    if arch.positions:
        positions = tensors.get("position_embeddings", np.float32, arch.positions, arch.hidden)
    return Weights(
        tensors.get("embeddings", np.float16, *table).view(np.int16),
        positions,
        tuple(map(layer, range(arch.layers))),
        norm("final_norm"),
        tuple(
            linear(f"head.{place}", rows.stop - rows.start, arch.hidden)
            for place, rows in enumerate(row_slices(arch.vocabulary, HEAD_COLUMNS))
        ),
    )
