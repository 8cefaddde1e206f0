"""Rows that need not run, because an equal row does or did.

Rows are equal when their token ids and decoding settings are, and when decoding repeats itself:
greedy, or with a seed of the row's own (rows of a job with one seed draw from different ones).
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from packhorse.data import Completion, Failure, Prompt, Request, SamplingParams

KEPT_ANSWERS = 16_384
"""Answers that are remembered for rows still to come; the oldest go first."""


@dataclass(slots=True)
class Duplicates:
    """Equal rows of one pass.

    most_waiting: rows that may wait at most, for an equal row to end or for their outcome to be
        taken away; past that, rows run, so that a file of one prompt takes no more memory than
        any other.
    ready: outcomes of rows that an earlier one answered, to be taken away by the caller.
    """

    most_waiting: int
    ready: deque[Completion | Failure] = field(default_factory=deque)
    _leaders: dict[bytes, int] = field(default_factory=dict)
    _followers: dict[int, tuple[bytes, list[Request]]] = field(default_factory=dict)
    _following: int = 0
    _answered: OrderedDict[bytes, Completion] = field(default_factory=OrderedDict)

    def join(self, request: Request, prompt: Prompt) -> bool:
        """Whether the row need not run: its outcome is `ready`, or comes with that of an equal row
        under way. Otherwise it leads the rows that are equal to it from now on."""
        if not is_deterministic(prompt.decoding):
            return False
        if self._following + len(self.ready) >= self.most_waiting:
            return False
        digest = _digest(prompt)
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
        """The outcomes of the rows that are equal to the one that just ended."""
        if outcome.index not in self._followers:
            return
        digest, requests = self._followers.pop(outcome.index)
        del self._leaders[digest]
        self._following -= len(requests)
        if (
            isinstance(outcome, Completion) and outcome.log_probs is None
        ):  # they would fill the memory
            self._answered[digest] = outcome
            if len(self._answered) > KEPT_ANSWERS:
                self._answered.popitem(last=False)
        for request in requests:
            yield _copy_outcome(outcome, request)


def distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The rows that have to run: of equal ones the first."""
    seen: set[bytes] = set()
    running = []
    for prompt in prompts:
        digest = _digest(prompt) if is_deterministic(prompt.decoding) else None
        if digest not in seen:
            running.append(prompt)
        if digest is not None:
            seen.add(digest)
    return running


def is_deterministic(decoding: SamplingParams) -> bool:
    """Whether equal rows give equal answers."""
    return decoding.greedy or decoding.seed is not None


def _digest(prompt: Prompt) -> bytes:
    digest = blake2b(array("q", prompt.token_ids).tobytes(), digest_size=16)
    digest.update(repr(prompt.decoding).encode())
    return digest.digest()


def _copy_outcome(outcome: Completion | Failure, request: Request) -> Completion | Failure:
    """The same outcome for another row."""
    if isinstance(outcome, Failure):
        return replace(
            outcome, index=request.index, id=request.id, line=request.line, key=request.key
        )
    return replace(outcome, index=request.index, id=request.id, key=request.key)
