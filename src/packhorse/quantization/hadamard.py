"""Signed Hadamard matrices: orthogonal matrices that spread an outlier over all channels.

A Hadamard matrix has entries +1 and -1 and orthogonal rows: H Hᵀ = n I. Divided by sqrt(n) it turns
a vector with one large entry into one whose entries are all of equal size.

Sizes n = 2^k m, where a matrix of order 2^j m comes from one of
- Sylvester 1867: [[H, H], [H, -H]], all powers of two;
- Paley 1933, first construction: q + 1 for a prime q with q % 4 == 3;
- Paley 1933, second construction: 2 (q + 1) for a prime q with q % 4 == 1;
and the Kronecker product with Sylvester's does the rest. That covers every hidden size and head
size in common use: 576 = 36 x 16, 768 = 12 x 64, 896 = 28 x 32, 960 = 60 x 16, 1600 = 200 x 8, ...
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def hadamard_matrix(size: int) -> Tensor | None:
    """Return a Hadamard matrix, [size, size] of +1.0 and -1.0 in float64.

    None if none of the constructions above gives one of this order.
    """
    odd = size // (size & -size)
    orders = (odd << power for power in range((size // odd).bit_length()))
    base = next((found for order in orders if (found := _core(order)) is not None), None)
    if base is None:
        return None
    while len(base) < size:
        base = torch.kron(base, _PAIR)
    return base


def rotation_matrix(size: int, seed: int | None) -> Tensor:
    """Return an orthogonal matrix that spreads outliers, [size, size] in float64.

    It is a Hadamard matrix divided by sqrt(size). If none is known for this size, it is the
    orthogonal factor of a matrix of normal random numbers, which spreads almost as well.

    Args:
        size: Rows and columns.
        seed: Seed of random signs of the rows; None leaves the signs as they are.
    """
    generator = torch.Generator().manual_seed(seed or 0)
    matrix = hadamard_matrix(size)
    if matrix is None:
        drawn = torch.randn(size, size, generator=generator, dtype=torch.float64)
        orthogonal: Tensor = torch.linalg.qr(drawn).Q
        return orthogonal
    if seed is not None:
        signs = torch.randint(0, 2, (size, 1), generator=generator) * 2 - 1
        matrix = matrix * signs
    return matrix / math.sqrt(size)


_PAIR = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
_PALEY_PAIR = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)


def _core(order: int) -> Tensor | None:
    """Return the matrix of order 1, or one by Paley's constructions for primes, else None."""
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if order % 4:
        return None
    prime = order - 1
    if prime % 4 == 3 and _is_prime(prime):
        border = torch.zeros(order, order, dtype=torch.float64)
        border[0, 1:], border[1:, 0], border[1:, 1:] = 1, -1, _residues(prime)
        return border + torch.eye(order, dtype=torch.float64)
    half = order // 2
    prime = half - 1
    if prime % 4 == 1 and _is_prime(prime):
        conference = torch.zeros(half, half, dtype=torch.float64)
        conference[0, 1:], conference[1:, 0], conference[1:, 1:] = 1, 1, _residues(prime)
        diagonal = torch.eye(half, dtype=torch.float64)
        return torch.kron(conference, _PAIR) + torch.kron(diagonal, _PALEY_PAIR)
    return None


def _residues(prime: int) -> Tensor:
    """Return Jacobsthal's matrix: entry (i, j) is 1 if i - j is a square modulo `prime`, 0 on the
    diagonal, else -1."""
    character = -torch.ones(prime, dtype=torch.float64)
    character[[number * number % prime for number in range(1, prime)]] = 1
    character[0] = 0
    indices = torch.arange(prime)
    return character[(indices[:, None] - indices[None, :]) % prime]


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
