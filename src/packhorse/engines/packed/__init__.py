"""The `packed` engine: continuous batching without padding on a CPU, in float32 or int8.

    architecture        sizes of a model, read from its config; rejects other families
    checkpoint_tensors  tensors of a checkpoint, rotated for int8 if needed
    weights             weights in the layout of the engine's matrix multiplications
    int8_matmul         exact int8 matrix multiplication on any CPU
    vectors, tiles, kernels, attention
                        compiled kernels that run between the matrix multiplications
    cache, blocks       paged key/value cache; block allocation and the prefix cache
    scheduler           which tokens the next step computes
    network             one forward pass over packed tokens
    scoring             log-probabilities of given continuations; logits of a given text
    memory              peak memory, estimated from sizes
    run                 worker threads and rows of one run
    engine              the `Engine` implementation

docs/packed.md explains the design and reports measured speed.
"""

from packhorse.engines.packed.architecture import read_architecture
from packhorse.engines.packed.engine import PackedEngine, load

__all__ = ["PackedEngine", "load", "read_architecture"]
