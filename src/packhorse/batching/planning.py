"""From prompts to batches: groups rows that may share a batch, then lets the policy cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from packhorse.batching.policies import Limits, RowSize, policy_named
from packhorse.data import Batch, Decoding, Prompt


def plan(
    prompts: Sequence[Prompt], policy: str, limits: Limits, *, mixed_decoding: bool
) -> list[Batch]:
    """Batches of `prompts` by the named policy; every prompt is in exactly one.

    mixed_decoding: an engine trait; where it is False, rows of different decoding settings never
    share a batch. Groups keep the order in which their first row appears.
    """
    cut = policy_named(policy)
    groups: dict[Decoding | None, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(None if mixed_decoding else _shared(prompt.decoding), []).append(prompt)
    batches: list[Batch] = []
    for group in groups.values():
        sizes = [RowSize(len(prompt.token_ids), prompt.decoding.max_new_tokens) for prompt in group]
        batches += [Batch(tuple(group[index] for index in rows)) for rows in cut(sizes, limits)]
    return batches


def _shared(decoding: Decoding) -> Decoding:
    """What rows of one batch must have in common: how they sample."""
    seed = None if decoding.greedy else decoding.seed
    return replace(decoding, stop=(), max_new_tokens=1, seed=seed)
