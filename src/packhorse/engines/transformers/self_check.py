"""Whether a transformers model computes in batches and step by step what it computes at once.

A few short rows are computed twice when a model is loaded: whole, in one forward pass without a
cache, and the way the engine computes them: prefill, steps, padding on the left beside a longer
row, rows that leave, prefixes that are shared. Logits that differ are wrong text in every row, and
nothing else would show it: families differ in what their forward pass calls its state and in
which of their layers heed the attention mask. What only differs in longer rows, beyond windows or
the reach of sparse attention, is found by lowering those settings for a moment.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf, isinf, isnan, nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from packhorse.engines.transformers.batch_rule import BatchRule, batch_rule
from packhorse.engines.transformers.padded_batch import PaddedBatch
from packhorse.engines.transformers.prefix_states import PrefixStates
from packhorse.engines.transformers.row_cache import state_name
from packhorse.engines.transformers.thresholds import lowered, thresholds
from packhorse.errors import ModelError, first_line
from packhorse.models.engine_support import instead_of, other_engines

TOLERANCES = {torch.float32: 3e-3, torch.bfloat16: 0.25, torch.float16: 0.25}
"""Difference of logits, as a share of their spread, up to which they count as the same. A state
that is lost, or padding that is seen, differs by 0.1 to 2; rounding differs by less than 1e-4 in
float32, and by up to 0.1 in half precision."""
PROBES = 3
"""Rows that are tried, before one difference counts: a router's near tie may fall either way."""
SHORT, LONG = 4, 6
"""Tokens of the row that is checked and of the one beside it."""
DAMAGED = "the files are damaged, incomplete or of another kind: fetch or prepare them again"

LEAST_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.02}
"""As TOLERANCES: what rounding may come to in one row, if it was less in another."""
VISIBLE, SCALE = 6, 60
"""How many times as much as rounding a lowered setting must change logits, so that what padding
does to it shows; a scale that grows with the logarithm of a position hardly differs between two."""
LOWERED = 3
"""Tokens that settings such as windows are lowered to, fewer than a row that is checked has."""

Ids = tuple[int, ...]
_Comparison = Callable[["_Check", Ids, Ids], tuple[Tensor, Tensor]]


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
        raise _cannot_run(model, folder, error) from error
    if not logits.max().isfinite():
        raise ModelError(f"{folder} computes no numbers, only NaN or infinity", DAMAGED)
    check = _Check(model, logits.shape[-1], TOLERANCES.get(model.dtype, 0.25))
    shares = PrefixStates(model).possible
    if rule.limit is None or rule.limit >= check.longest:
        if not check.holds(_Check.beside_a_longer_row):
            _require_steps(check, folder, model.config)
            alone = not check.holds(_Check.beside_an_equal_row)
            rule = replace(rule, mixes_up_to=0, shares_up_to=0 if alone else None)
        shares = shares and check.holds(_Check.after_a_prefix)
    if not rule.alone:
        rule = _beyond_thresholds(model, rule, check)
        shares = shares and rule.mixes_up_to is None
    return Findings(rule, shares, logits.shape[-1], batch.position_bytes, batch.fixed_bytes)


def _cannot_run(model: PreTrainedModel, folder: Path, error: Exception) -> ModelError:
    """The error for a model that does not compute a token with a cache."""
    try:
        with torch.inference_mode():
            model(
                input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device),
                use_cache=False,
            )
    except Exception:  # noqa: BLE001 - the first error says what is wrong
        return ModelError(f"{folder} cannot be run: {first_line(error)}", DAMAGED)
    family = model.config.model_type
    return ModelError(
        f"{folder} cannot be run: {family} models do not take a cache of keys and values as other "
        f"families do: {first_line(error)}",
        instead_of(model.config, "transformers"),
    )


def _require_steps(check: _Check, folder: Path, config: Any) -> None:
    """ModelError if a single row is not computed right either."""
    if not check.holds(_Check.alone):
        raise ModelError(
            f"{folder} cannot be run: this {config.model_type} model computes other logits token "
            "by token than for a whole text, so its text would be wrong",
            instead_of(config, "transformers")
            if other_engines(config, "transformers")
            else "another version of transformers may run it: pip install --upgrade transformers",
        )


