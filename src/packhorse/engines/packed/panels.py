"""Layout of weights for the matrix multiplication of `panel_kernels`.

A panel holds the weights of 64 output channels. For int8 it holds four input channels at a time, so
that one 64-byte vector is what `vpdpbusd` reads for 16 output channels. Weights are packed once,
for any number of rows. The prepared int8 folder stores them in this layout, so loading it is a
memory map.
"""

from __future__ import annotations

import os
from functools import cache

import llvmlite.binding
import numpy as np
from numpy.typing import NDArray

PANEL = 64
"""Output channels per panel."""
GROUP = 4
"""Input channels per 32-bit sum of `vpdpbusd`."""
OFFSET = 128
"""Activations are stored as unsigned numbers: int8 value + OFFSET."""

Bytes = NDArray[np.int8]
Floats = NDArray[np.float32]


@cache
def has_panel_kernels() -> bool:
    """Return whether this CPU has the AVX-512 instructions of `panel_kernels`.

    The environment variable PACKHORSE_NATIVE=0 disables them.
    """
    features = llvmlite.binding.get_host_cpu_features()
    wanted = ("avx512f", "avx512bw", "avx512vnni")
    return os.environ.get("PACKHORSE_NATIVE") != "0" and all(map(features.get, wanted))


def panels_shape(outputs: int, inputs: int) -> tuple[int, int, int, int]:
    """Return the shape of the panels of int8 weights [outputs, inputs]."""
    return -(-outputs // PANEL), -(-inputs // GROUP), PANEL, GROUP


def pack_float_panels(weights: Floats) -> Floats:
    """Return float32 weights [outputs, inputs] as [panels, inputs, PANEL], padded with zeros."""
    outputs, inputs = weights.shape
    panels = -(-outputs // PANEL)
    packed = np.zeros((panels, inputs, PANEL), np.float32)
    whole = outputs // PANEL
    packed[:whole] = weights[: whole * PANEL].reshape(whole, PANEL, inputs).transpose(0, 2, 1)
    if whole < panels:
        packed[whole, :, : outputs - whole * PANEL] = weights[whole * PANEL :].T
    return packed


def pack_panels(weights: Bytes) -> Bytes:
    """Return int8 weights [outputs, inputs] as [panels, inputs / GROUP, PANEL, GROUP].

    Both sizes are padded with zeros.
    """
    outputs, inputs = weights.shape
    panels, groups, _, _ = panels_shape(outputs, inputs)
    if (outputs, inputs) != (panels * PANEL, groups * GROUP):
        padding = ((0, panels * PANEL - outputs), (0, groups * GROUP - inputs))
        weights = np.pad(weights, padding)
    grouped = weights.reshape(panels, PANEL, groups, GROUP)
    return np.ascontiguousarray(grouped.transpose(0, 2, 1, 3))


def unpack_panels(panels: Bytes, outputs: int, inputs: int) -> Bytes:
    """Return packed weights as int8 [outputs, inputs]."""
    count, groups = panels.shape[:2]
    rows = panels.transpose(0, 2, 1, 3).reshape(count * PANEL, groups * GROUP)
    return np.ascontiguousarray(rows[:outputs, :inputs])


def column_offsets(weights: Bytes) -> NDArray[np.int32]:
    """Return what sums over unsigned activations start with, [outputs].

    It is -OFFSET x the sum of the weights [outputs, inputs] of each output channel.
    """
    sums: NDArray[np.int32] = weights.sum(axis=1, dtype=np.int32)
    return -OFFSET * sums
