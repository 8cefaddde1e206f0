"""The engine `packed`: no padding, rows join and leave at every step, int8 or float32, on a CPU.

    architecture   what a model looks like inside; other families are refused
    weights        a checkpoint as the engine multiplies with it
    vectors, tiles, kernels, attention   compiled loops between the products
    cache, blocks  keys and values in blocks; who holds which, and prefixes in common
    scheduler      which tokens the next step computes
    network        one step
    scoring        how probable given continuations are; logits of a given text
    memory         what it takes at its peak
    running        threads and rows of one run
    engine         the contract

docs/packed.md says why it is so and how fast it is.
"""

from packhorse.engines.packed.architecture import read_architecture
from packhorse.engines.packed.engine import PackedEngine, load

__all__ = ["PackedEngine", "load", "read_architecture"]
