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
from numba.core import cgutils
from numba.extending import intrinsic

from packhorse.engines.packed import vectors as v
from packhorse.engines.packed.compiling import inlined
from packhorse.engines.packed.panels import PANEL

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


def _call(builder: Any, name: str, kind: Any, arguments: list[Any]) -> Any:
    function = ir.FunctionType(kind, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)


def _read(builder: Any, pointer: Any, offset: int, kind: Any) -> Any:
    place = builder.gep(pointer, [_INT64(offset)])
    value = builder.load(builder.bitcast(place, kind.as_pointer()))
    value.align = 1
    return value


def _multiply_add(builder: Any, total: Any, number: Any, weights: Any) -> Any:
    if total.type == _FLOATS:
        return v.call_llvm_intrinsic(builder, "fma", [number, weights, total])
    name = "llvm.x86.avx512.vpdpbusd.512"
    return _call(builder, name, _INTEGERS, [total, number, weights])


def _splat(builder: Any, number: Any, kind: Any) -> Any:
    undefined = ir.Constant(kind, ir.Undefined)
    single = builder.insert_element(undefined, number, _INT32(0))
    return builder.shuffle_vector(single, undefined, ir.Constant(_INTEGERS, [0] * v.LANES))


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
            output_bytes = builder.mul(stride, _INT64(4))
            outputs = [
                builder.gep(target, [builder.mul(output_bytes, _INT64(row))]) for row in range(rows)
            ]
            inputs = [
                builder.gep(begin, [builder.mul(row_bytes, _INT64(row))]) for row in range(rows)
            ]
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
            scale = _splat(builder, builder.trunc(factor, _INT32), _INTEGERS)
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
            first_totals = {cell: builder.phi(kind) for cell in cells}
            for (row, vector), total in first_totals.items():
                total.add_incoming(offsets[vector], fresh)
                total.add_incoming(continued[row, vector], after_again)

            weights = builder.inttoptr(panel, byte)
            inside = builder.append_basic_block("inside")
            after = builder.append_basic_block("after")
            builder.branch(inside)
            builder.position_at_end(inside)
            index = builder.phi(_INT64)
            index.add_incoming(_INT64(0), ready)
            totals = {cell: builder.phi(kind) for cell in cells}
            place = builder.gep(weights, [builder.mul(index, _INT64(STEP_BYTES))])
            loaded = [
                _read(builder, place, vector * _VECTOR_BYTES, kind) for vector in range(_VECTORS)
            ]
            distance = builder.mul(index, builder.mul(spacing, _INT64(_VECTORS)))
            line = builder.gep(weights, [builder.add(ahead, distance)])
            for _vector in range(_VECTORS):
                options = [line, _INT32(0), _INT32(3), _INT32(1)]
                _call(builder, "llvm.prefetch.p0", ir.VoidType(), options)
                line = builder.gep(line, [spacing])
            results = {}
            for row in range(rows):
                word = builder.gep(inputs[row], [builder.mul(index, _INT64(4))])
                number = _splat(builder, _read(builder, word, 0, kind.element), kind)
                for vector in range(_VECTORS):
                    results[row, vector] = _multiply_add(
                        builder, totals[row, vector], number, loaded[vector]
                    )
            following = builder.add(index, _INT64(1))
            index.add_incoming(following, inside)
            for cell, total in totals.items():
                total.add_incoming(first_totals[cell], ready)
                total.add_incoming(results[cell], inside)
            builder.cbranch(builder.icmp_signed("<", following, steps), inside, after)

            builder.position_at_end(after)
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
