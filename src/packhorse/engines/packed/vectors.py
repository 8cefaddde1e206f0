"""Vectors of 16 float32 numbers inside Numba functions.

Numba's loops are vectorized only if LLVM considers that profitable, which for sums, maxima and
exponentials it mostly does not: a plain loop reached 33 of 110 GFLOPS, these vectors reach 105.
They use LLVM's own vector type, so every processor that LLVM supports runs them: one AVX-512
register, two AVX2 registers, four NEON registers.

All operations are IEEE float32 in the order written; only `fma` contracts. So the result of a row
does not depend on the rows around it.

Arrays are C-contiguous and addressed by element offset (`load(array, offset)`); offsets are not
checked against the size.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from packhorse.engines.packed.compiling import inlined
from packhorse.engines.packed.panels import OFFSET

LANES = 16
_FLOAT, _INT32, _INT64, _INT8 = (ir.FloatType(), *(ir.IntType(bits) for bits in (32, 64, 8)))
_ELEMENTS = {
    types.float32: _FLOAT,
    types.int16: ir.IntType(16),
    types.int8: _INT8,
    types.uint8: _INT8,
    types.int32: _INT32,
}


class _VectorType(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name="float32x16")


vector = _VectorType()


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.VectorType(_FLOAT, LANES))


def _vector_type(element: Any) -> Any:
    return ir.VectorType(element, LANES)


def element_pointer(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """Return a pointer to the element at `offset` of an array."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [offset])


def _element(kind: Any) -> Any:
    return _ELEMENTS[kind.dtype]


def read(builder: Any, element_pointer: Any, kind: Any) -> Any:
    """Load 16 elements at a pointer as float32."""
    element = _element(kind)
    values = builder.load(builder.bitcast(element_pointer, _vector_type(element).as_pointer()))
    values.align = 1
    if kind.dtype == types.float32:
        return values
    if kind.dtype == types.int16:
        return builder.fpext(
            builder.bitcast(values, _vector_type(ir.HalfType())), _vector_type(_FLOAT)
        )
    if kind.dtype == types.int8:
        values = builder.sext(values, _vector_type(_INT32))
    return builder.sitofp(values, _vector_type(_FLOAT))


def write(builder: Any, element_pointer: Any, values: Any) -> None:
    builder.store(values, builder.bitcast(element_pointer, values.type.as_pointer())).align = 1


def splat_number(builder: Any, number: Any) -> Any:
    """Return a vector that repeats a number of any type."""
    undefined = ir.Constant(_vector_type(number.type), ir.Undefined)
    single = builder.insert_element(undefined, number, _INT32(0))
    return builder.shuffle_vector(single, undefined, ir.Constant(_vector_type(_INT32), [0] * LANES))


def call_function(builder: Any, name: str, result: Any, arguments: Sequence[Any]) -> Any:
    """Call a function of LLVM or of the C library, which returns the type `result`."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def prefetch_line(builder: Any, pointer: Any) -> None:
    """Prefetch the cache line at a byte pointer."""
    options = [_INT32(0), _INT32(3), _INT32(1)]
    call_function(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, *options])


def call_llvm_intrinsic(builder: Any, name: str, arguments: Sequence[Any]) -> Any:
    """Call an LLVM intrinsic on vectors."""
    return call_function(builder, f"llvm.{name}.v{LANES}f32", _vector_type(_FLOAT), arguments)


def _maximum(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _reduce(builder: Any, values: Any, combine: Callable[[Any, Any, Any], Any]) -> Any:
    """Reduce 16 numbers to one by combining halves."""
    width = LANES
    while width > 1:
        width //= 2
        undefined = ir.Constant(values.type, ir.Undefined)
        halves = [
            builder.shuffle_vector(
                values, undefined, ir.Constant(ir.VectorType(_INT32, width), list(lanes))
            )
            for lanes in (range(width), range(width, 2 * width))
        ]
        values = combine(builder, *halves)
    return builder.extract_element(values, _INT32(0))


@intrinsic
def load(typing: Any, array: Any, offset: Any) -> Any:
    """Load 16 elements from `offset` on as float32.

    Arrays are float32, int32, int8, or int16 whose bits are float16, a type that Numba lacks.
    """

    def build(context: Any, builder: Any, _: Any, given: Any) -> Any:
        return read(builder, element_pointer(context, builder, array, *given), array)

    return vector(array, types.intp), build


@intrinsic
def prefetch(typing: Any, array: Any, offset: Any) -> Any:
    """Prefetch the cache line of an element."""

    def build(context: Any, builder: Any, _: Any, given: Any) -> Any:
        pointer = element_pointer(context, builder, array, *given)
        prefetch_line(builder, builder.bitcast(pointer, _INT8.as_pointer()))
        return context.get_dummy_value()

    return types.void(array, types.intp), build


@intrinsic
def store(typing: Any, array: Any, offset: Any, values: Any) -> Any:
    """Store 16 numbers as float32, int8, or uint8 with OFFSET added."""

    def build(context: Any, builder: Any, _: Any, given: Any) -> Any:
        held, at, numbers = given
        if array.dtype in (types.int8, types.uint8):
            whole = builder.fptosi(
                call_llvm_intrinsic(builder, "rint", [numbers]), _vector_type(_INT32)
            )
            if array.dtype == types.uint8:
                whole = builder.add(whole, ir.Constant(_vector_type(_INT32), [OFFSET] * LANES))
            numbers = builder.trunc(whole, _vector_type(_INT8))
        write(builder, element_pointer(context, builder, array, held, at), numbers)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), build


@intrinsic
def splat(typing: Any, number: Any) -> Any:
    """Return a vector that repeats one number."""

    def build(context: Any, builder: Any, _: Any, given: Any) -> Any:
        return splat_number(builder, given[0])

    return vector(types.float32), build


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a x b + c, rounded once."""
    return vector(vector, vector, vector), lambda context, builder, _, given: call_llvm_intrinsic(
        builder, "fma", given
    )


