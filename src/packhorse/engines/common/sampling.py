"""Sampling of the next token from logits, for engines that choose tokens themselves.

Rule: logits / temperature -> those of at least min_p times the largest probability -> the top_k
largest -> softmax -> the nucleus of top_p (vLLM's order; `packhorse.engines.common.logits` comes
before) -> the smallest token id whose cumulative probability, summed in the order of ids, exceeds u
times their sum. All in float64; u is one number from [0, 1) per token, from the row's own
generator. A row's draws therefore depend on its seed alone, and its tokens on its own logits: never
on its batch. (Logits of a row that is computed in another batch may differ by float32 rounding,
about 1e-5; the order of ids, unlike the order of probabilities, makes the outcome follow such a
change continuously.)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from packhorse.params.sampling_params import SamplingParams

FIRST_CANDIDATES = 1024


def wants_all_logits(decoding: SamplingParams) -> bool:
    """Whether a row needs all of its logits, not only the index of the largest."""
    return (
        not decoding.greedy
        or decoding.changes_logits
        or decoding.top_log_probs is not None
        or decoding.prompt_log_probs is not None
    )


def row_generator(decoding: SamplingParams) -> random.Random:
    """Return the row's own random generator; without a seed it differs each time."""
    return random.Random(decoding.seed)  # noqa: S311 - sampling, not secrecy


def choose_tokens(
    logits: Tensor,
    decodings: Sequence[SamplingParams],
    generators: Sequence[random.Random],
    change: Callable[[int, Tensor], None] = lambda row, logits: None,
    best: Callable[[int, Tensor], int | None] = lambda row, logits: None,
) -> list[int | None]:
    """Return a token id per row; None for a row whose logits are not finite.

    Greedy rows take the first of equal logits.

    Args:
        logits: [rows, vocabulary], any floating type; not changed.
        decodings, generators: one per row; a generator advances by one number if its row samples.
        change: changes a copy of the logits [vocabulary] of a row, in float32, in place; called for
            rows whose `changes_logits` is set.
        best: returns the token of a row by its logits [vocabulary]; called for rows whose
            `is_masked_greedy` is set, which saves passes over the vocabulary.
    """
    others = [row for row, decoding in enumerate(decodings) if not decoding.is_masked_greedy]
    if len(others) < len(decodings):
        found: dict[int, int | None] = {}
        if others:
            tokens = choose_tokens(
                logits[others],
                [decodings[row] for row in others],
                [generators[row] for row in others],
                lambda place, values: change(others[place], values),
            )
            found = dict(zip(others, tokens, strict=True))
        return [
            found[row] if row in found else best(row, logits[row]) for row in range(len(decodings))
        ]
    changed = [row for row, decoding in enumerate(decodings) if decoding.changes_logits]
    if changed:
        logits = logits.to(torch.float32, copy=True)
        for row in changed:
            change(row, logits[row])
    largest, places = logits.max(dim=-1)
    chosen: list[int | None] = places.tolist()
    for row, is_number in enumerate(largest.isfinite().tolist()):
        if not is_number:
            chosen[row] = None
    sampling = [
        row
        for row, decoding in enumerate(decodings)
        if chosen[row] is not None and not decoding.greedy
    ]
    if sampling:
        options = [decodings[row] for row in sampling]
        drawn = sample(
            logits[sampling],
            temperature=[decoding.temperature for decoding in options],
            top_k=[decoding.top_k for decoding in options],
            top_p=[decoding.top_p for decoding in options],
            min_p=[decoding.min_p for decoding in options],
            uniform=[generators[row].random() for row in sampling],
        )
        for row, token_id in zip(sampling, drawn.tolist(), strict=True):
            chosen[row] = token_id
    return chosen


def sample(
    logits: Tensor,
    *,
    temperature: Sequence[float],
    top_k: Sequence[int],
    top_p: Sequence[float],
    uniform: Sequence[float],
    min_p: Sequence[float] = (),
) -> Tensor:
    """Return token ids [rows] by the rule of this module.

    Args:
        logits: [rows, vocabulary].
        temperature, top_k, top_p, uniform: one per row; temperature > 0, top_k 0 for no limit,
            0 < top_p <= 1, 0 <= uniform < 1.
        min_p: one per row, 0 <= min_p <= 1; () for no limit.
    """
    device = logits.device

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=device)[:, None]

    wide = logits.double()
    scaled = (wide - wide.amax(dim=-1, keepdim=True)) / column(temperature)
    if any(min_p):
        scaled = scaled.masked_fill(scaled < column(min_p).log(), -torch.inf)
    limits = torch.tensor(top_k, device=device)[:, None]
    shares = column(top_p)
    narrow = ((limits > 0) | (shares < 1)).squeeze(1).nonzero().squeeze(1)
    if len(narrow):
        kept = _kept(scaled[narrow], limits[narrow], shares[narrow], FIRST_CANDIDATES)
        scaled[narrow] = scaled[narrow].masked_fill(~kept, -torch.inf)
    cumulative = scaled.softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    target = torch.minimum(column(uniform) * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)


def _kept(scaled: Tensor, top_k: Tensor, top_p: Tensor, candidates: int) -> Tensor:
    """Return the mask [rows, vocabulary] of tokens that may be drawn; smaller ids win ties.

    Only the `candidates` largest are sorted. Rows that may reach past them are repeated one at a
    time with as many as they need, since sorting takes ten times the memory of its input.

    Args:
        top_k, top_p: [rows, 1].
    """
    vocabulary = scaled.shape[-1]
    width = min(vocabulary, candidates)
    ids = scaled.topk(width, dim=-1).indices.sort(dim=-1).values
    values, order = scaled.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, order)
    limit = torch.where(top_k > 0, top_k, vocabulary)
    inside = torch.arange(width, device=scaled.device)[None, :] < limit
    weights = values.exp() * inside
    total = torch.where(top_k > 0, weights.sum(-1, True), scaled.exp().sum(-1, True))
    share = weights / total
    reached = share.cumsum(dim=-1)
    kept = torch.zeros_like(scaled, dtype=torch.bool)
    kept.scatter_(-1, ids, inside & (reached - share < top_p))
    open_ended = (limit > width) & ((reached[:, -1:] < top_p) | (top_k > 0))
    if width < vocabulary:
        for row in open_ended.squeeze(1).nonzero().squeeze(1).tolist():
            one = slice(row, row + 1)
            kept[one] = _kept(scaled[one], top_k[one], top_p[one], int(limit[row]))
    return kept
