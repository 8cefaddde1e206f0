"""Whether a transformers model computes in batches and step by step what it computes at once.

A few short rows are computed twice when a model is loaded: whole, in one forward pass without a
cache, and the way the engine computes them: prefill, steps, padding on the left beside a longer
row, rows that leave, prefixes that are shared. Logits that differ are wrong text in every row, and
nothing else would show it: families differ in what their forward pass calls its state and in
which of their layers heed the attention mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from packhorse.engines.transformers.batch_rule import BatchRule, batch_rule
from packhorse.engines.transformers.padded_batch import PaddedBatch
from packhorse.engines.transformers.prefix_states import PrefixStates
from packhorse.engines.transformers.row_cache import state_name
from packhorse.errors import ModelError, first_line

TOLERANCES = {torch.float32: 3e-3, torch.bfloat16: 0.25, torch.float16: 0.25}
"""Difference of logits, as a share of their spread, up to which they count as the same. A state
that is lost, or padding that is seen, differs by 0.1 to 2; rounding differs by less than 1e-4 in
float32, and by up to 0.1 in half precision."""
PROBES = 3
"""Rows that are tried, before one difference counts: a router's near tie may fall either way."""
SHORT, LONG = 4, 6
"""Tokens of the row that is checked and of the one beside it."""
DAMAGED = "the files are damaged, incomplete or of another kind: fetch or prepare them again"

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Findings:
    """What a model was found to compute, and what that takes.

    rule: which rows may share a batch. shares_prefixes: rows can go on from the state of a prefix.
    vocab_size: logits of a token. cache_bytes: of a token. fixed_bytes: of a row, whatever its
    length.
    """

    rule: BatchRule
    shares_prefixes: bool
    vocab_size: int
    cache_bytes: int
    fixed_bytes: int


def examine(model: PreTrainedModel, folder: Path) -> Findings:
    """Compares a model with itself; `folder` is for messages.

    Raises ModelError for a model that cannot be run, that computes no numbers, or whose logits step
    by step are not those of a whole row.
    """
    family = str(model.config.model_type)
    if not state_name(inspect.signature(model.forward).parameters):
        raise ModelError(
            f"{folder} cannot be run: {family} models keep nothing of the tokens they have seen, "
            "so that every token would cost a whole text",
            "give a model of another family",
        )
    try:
        batch = PaddedBatch(model, [[0]], pad_id=0)
        logits = batch.prefill()
        rule = batch_rule(model)
    except Exception as error:
        raise ModelError(f"{folder} cannot be run: {first_line(error)}", DAMAGED) from error
    if not logits.max().isfinite():
        raise ModelError(f"{folder} computes no numbers, only NaN or infinity", DAMAGED)
    check = _Check(model, logits.shape[-1])
    shares = PrefixStates(model).possible
    if rule.limit is None or rule.limit >= check.longest:
        if not check.holds(check.beside_a_longer_row):
            _require_steps(check, folder, family)
            alone = not check.holds(check.beside_an_equal_row)
            rule = replace(rule, mixes=False, alone=alone)
        shares = shares and check.holds(check.after_a_prefix)
    return Findings(rule, shares, logits.shape[-1], batch.position_bytes, batch.fixed_bytes)


def _require_steps(check: _Check, folder: Path, family: str) -> None:
    """ModelError if a single row is not computed right either."""
    if not check.holds(check.alone):
        raise ModelError(
            f"{folder} cannot be run: this {family} model computes other logits token by token "
            "than for a whole text, so its text would be wrong",
            "another version of transformers may run it: pip install --upgrade transformers",
        )


