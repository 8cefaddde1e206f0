"""Deduplication: rows that need not run because an equal row runs or has run.

Rows are equal if their token ids and sampling parameters are equal and decoding is deterministic:
greedy, or with a seed of the row's own (rows of a job with one seed get different row seeds).
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from packhorse.data import Completion, Failure, Prompt, Request, SamplingParams

KEPT_ANSWERS = 16_384
"""Maximum number of completions kept for later rows; the oldest are dropped first."""


@dataclass(slots=True)
class Duplicates:
    """Equal rows of one pass.

    Attributes:
        most_waiting: Maximum number of rows that wait for an equal row or for their outcome to be
            taken. Beyond that, rows run, so that a file of equal prompts needs no more memory than
            any other.
        ready: Outcomes of rows that an earlier row answered, for the caller to take.
    """

    most_waiting: int
    ready: deque[Completion | Failure] = field(default_factory=deque)
    _leaders: dict[bytes, int] = field(default_factory=dict)
    _followers: dict[int, tuple[bytes, list[Request]]] = field(default_factory=dict)
    _following: int = 0
    _answered: OrderedDict[bytes, Completion] = field(default_factory=OrderedDict)

    def join(self, request: Request, prompt: Prompt) -> bool:
        """Return whether the row need not run.

        If so, its outcome is `ready` or follows with that of an equal running row. Otherwise later
        equal rows wait for this one.
        """
        if not is_deterministic(prompt.decoding) or prompt.decoding.echo:
            return False
        if self._following + len(self.ready) >= self.most_waiting:
            return False
        digest = _digest(prompt, request.prompt_options)
        answer = self._answered.get(digest)
        if answer is not None:
            self._answered.move_to_end(digest)
            self.ready.append(_copy_outcome(answer, request))
            return True
        leader = self._leaders.setdefault(digest, request.index)
        if leader == request.index:
            self._followers[leader] = (digest, [])
            return False
        self._followers[leader][1].append(request)
        self._following += 1
        return True

    def resolve_duplicates(self, outcome: Completion | Failure) -> Iterator[Completion | Failure]:
        """Yield the outcomes of the rows that are equal to a finished one."""
        if outcome.index not in self._followers:
            return
        digest, requests = self._followers.pop(outcome.index)
        del self._leaders[digest]
        self._following -= len(requests)
        # Log-probabilities would fill the memory.
        has_log_probs = isinstance(outcome, Completion) and (
            outcome.log_probs is not None or outcome.prompt_log_probs is not None
        )
        if isinstance(outcome, Completion) and not has_log_probs:
            self._answered[digest] = outcome
            if len(self._answered) > KEPT_ANSWERS:
                self._answered.popitem(last=False)
        for request in requests:
            yield _copy_outcome(outcome, request)


def distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Return the rows that have to run: the first of each set of equal rows."""
    seen: set[bytes] = set()
    running = []
    for prompt in prompts:
        digest = _digest(prompt, {}) if is_deterministic(prompt.decoding) else None
        if digest not in seen:
            running.append(prompt)
        if digest is not None:
            seen.add(digest)
    return running


def is_deterministic(decoding: SamplingParams) -> bool:
    """Return whether equal rows give equal completions."""
    return decoding.greedy or decoding.seed is not None


def _digest(prompt: Prompt, options: Mapping[str, Any]) -> bytes:
    """Return what equal rows have in common.

    Args:
        prompt: The prompt.
        options: Options of the row by which its output is read.
    """
    digest = blake2b(array("q", prompt.token_ids).tobytes(), digest_size=16)
    digest.update(repr(prompt.decoding).encode())
    if prompt.reasoning is not None or options:
        digest.update(repr((prompt.reasoning, sorted(options.items(), key=repr))).encode())
    return digest.digest()


def _copy_outcome(outcome: Completion | Failure, request: Request) -> Completion | Failure:
    """Return the same outcome for another row."""
    if isinstance(outcome, Failure):
        return replace(
            outcome, index=request.index, id=request.id, line=request.line, key=request.key
        )
    return replace(outcome, index=request.index, id=request.id, key=request.key)
