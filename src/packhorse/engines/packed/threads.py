"""Atomic counters by which threads share the phases of a step inside Numba functions.

A phase is divided into chunks. Every thread takes the next chunk until none is left, then waits
until all are done. So a thread may join late, and a slow one delays the others by one chunk only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from packhorse.engines.packed.compiling import inlined
from packhorse.engines.packed.vectors import call_function, element_pointer

LINE = 8
"""Counters of one phase, a cache line of int64: chunks taken, and LINE / 2 on, chunks done."""
_SPINS = 2000
"""Polls before a waiting thread gives its core to others."""
_INT32, _INT64 = ir.IntType(32), ir.IntType(64)


@intrinsic
def _add(typing: Any, counters: Any, index: Any, amount: Any) -> Any:
    """Add to a counter and return its previous value."""

    def build(context: Any, builder: Any, _: Any, given: Any) -> Any:
        pointer = element_pointer(context, builder, counters, *given[:2])
        return builder.atomic_rmw("add", pointer, given[2], "seq_cst")

    return types.int64(counters, types.intp, types.int64), build


@intrinsic
def _read(typing: Any, counters: Any, index: Any) -> Any:
    def build(context: Any, builder: Any, _: Any, given: Any) -> Any:
        pointer = element_pointer(context, builder, counters, *given)
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(counters, types.intp), build


@intrinsic
def _pause(typing: Any) -> Any:
    """Tell the core that this thread polls."""

    def build(context: Any, builder: Any, _: Any, given: Any) -> Any:
        call_function(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        return context.get_dummy_value()

    return types.void(), build


@intrinsic
def _yield_core(typing: Any) -> Any:
    def build(context: Any, builder: Any, _: Any, given: Any) -> Any:
        call_function(builder, "sched_yield", _INT32, [])
        return context.get_dummy_value()

    return types.void(), build


@intrinsic
def cycles(typing: Any) -> Any:
    """Return the processor's cycle counter."""

    def build(context: Any, builder: Any, _: Any, given: Any) -> Any:
        return call_function(builder, "llvm.readcyclecounter", _INT64, [])

    return types.int64(), build


@inlined
def take_chunk(counters: Any, phase: int) -> Any:
    """Return the next chunk of a phase; it may be past the last one."""
    return _add(counters, phase * LINE, np.int64(1))


@inlined
def finish_chunk(counters: Any, phase: int) -> None:
    _add(counters, phase * LINE + LINE // 2, np.int64(1))


@inlined
def wait_for_chunks(counters: Any, phase: int, chunks: int) -> None:
    """Wait until all chunks of a phase are done."""
    spins = 0
    while _read(counters, phase * LINE + LINE // 2) < chunks:
        spins += 1
        if spins < _SPINS:
            _pause()
        else:
            _yield_core()
