"""Matrix multiplication of rows with one panel of weights, in registers.

A tile of up to 6 rows and 64 output channels has 24 accumulators of 16 lanes. Each step of the
inner loop loads four vectors of weights and broadcasts four bytes of every row, which are four int8
input channels (`vpdpbusd`, exact int32 sums) or one float32 channel (fused multiply-add).

The order of every sum is fixed: a row gives the same bits in a tile of any height.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from packhorse.engines.packed import vectors as v
from packhorse.engines.packed.compiling import inlined
from packhorse.engines.packed.panels import PANEL
from packhorse.engines.packed.tiles import emit_loop, row_starts

TILE = 6
"""Maximum number of rows per tile."""
STEP_BYTES = 256
"""Bytes of weights per step of the inner loop."""
BLOCK_STEPS = 2048
"""Steps per block of input channels: its weights stay in the second-level cache for all rows."""
READ_AHEAD = 4096
"""How far one tile prefetches in its own panel (bytes)."""
_BYTE, _INT32, _INT64 = (ir.IntType(bits) for bits in (8, 32, 64))
_VECTORS = PANEL // v.LANES
_VECTOR_BYTES = 4 * v.LANES
_INTEGERS = ir.VectorType(_INT32, v.LANES)
_FLOATS = ir.VectorType(ir.FloatType(), v.LANES)


def _read(builder: Any, pointer: Any, offset: int, kind: Any) -> Any:
    place = builder.gep(pointer, [_INT64(offset)])
    value = builder.load(builder.bitcast(place, kind.as_pointer()))
    value.align = 1
    return value


def _multiply_add(builder: Any, total: Any, number: Any, weights: Any) -> Any:
    if total.type == _FLOATS:
        return v.call_llvm_intrinsic(builder, "fma", [number, weights, total])
    name = "llvm.x86.avx512.vpdpbusd.512"
    return v.call_function(builder, name, _INTEGERS, [total, number, weights])


def _build_tile(rows: int) -> Any:
    """Return an intrinsic that multiplies `rows` rows with a block of one panel.

    Arguments are those of `multiply_panel`, addresses instead of arrays, and `ahead` and `spacing`:
    the distance of prefetches from the weights, and from one another (bytes).
    """
    cells = [(row, vector) for row in range(rows) for vector in range(_VECTORS)]

    @intrinsic
    def tile(
        typing: Any, sums: Any, at: Any, stride: Any, vectors: Any, activations: Any, first: Any,
        row_bytes: Any, panel: Any, steps: Any, starts: Any, factor: Any, ahead: Any, spacing: Any,
    ) -> Any:  # fmt: skip
        kind = _FLOATS if sums.dtype == types.float32 else _INTEGERS

        def build(context: Any, builder: Any, _: Any, given: Any) -> Any:
            (sums_array, at, stride, vectors, activations_array, first, row_bytes, panel, steps,
             starts, factor, ahead, spacing) = given  # fmt: skip
            byte = _BYTE.as_pointer()

            def start_of(array_kind: Any, array: Any, offset: Any) -> Any:
                pointer = v.element_pointer(context, builder, array_kind, array, offset)
                return builder.bitcast(pointer, byte)

            target = start_of(sums, sums_array, at)
            begin = start_of(activations, activations_array, first)
            outputs = row_starts(builder, target, builder.mul(stride, _INT64(4)), rows)
            inputs = row_starts(builder, begin, row_bytes, rows)
            is_written = [
                builder.icmp_signed("<", _INT64(vector), vectors) for vector in range(_VECTORS)
            ]

            # What the sums start with: `starts` + `factor` x what is there.
            added = builder.inttoptr(starts, byte)
            offsets = [
                _read(builder, added, vector * _VECTOR_BYTES, kind) for vector in range(_VECTORS)
            ]
            fresh = builder.block
            again = builder.append_basic_block("again")
            ready = builder.append_basic_block("ready")
            builder.cbranch(builder.icmp_signed("==", factor, _INT64(0)), ready, again)
            builder.position_at_end(again)
            scale = v.splat_number(builder, builder.trunc(factor, _INT32))
            continued = {}
            for vector in range(_VECTORS):
                before = builder.block
                with builder.if_then(is_written[vector]):
                    held = [_read(builder, each, vector * _VECTOR_BYTES, kind) for each in outputs]
                    inside = builder.block
                for row in range(rows):
                    previous = builder.phi(kind)
                    previous.add_incoming(ir.Constant(kind, None), before)
                    previous.add_incoming(held[row], inside)
                    continued[row, vector] = previous
            for (row, vector), previous in continued.items():
                continued[row, vector] = (
                    previous
                    if kind == _FLOATS
                    else builder.add(offsets[vector], builder.mul(previous, scale))
                )
            after_again = builder.block
            builder.branch(ready)
            builder.position_at_end(ready)
            first_totals = []
            for row, vector in cells:
                total = builder.phi(kind)
                total.add_incoming(offsets[vector], fresh)
                total.add_incoming(continued[row, vector], after_again)
                first_totals.append(total)

            weights = builder.inttoptr(panel, byte)

            def step(index: Any, totals: list[Any]) -> list[Any]:
                place = builder.gep(weights, [builder.mul(index, _INT64(STEP_BYTES))])
                loaded = [
                    _read(builder, place, vector * _VECTOR_BYTES, kind)
                    for vector in range(_VECTORS)
                ]
                distance = builder.mul(index, builder.mul(spacing, _INT64(_VECTORS)))
                line = builder.gep(weights, [builder.add(ahead, distance)])
                for _vector in range(_VECTORS):
                    v.prefetch_line(builder, line)
                    line = builder.gep(line, [spacing])
                word = builder.mul(index, _INT64(4))
                results = []
                for row, start in enumerate(inputs):
                    number = _read(builder, builder.gep(start, [word]), 0, kind.element)
                    spread = v.splat_number(builder, number)
                    results += [
                        _multiply_add(builder, total, spread, held)
                        for total, held in zip(
                            totals[row * _VECTORS : (row + 1) * _VECTORS], loaded, strict=True
                        )
                    ]
                return results

            results = dict(zip(cells, emit_loop(builder, steps, first_totals, step), strict=True))
            for vector in range(_VECTORS):
                with builder.if_then(is_written[vector]):
                    for row in range(rows):
                        to = builder.gep(outputs[row], [_INT64(vector * _VECTOR_BYTES)])
                        v.write(builder, to, results[row, vector])
            return context.get_dummy_value()

        number = types.intp
        return types.void(sums, number, number, number, activations, *[number] * 8), build

    return tile


_tile_1, _tile_2, _tile_3, _tile_4, _tile_5, _tile_6 = map(_build_tile, range(1, TILE + 1))


@inlined
def multiply_panel(
    sums: Any, at: Any, stride: Any, vectors: int, activations: Any, first: Any, inputs: int,
    rows: int, panel: int, starts: int, factor: Any, zeros: int,
) -> None:  # fmt: skip
    """Multiply rows with one panel: sums = starts + factor x sums + activations . panel.

    Args:
        sums: Flat int32 or float32 output; row r begins at `at` + r x `stride`.
        vectors: Number of vectors of 16 output channels that are written, at most 4.
        activations: Flat uint8 (int8 + OFFSET) or float32; row r begins at `first` + r x `inputs`.
        inputs: Number of input channels, a multiple of 4.
        rows: Number of rows.
        panel: Address of the weights.
        starts: Address of the 64 first values of the sums; for float32, 64 zeros.
        factor: Factor of the previous sums; 0 or 1 for float32.
        zeros: Address of 64 zeros.
    """
    row_bytes = inputs * activations.itemsize
    steps = row_bytes // 4
    tiles = (rows + TILE - 1) // TILE
    small, larger = rows // tiles, rows % tiles
    # One tile prefetches its own panel; several prefetch the next one, each a share.
    share = 1 if tiles == 1 else 2 if tiles < 4 else 4
    for block in range(0, steps, BLOCK_STEPS):
        size = min(BLOCK_STEPS, steps - block)
        row = 0
        for number in range(tiles):
            ahead, spacing = READ_AHEAD, 64 // share
            if number >= share:
                spacing = 0
            elif share > 1:
                ahead = (size + number * (size // share)) * STEP_BYTES
            height = small + 1 if number < larger else small
            to, begin = at + row * stride, first + row * inputs + block * 4 // activations.itemsize
            place = panel + block * STEP_BYTES
            if height == 6:
                _tile_6(sums, to, stride, vectors, activations, begin, row_bytes, place, size,
                        starts, factor, ahead, spacing)  # fmt: skip
            elif height == 5:
                _tile_5(sums, to, stride, vectors, activations, begin, row_bytes, place, size,
                        starts, factor, ahead, spacing)  # fmt: skip
            elif height == 4:
                _tile_4(sums, to, stride, vectors, activations, begin, row_bytes, place, size,
                        starts, factor, ahead, spacing)  # fmt: skip
            elif height == 3:
                _tile_3(sums, to, stride, vectors, activations, begin, row_bytes, place, size,
                        starts, factor, ahead, spacing)  # fmt: skip
            elif height == 2:
                _tile_2(sums, to, stride, vectors, activations, begin, row_bytes, place, size,
                        starts, factor, ahead, spacing)  # fmt: skip
            else:
                _tile_1(sums, to, stride, vectors, activations, begin, row_bytes, place, size,
                        starts, factor, ahead, spacing)  # fmt: skip
            row += height
        starts, factor = zeros, 1