class _Check:
    """Comparisons of a model with itself. Each takes a row of `longest` tokens and another one, and
    returns what it computed for the first and what it should have been."""

    def __init__(self, model: PreTrainedModel, vocab_size: int) -> None:
        self._model = model
        self._tolerance = TOLERANCES.get(model.dtype, 0.25)
        self._usable = _plain_ids(model, vocab_size)
        self._known: dict[Ids, Tensor] = {}
        self.longest = LONG + 2

    def holds(self, compare: Callable[[Ids, Ids], tuple[Tensor, Tensor]]) -> bool:
        """Whether a comparison finds the same, for one of a few rows; what raises does not."""
        unclear = 0
        for row, other in self._rows():
            try:
                found, expected = compare(row, other)
            except Exception:  # noqa: BLE001 - what a family raises for what it cannot do
                return False
            if not bool(expected.isfinite().all()):
                unclear += 1
            elif _difference(found, expected) <= self._tolerance:
                return True
        return unclear == PROBES

    def alone(self, row: Ids, other: Ids) -> tuple[Tensor, Tensor]:
        """Prefill and steps of a single row."""
        return self._stepped([row[:SHORT]], row), self._whole(row)[SHORT - 1 : SHORT + 2]

    def beside_a_longer_row(self, row: Ids, other: Ids) -> tuple[Tensor, Tensor]:
        """As `alone`, with a longer row that leaves after the first step."""
        found = self._stepped([row[:SHORT], other[:LONG]], row)
        return found, self._whole(row)[SHORT - 1 : SHORT + 2]

    def beside_an_equal_row(self, row: Ids, other: Ids) -> tuple[Tensor, Tensor]:
        """As `alone`, with a row of the same length that leaves after the first step."""
        found = self._stepped([other[:SHORT], row[:SHORT]], row)
        return found, self._whole(row)[SHORT - 1 : SHORT + 2]

    def after_a_prefix(self, row: Ids, other: Ids) -> tuple[Tensor, Tensor]:
        """Two rows of different length that go on from the state of what they begin with."""
        prefix, longer = row[:SHORT], (*row[:SHORT], *other[SHORT : LONG + 2])
        state = PrefixStates(self._model).of(prefix)
        assert state is not None
        rows = [row[:LONG], longer]
        found = PaddedBatch(self._model, rows, pad_id=0, prefix=state).prefill()[:1]
        return found, self._whole(row)[LONG - 1 : LONG]

    def _stepped(self, rows: Sequence[Ids], row: Ids) -> Tensor:
        """Logits [3, vocabulary] of `row`, which is one of `rows`: its prefill and two steps."""
        place = next(place for place, each in enumerate(rows) if each == row[: len(each)])
        batch = PaddedBatch(self._model, rows, pad_id=0)
        found = [batch.prefill()[place]]
        found.append(batch.step([row[SHORT]] * len(rows))[place])
        if len(rows) > 1:
            batch.keep([place])
        found.append(batch.step([row[SHORT + 1]])[0])
        return torch.stack(found)

    @torch.inference_mode()
    def _whole(self, row: Ids) -> Tensor:
        """Logits [tokens, vocabulary] of one forward pass, nothing kept."""
        if row not in self._known:
            ids = torch.tensor([row], device=self._model.device)
            self._known[row] = self._model(input_ids=ids, use_cache=False).logits[0]
        return self._known[row]

    def _rows(self) -> Iterator[tuple[Ids, Ids]]:
        """Pairs of rows of different tokens, the same in every run."""
        count = len(self._usable)
        for probe in range(PROBES):
            drawn = [
                self._usable[(7919 * place * place + 104_729 * place + 31 * probe) % count]
                for place in range(1 + probe * 100, 1 + probe * 100 + 2 * self.longest)
            ]
            yield tuple(drawn[: self.longest]), tuple(drawn[self.longest :])


def _difference(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference as a share of the spread of the logits."""
    found, expected = found.double(), expected.double()
    spread = (expected - expected.mean(dim=-1, keepdim=True)).square().mean().sqrt()
    difference = (found - expected).square().mean().sqrt()
    return float(difference / spread.clamp(min=1e-12))


def _plain_ids(model: PreTrainedModel, vocab_size: int) -> Sequence[int]:
    """Token ids without those that a config gives a meaning: padding, images, the end of a text."""
    embeddings: Any = model.get_input_embeddings()
    known = min(vocab_size, getattr(embeddings, "num_embeddings", vocab_size))
    config: Any = model.config.get_text_config()
    settings = {**model.config.to_dict(), **config.to_dict()}
    special: set[int] = set()
    for name, value in settings.items():
        if name.endswith(("token_id", "token_index")):
            special.update(value if isinstance(value, list) else [value])
    return [token for token in range(known) if token not in special] or range(known)