@intrinsic
def rint(typing: Any, a: Any) -> Any:
    return vector(vector), lambda context, builder, _, given: call_llvm_intrinsic(
        builder, "rint", given
    )


@intrinsic
def absolute(typing: Any, a: Any) -> Any:
    return vector(vector), lambda context, builder, _, given: call_llvm_intrinsic(
        builder, "fabs", given
    )


@intrinsic
def maximum(typing: Any, a: Any, b: Any) -> Any:
    return vector(vector, vector), lambda context, builder, _, given: _maximum(builder, *given)


@intrinsic
def minimum(typing: Any, a: Any, b: Any) -> Any:
    """Return the element-wise minimum."""

    def build(context: Any, builder: Any, _: Any, given: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *given), *given)

    return vector(vector, vector), build


@intrinsic
def where_above(typing: Any, a: Any, bound: Any, values: Any) -> Any:
    """Return `values` where a > bound, else 0; NaN in `a` also gives 0."""

    def build(context: Any, builder: Any, _: Any, given: Any) -> Any:
        above = builder.fcmp_ordered(">", given[0], given[1])
        return builder.select(above, given[2], ir.Constant(_vector_type(_FLOAT), [0.0] * LANES))

    return vector(vector, vector, vector), build


@intrinsic
def power_of_two(typing: Any, a: Any) -> Any:
    """Return 2^a for integral a from -126 to 127."""

    def build(context: Any, builder: Any, _: Any, given: Any) -> Any:
        exponent = builder.fptosi(given[0], _vector_type(_INT32))
        biased = builder.add(exponent, ir.Constant(_vector_type(_INT32), [127] * LANES))
        bits = builder.shl(biased, ir.Constant(_vector_type(_INT32), [23] * LANES))
        return builder.bitcast(bits, _vector_type(_FLOAT))

    return vector(vector), build


@intrinsic
def reduce_sum(typing: Any, a: Any) -> Any:
    def build(context: Any, builder: Any, _: Any, given: Any) -> Any:
        return _reduce(builder, given[0], lambda b, x, y: b.fadd(x, y))

    return types.float32(vector), build


@intrinsic
def reduce_max(typing: Any, a: Any) -> Any:
    return types.float32(vector), lambda context, builder, _, given: _reduce(
        builder, given[0], _maximum
    )


def _operator(symbol: Any, instruction: str) -> None:
    """Define a Python operator for two vectors."""

    @infer_global(symbol)
    class _Typing(AbstractTemplate):  # type: ignore[misc]
        def generic(self, given: Any, _: Any) -> Any:
            return signature(vector, vector, vector) if given == (vector, vector) else None

    @lower_builtin(symbol, vector, vector)
    def _build(context: Any, builder: Any, _: Any, given: Any) -> Any:
        return getattr(builder, instruction)(*given)


for _symbol, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operator(_symbol, _instruction)


@inlined
def exp(x: Any) -> Any:
    """Return e^x within 2 units in the last place; 0 below -87.

    The polynomial is that of expf in Moshier's Cephes library (1992).
    """
    lowest = splat(np.float32(-87.0))
    bounded = minimum(maximum(x, lowest), splat(np.float32(88.0)))
    whole = rint(bounded * splat(np.float32(1.44269504)))
    rest = fma(whole, splat(np.float32(-0.693359375)), bounded)
    rest = fma(whole, splat(np.float32(2.12194440e-4)), rest)
    power = fma(splat(np.float32(1.9875691500e-4)), rest, splat(np.float32(1.3981999507e-3)))
    power = fma(power, rest, splat(np.float32(8.3334519073e-3)))
    power = fma(power, rest, splat(np.float32(4.1665795894e-2)))
    power = fma(power, rest, splat(np.float32(1.6666665459e-1)))
    power = fma(power, rest, splat(np.float32(5.0000001201e-1)))
    power = fma(power, rest * rest, rest + splat(np.float32(1.0)))
    return where_above(x, lowest, power * power_of_two(whole))
