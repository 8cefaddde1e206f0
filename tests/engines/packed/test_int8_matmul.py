"""int8 matrix multiplication is exact and gives the same bits on CPUs without VNNI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packhorse.engines.packed import PackedEngine
from packhorse.engines.packed.int8_matmul import int8_matmul, split_in_two
from random_models import FAMILIES, saved

ISAS = ("SSE41", "AVX", "AVX2", "AVX512_CORE")
"""x86 instruction sets without VNNI, by oneDNN's names; no effect on other processors."""
PRODUCTS = """
import json, sys
import torch
from packhorse.engines.packed.int8_matmul import split_in_two, int8_matmul, int8_matmul_is_exact

chance = torch.Generator().manual_seed(0)
wrong = [0, 0]
for rows, inputs, outputs in ((1, 576, 960), (3, 64, 17), (64, 1536, 576), (70, 16, 33)):
    for low, step in ((-127, 1), (-128, 1), (-128, 255), (-127, 254)):
        def drawn(*shape):
            steps = torch.randint(0, 254 // step + 1, shape, generator=chance)
            return (low + steps * step).to(torch.int8)
        left, right = drawn(rows, inputs), drawn(inputs, outputs)
        exact = (left.double() @ right.double()).int()
        product, rest = torch.empty_like(exact), torch.empty_like(exact)
        int8_matmul(left, right, product)
        wrong[0] += int((product != exact).sum())
        first, second = split_in_two(right.t().contiguous().t())
        int8_matmul(left, first, product)
        int8_matmul(left, second, rest)
        wrong[1] += int((product + rest != exact).sum())
print(json.dumps([int8_matmul_is_exact(), *wrong]))
"""
LOGITS = """
import json, logging, sys
from hashlib import sha256
from pathlib import Path
from packhorse.engines.packed import PackedEngine
from packhorse.engines.packed.int8_matmul import int8_matmul_is_exact

said = []
logging.getLogger("packhorse.engines").addHandler(logging.NullHandler())
logging.getLogger("packhorse.engines").addFilter(lambda record: said.append(record.getMessage()))
engine = PackedEngine(
    Path(sys.argv[1]), end_ids=(), max_context=128, quantization="int8", threads=1, max_num_seqs=8,
    max_num_batched_tokens=32,
)
logits = engine.logits_after(tuple(range(1, 91)), 40)
print(json.dumps([int8_matmul_is_exact(), said, sha256(logits.tobytes()).hexdigest()]))
"""


def run_on(isa: str, script: str, *arguments: str) -> Any:
    """Return what a script prints if oneDNN uses at most `isa`."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "PACKHORSE_NATIVE": "0"},
    )
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("isa", [*ISAS, "DEFAULT"])
def test_matmul_in_two_parts_is_exact_and_whole_if_reported(isa: str) -> None:
    said_exact, wrong_whole, wrong_in_parts = run_on(isa, PRODUCTS)
    assert wrong_in_parts == 0
    assert said_exact == (wrong_whole == 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_cpu_without_vnni_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    """Covers int8 that is rounded while loading, whose second digits also need scratch."""
    saved(FAMILIES[name], tmp_path)
    engine = PackedEngine(
        tmp_path, end_ids=(), max_context=128, quantization="int8", threads=1, max_num_seqs=8,
        max_num_batched_tokens=32,
    )  # fmt: skip
    expected = sha256(engine.logits_after(tuple(range(1, 91)), 40).tobytes()).hexdigest()
    engine.close()
    is_exact, said, found = run_on("AVX2", LOGITS, str(tmp_path))
    assert found == expected
    assert is_exact != any("no VNNI" in line for line in said)


def test_two_parts_of_any_weight_cannot_overflow() -> None:
    weight = torch.arange(-128, 128).to(torch.int8)
    first, rest = split_in_two(weight)
    assert torch.equal(first.int() + rest.int(), weight.int())
    for part in (first.int(), rest.int()):
        assert 255 * 2 * int(part.max()) < 1 << 15
        assert 255 * 2 * int(part.min()) >= -1 << 15


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 40), inputs=st.integers(1, 300))
def test_the_products_of_both_parts_add_up(seed: int, rows: int, inputs: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    left = torch.randint(-128, 128, (rows, inputs), generator=chance).to(torch.int8)
    right = torch.randint(-128, 128, (inputs, 40), generator=chance).to(torch.int8)
    exact = (left.double() @ right.double()).int()
    products = [torch.empty_like(exact) for _ in range(2)]
    for part, product in zip(split_in_two(right), products, strict=True):
        int8_matmul(left, part, product)
    assert torch.equal(products[0] + products[1], exact)
