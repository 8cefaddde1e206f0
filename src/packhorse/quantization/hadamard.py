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
from dataclasses import dataclass

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
        matrix = matrix * _signs(size, generator)
    return matrix / math.sqrt(size)


@dataclass(frozen=True, slots=True)
class Rotation:
    """The matrix Q of `rotation_matrix` in float32, as factors: diag(signs) (left (x) right).

    (x) is the Kronecker product. Two products with small matrices take 2 (a + b) operations per
    number where one with the whole takes 2 a b.

    Attributes:
        signs: [size].
        left: [a, a]; a b = size.
        right: [b, b].
    """

    signs: Tensor
    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, size: int, seed: int | None) -> Rotation:
        """Return the factors of `rotation_matrix(size, seed)`."""
        order = _RIGHT
        while size % order or (left := hadamard_matrix(size // order)) is None:
            if order == 1:  # there is no Hadamard matrix
                dense = rotation_matrix(size, seed).float()
                return cls(torch.ones(size), dense, torch.ones(1, 1))
            order //= 2
        right = hadamard_matrix(order)
        assert right is not None, "powers of two have one"
        signs = torch.ones(size, dtype=torch.float64)
        if seed is not None:
            signs = _signs(size, torch.Generator().manual_seed(seed))[:, 0].double()
        return cls(
            signs.float(),
            (left / math.sqrt(len(left))).float(),
            (right / math.sqrt(order)).float(),
        )

    def rotate_inputs(self, weight: Tensor) -> Tensor:
        """Return weight [outputs, size] @ Q."""
        count = weight.shape[0]
        signed = (weight * self.signs).view(-1, len(self.right)) @ self.right
        blocks = signed.view(count, len(self.left), len(self.right))
        return torch.matmul(self.left.T, blocks).view(count, -1)

    def rotate_outputs(self, weight: Tensor) -> Tensor:
        """Return Q^T @ weight [size, inputs]."""
        inputs = weight.shape[1]
        signed = (weight * self.signs[:, None]).view(len(self.left), -1)
        blocks = (self.left.T @ signed).view(len(self.left), len(self.right), inputs)
        return torch.matmul(self.right.T, blocks).view(-1, inputs)


_RIGHT = 64
"""Largest size of the right factor of a rotation."""
_PAIR = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
_PALEY_PAIR = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)


def _signs(size: int, generator: torch.Generator) -> Tensor:
    """Return random signs, [size, 1] of +1 and -1."""
    return torch.randint(0, 2, (size, 1), generator=generator) * 2 - 1


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
