"""Rows that ask for several completions: split into one engine row each, and put together again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from packhorse.data import Completion, Failure, Request
from packhorse.params.sampling_params import SamplingParams, single_choice


@dataclass(slots=True)
class Choices:
    """Rows of one pass with several choices.

    The first choice has the index of its row, the others have negative ones.
    """

    _row_of: dict[int, int] = field(default_factory=dict)
    _indexes: dict[int, list[int]] = field(default_factory=dict)
    _outcomes: dict[int, dict[int, Completion | Failure]] = field(default_factory=dict)
    _num_others: int = 0

    def split(
        self, request: Request, decoding: SamplingParams
    ) -> Iterator[tuple[int, SamplingParams]]:
        """Yield the index and the sampling parameters of each choice of a row."""
        if decoding.n == 1:
            yield request.index, decoding
            return
        first = self._num_others + 1
        self._num_others += decoding.n - 1
        indexes = [request.index, *range(-first, -self._num_others - 1, -1)]
        self._indexes[request.index] = indexes
        self._outcomes[request.index] = {}
        for choice, index in enumerate(indexes):
            self._row_of[index] = request.index
            yield index, single_choice(decoding, choice)

    def collect(self, outcome: Completion | Failure) -> Iterator[Completion | Failure]:
        """Yield an outcome, that of a row with several choices once all of them are there.

        If a choice failed, the row fails as the first one that did.
        """
        row = self._row_of.pop(outcome.index, None)
        if row is None:
            yield outcome
            return
        outcomes, indexes = self._outcomes[row], self._indexes[row]
        outcomes[outcome.index] = outcome
        if len(outcomes) < len(indexes):
            return
        del self._outcomes[row], self._indexes[row]
        choices: list[Completion] = []
        for index in indexes:
            found = outcomes[index]
            if isinstance(found, Failure):
                yield replace(found, index=row)
                return
            choices.append(found)
        last = max(each.timing.finished for each in choices)
        first = choices[0]
        yield replace(
            first, timing=replace(first.timing, finished=last), other_choices=tuple(choices[1:])
        )
