"""From prompts to batches: group rows that may share a batch, then apply the policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from packhorse.batching.expected import sizes_of
from packhorse.batching.policies import CONTINUOUS, PLANNED, get_policy, require_costs
from packhorse.batching.prefixes import shared_prefixes
from packhorse.batching.sizes import Limits
from packhorse.data import Batch, Prompt, SamplingParams

TOKENS_PER_STEP = 32
"""Prompt tokens that cost as much as one decoder step of a small batch.

Used if costs were not measured; 20 to 34 on the supported engines.
"""
_ASSUMED_NEW_TOKENS = 128


def plan_batches(
    prompts: Sequence[Prompt],
    policy: str,
    limits: Limits,
    *,
    mixed_decoding: bool,
    share_prefixes: bool = False,
    free: Sequence[float] = (),
    more: bool = False,
    length_group: Callable[[int], int] = lambda tokens: 0,
) -> list[Batch]:
    """Return batches of `prompts` by the named policy; every prompt is in exactly one batch.

    Groups keep the order of their first rows; `planned` puts the batches that take longest first,
    `continuous` those with the longest prompts.

    Args:
        prompts: Prompts of one window.
        policy: Name of a policy.
        limits: Bounds of a batch.
        mixed_decoding: Whether rows with different sampling parameters may share a batch
            (`EngineCapabilities.mixed_decoding`).
        share_prefixes: Whether to group rows by common leading tokens if that saves work.
        free: When each worker is done with earlier windows (seconds), for `planned`; see `expect`.
        more: Whether another window follows, for `planned`.
        length_group: Rows share a batch or prefix only if this returns the same number for their
            prompt lengths (`EngineCapabilities.length_group`).
    """
    grouped: dict[tuple[SamplingParams | None, int, tuple[int, ...]], list[Prompt]] = {}
    numbers = [length_group(len(prompt.token_ids)) for prompt in prompts]
    prefixes = [0] * len(prompts)
    if share_prefixes:
        prefixes = _find_prefixes(prompts, numbers, limits, has_batches=policy != CONTINUOUS)
    for prompt, number, length in zip(prompts, numbers, prefixes, strict=True):
        decoding = None if mixed_decoding else _shareable_params(prompt.decoding)
        grouped.setdefault((decoding, number, prompt.token_ids[:length]), []).append(prompt)
    groups = [
        Batch(tuple(group), len(prefix) if len(group) > 1 else 0)
        for (_, _, prefix), group in grouped.items()
    ]
    sizes = [sizes_of(group) for group in groups]
    if policy == PLANNED:
        from packhorse.batching.planned import best_plan

        costs = require_costs(limits)
        cuts: Iterable[tuple[int, Sequence[int]]]
        cuts = best_plan(sizes, limits, costs, free, more=more).batches
    else:
        cut = get_policy(policy)
        cuts = [(group, rows) for group, own in enumerate(sizes) for rows in cut(own, limits)]
    batches = [
        Batch(tuple(groups[group].prompts[row] for row in rows), groups[group].shared_prefix)
        for group, rows in cuts
    ]
    if policy == CONTINUOUS:
        batches.sort(key=lambda batch: -len(batch.prompts[0].token_ids))
    return batches


def _find_prefixes(
    prompts: Sequence[Prompt], numbers: Sequence[int], limits: Limits, *, has_batches: bool
) -> list[int]:
    """Return the length of the prefix that each prompt shares within its length group (tokens)."""
    cost = _count_group_cost(prompts, limits) if has_batches else 0.0
    lengths = [0] * len(prompts)
    for number in set(numbers):
        places = [place for place, each in enumerate(numbers) if each == number]
        found = shared_prefixes([prompts[place].token_ids for place in places], cost)
        for place, length in zip(places, found, strict=True):
            lengths[place] = length
    return lengths


def _count_group_cost(prompts: Sequence[Prompt], limits: Limits) -> float:
    """Return the prompt tokens that cost as much as one more group, which is about one batch."""
    most_new = max((prompt.decoding.max_new_tokens for prompt in prompts), default=1)
    cost = float(TOKENS_PER_STEP * min(most_new, _ASSUMED_NEW_TOKENS))
    if limits.costs is not None:
        coefficients = limits.costs.model.coefficients
        if coefficients.prefill_tokens > 0:
            steps = limits.costs.expectation(most_new).mean
            cost = steps * coefficients.steps / coefficients.prefill_tokens
    return cost


def _shareable_params(decoding: SamplingParams) -> SamplingParams:
    """Return the parameters that rows of one batch must have in common.

    These are how they sample and whether log-probabilities are requested.
    """
    seed = None if decoding.greedy else decoding.seed
    top = None if decoding.top_log_probs is None else 0
    return replace(
        decoding,
        stop=(),
        max_new_tokens=1,
        seed=seed,
        top_log_probs=top,
        echo=False,
        bad_words=(),
        prompt_log_probs=None,
    )