def _beyond_thresholds(model: PreTrainedModel, rule: BatchRule, check: _Check) -> BatchRule:
    """The rule with bounds for rows longer than windows, chunks, or what sparse attention takes.

    The settings are lowered one by one and, as some multiply, together. Rows are bounded if they
    then are not what they are alone, or if rounding hides whether they are. No model is refused: a
    setting may be lowered to what a model cannot have.
    """
    settings = thresholds(model, LONG)
    if not settings:
        return rule
    mixed, equal = _Check.beside_longer_as_alone, _Check.beside_equal_as_alone
    compare = mixed if rule.mixes_up_to is None else equal
    least = LEAST_ROUNDING.get(model.dtype, 0.02)
    rounding = max(check.least_difference(compare), least)

    def holds(names: Iterable[str], compare: _Comparison) -> bool:
        with lowered(model, {name: settings[name] for name in names}, LOWERED):
            tolerance = min(check.tolerance, 2 * rounding)
            beyond = _Check(model, check.vocab_size, tolerance)
            repeating = _Check(model, check.vocab_size, tolerance, repeats=True)
            try:
                effect = beyond.difference_from(check)
            except Exception:  # noqa: BLE001 - what a family raises for a setting it cannot have
                return False
            if effect < rounding / 100:
                return True
            is_scale = any("floor" in name for name in names)
            hidden = compare is mixed and effect <= (SCALE if is_scale else VISIBLE) * rounding
            return not hidden and beyond.holds(compare) and repeating.holds(compare)

    causes = [name for name in settings if not holds([name], compare)]
    if not causes and (len(settings) == 1 or holds(settings, compare)):
        return rule
    causes = causes or list(settings)
    limit = min(settings[name] for name in causes)
    shares = compare is mixed and all(holds([name], equal) for name in causes)
    if compare is mixed:
        rule = replace(rule, mixes_up_to=limit)
    return rule if shares else replace(rule, shares_up_to=limit)


class _Check:
    """Comparisons of a model with itself. Each takes a row of `longest` tokens and another one, and
    returns what it computed for the first and what it should have been.

    tolerance: difference up to which logits count as the same, in their standard deviations.
    repeats: the row has two different tokens in turns; where a model takes the best of its tokens,
    which of two equal ones it takes depends on the width of a batch.
    """

    def __init__(
        self, model: PreTrainedModel, vocab_size: int, tolerance: float, *, repeats: bool = False
    ) -> None:
        self._model = model
        self.vocab_size = vocab_size
        self.tolerance = tolerance
        self._repeats = repeats
        self._usable = _plain_ids(model, vocab_size)
        self._known: dict[Ids, Tensor] = {}
        self.longest = LONG + 2

    def holds(self, compare: _Comparison) -> bool:
        """Whether a comparison finds the same, for one of a few rows; what raises does not."""
        unclear = 0
        for difference in self._differences(compare):
            if isnan(difference):
                unclear += 1
            elif difference <= self.tolerance:
                return True
            elif isinf(difference):
                return False
        return unclear == PROBES

    def least_difference(self, compare: _Comparison) -> float:
        """The least that a comparison finds for a few rows, up to the first that holds."""
        found = []
        for each in self._differences(compare):
            found.append(self.tolerance if isnan(each) else each)
            if each <= self.tolerance:
                break
        return min(found)

    def difference_from(self, other: _Check) -> float:
        """How far the logits of a whole row are from those found in another check."""
        row, _ = next(self._rows())
        return _difference(self._whole(row), other._known[row])

    def _differences(self, compare: _Comparison) -> Iterator[float]:
        """What a comparison finds for a few rows: NaN if that is unclear, infinity if it raises."""
        for row, other in self._rows():
            try:
                found, expected = compare(self, row, other)
            except Exception:  # noqa: BLE001 - what a family raises for what it cannot do
                yield inf
                continue
            if not bool(expected.isfinite().all()):
                yield nan
            else:
                difference = _difference(found, expected)
                yield inf if isnan(difference) else difference

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

    def beside_longer_as_alone(self, row: Ids, other: Ids) -> tuple[Tensor, Tensor]:
        """As `beside_a_longer_row`, compared with the row alone."""
        return self.beside_a_longer_row(row, other)[0], self.alone(row, other)[0]

    def beside_equal_as_alone(self, row: Ids, other: Ids) -> tuple[Tensor, Tensor]:
        """As `beside_an_equal_row`, compared with the row alone."""
        return self.beside_an_equal_row(row, other)[0], self.alone(row, other)[0]

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
            row = drawn[:2] * (self.longest // 2) if self._repeats else drawn[: self.longest]
            yield tuple(row), tuple(drawn[self.longest :])


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
