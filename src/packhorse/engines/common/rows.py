"""State of a row inside an engine, and retries of a failed batch in halves."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, TypeVar

from packhorse.data import (
    EngineOutput,
    Failure,
    FinishReason,
    Prompt,
    Scores,
    Timing,
    TokenLogProbs,
)
from packhorse.engine_protocol import LogProbsCallback, TokenCallback
from packhorse.errors import first_line
from packhorse.params.sampling_params import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

    from packhorse.engines.common.grammars import Grammars
    from packhorse.engines.common.log_probs import Logits
    from packhorse.engines.common.logits import LogitsProcessor

Result = EngineOutput | Failure
T = TypeVar("T")

NOT_NUMBERS = (
    "the model computed no numbers (NaN or infinity) for this row: its weights are damaged or "
    "overflow in this number format; try float32"
)
NOTHING_LEFT = (
    "no token can be chosen for this row: its structured output, bad_words, suppress_tokens and "
    "logit_bias exclude all tokens, or the model computed no numbers (NaN or infinity)"
)
_OUT_OF_MEMORY = re.compile(r"out of memory|can.t allocate|bad_alloc|not enough memory", re.I)


class CallbackError(BaseException):
    """Carries an exception of the caller's token callback past the handling of engine failures."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(slots=True)
class Row:
    """A prompt and the tokens generated for it so far.

    A row is kept when an attempt fails: the next attempt continues after its last token, so
    `on_token` sees every token once and only the prefill is repeated.

    Attributes:
        submitted, first_token: seconds of `time.monotonic`.
        prompt_log_probs: of the prompt's tokens but the first, as far as they are known.
        answered: it has its result.
        failed: its result is a Failure.
    """

    prompt: Prompt
    submitted: float = field(default_factory=time.monotonic)
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[TokenLogProbs] = field(default_factory=list)
    prompt_log_probs: list[TokenLogProbs] = field(default_factory=list)
    first_token: float | None = None
    answered: bool = False
    failed: bool = False
    _processor: LogitsProcessor | None = None

    @property
    def sequence(self) -> tuple[int, ...]:
        """Prompt and generated tokens."""
        return (*self.prompt.token_ids, *self.token_ids)

    @property
    def tokens(self) -> int:
        """Number of tokens of `sequence`."""
        return len(self.prompt.token_ids) + len(self.token_ids)

    @property
    def tokens_left(self) -> int:
        return self.prompt.decoding.max_new_tokens - len(self.token_ids)

    def forced_token(self) -> int | None:
        """Return the token that must come next whatever the logits; None if the model chooses."""
        reasoning = self.prompt.reasoning
        return None if reasoning is None else reasoning.next(self.token_ids)

    @property
    def needs_prompt_log_probs(self) -> bool:
        """Whether log-probabilities of the prompt are requested and not all known."""
        prompt = self.prompt
        return prompt.decoding.prompt_log_probs is not None and (
            len(self.prompt_log_probs) < len(prompt.token_ids) - 1
        )

    def take_prompt_logits(self, logits: Logits) -> None:
        """Add the log-probabilities of the first token of the prompt that has none.

        Args:
            logits: [vocabulary], after the token before it.
        """
        from packhorse.engines.common.log_probs import prompt_token_log_probs

        token_id = self.prompt.token_ids[len(self.prompt_log_probs) + 1]
        count = self.prompt.decoding.prompt_log_probs or 0
        self.prompt_log_probs.append(prompt_token_log_probs(logits, token_id, count))

    def change_logits(self, logits: Tensor, end_ids: Collection[int], grammars: Grammars) -> None:
        """Change the logits [vocabulary] of the next token in place; see `LogitsProcessor`."""
        self._logits_processor(end_ids, grammars)(logits, self.token_ids)

    def best_token(
        self, logits: Tensor, end_ids: Collection[int], grammars: Grammars
    ) -> int | None:
        """Return the next token of a row that `is_masked_greedy`; see `GrammarState.best`."""
        return self._logits_processor(end_ids, grammars).best(logits, self.token_ids)

    def _logits_processor(self, end_ids: Collection[int], grammars: Grammars) -> LogitsProcessor:
        if self._processor is None:
            from packhorse.engines.common.logits import LogitsProcessor

            prompt = self.prompt
            self._processor = LogitsProcessor(
                prompt.decoding, prompt.token_ids, end_ids, grammars, prompt.reasoning
            )
        return self._processor

    def fail_without_token(self) -> Failure:
        """Return the failure of a row for which no token can be chosen."""
        changes = self.prompt.decoding.changes_logits
        return self.fail("engine_error", NOTHING_LEFT if changes else NOT_NUMBERS)

    def finish_prompt(self) -> EngineOutput | Failure:
        """Return the result of a row that generates nothing."""
        if not all(isfinite(each.log_prob) for each in self.prompt_log_probs):
            return self.fail("engine_error", NOT_NUMBERS)
        return self._complete("length", time.monotonic())

    def take(
        self,
        token_id: int,
        end_ids: Collection[int],
        on_token: TokenCallback | None,
        log_probs: TokenLogProbs | None = None,
    ) -> EngineOutput | None:
        """Add the token just generated, and return the output if the row ends with it.

        Reasons are checked in this order: end token (neither kept nor reported), callback, limit.

        Args:
            log_probs: of this token, for a row that asks for them.

        Raises:
            CallbackError: `on_token` raised.
        """
        now = time.monotonic()
        if self.first_token is None:
            self.first_token = now
        decoding = self.prompt.decoding
        if token_id in end_ids and not decoding.ignore_eos:
            return self._complete("stop", now)
        if token_id in decoding.stop_token_ids:
            return self._complete("stop", now)
        self.token_ids.append(token_id)
        if log_probs is not None:
            self.log_probs.append(log_probs)
        if on_token is not None and _ends(on_token, self.prompt.index, token_id, log_probs):
            return self._complete("stop", now)
        return self._complete("length", now) if self.tokens_left <= 0 else None

    def score(self, log_probs: Sequence[float]) -> Scores:
        """Return the row's result if continuations were scored instead of generating."""
        self.answered = True
        timing = Timing(self.submitted, time.monotonic())
        return Scores(self.prompt.index, tuple(log_probs), timing)

    def fail(self, code: str, message: str) -> Failure:
        self.answered = self.failed = True
        return Failure(self.prompt.index, code, message)

    def _complete(self, reason: FinishReason, now: float) -> EngineOutput:
        self.answered = True
        timing = Timing(self.submitted, now, self.first_token)
        decoding = self.prompt.decoding
        log_probs = None if decoding.top_log_probs is None else tuple(self.log_probs)
        of_prompt = None if decoding.prompt_log_probs is None else tuple(self.prompt_log_probs)
        return EngineOutput(
            self.prompt.index, tuple(self.token_ids), reason, timing, log_probs, of_prompt
        )


def _ends(
    on_token: TokenCallback, index: int, token_id: int, log_probs: TokenLogProbs | None
) -> bool:
    try:
        if log_probs is not None and isinstance(on_token, LogProbsCallback):
            on_token.take_log_probs(index, log_probs)
        return on_token(index, token_id)
    except BaseException as error:
        raise CallbackError(error) from error


def force_tokens(chosen: list[int | None], rows: Sequence[Row]) -> None:
    """Replace tokens that the model chose by those that rows must take, in place.

    Args:
        chosen: Next token of each row; None, for logits that are not finite, is kept.
        rows: The rows.
    """
    for place, row in enumerate(rows):
        if row.prompt.reasoning is not None and chosen[place] is not None:
            forced = row.forced_token()
            chosen[place] = chosen[place] if forced is None else forced


def by_common(rows: Iterable[Row], common: Callable[[Row], object]) -> list[list[Row]]:
    """Return groups of rows with equal `common(row)`, in the order of their first rows."""
    groups: dict[object, list[Row]] = {}
    for row in rows:
        groups.setdefault(common(row), []).append(row)
    return list(groups.values())


def settle(row: Row, max_context: int, vocab_size: int) -> EngineOutput | Failure | None:
    """Return the result of a row that need not run, or that no engine can run (`refuse`).

    A row need not run if it generates nothing and asks for nothing of its prompt.
    """
    if refusal := refuse(row, max_context, vocab_size):
        return refusal
    decoding = row.prompt.decoding
    is_empty = not decoding.max_new_tokens and decoding.prompt_log_probs is None
    return row.finish_prompt() if is_empty else None


def refuse(row: Row, max_context: int, vocab_size: int) -> Failure | None:
    """Return the failure of a row that no engine can run.

    That is one that is empty, too long, or has token ids that the model does not have.
    """
    ids = row.prompt.token_ids
    room = max_context - row.prompt.decoding.max_new_tokens
    if not ids:
        return row.fail("empty_prompt", "the prompt has no tokens")
    if len(ids) > room:
        return row.fail(
            "prompt_too_long",
            f"the prompt has {len(ids)} tokens, {max(0, room)} fit beside the tokens to be "
            "generated: shorten it or lower max_new_tokens",
        )
    decoding = row.prompt.decoding
    if unknown := _unknown_token_id(decoding, vocab_size):
        return row.fail("bad_option", unknown)
    strange = next((token for token in ids if not 0 <= token < vocab_size), None)
    if strange is not None:
        return row.fail(
            "engine_error",
            f"token id {strange} is not of this model's {vocab_size}: prompt and model were made "
            "with different tokenizers",
        )
    return None


def _unknown_token_id(decoding: SamplingParams, vocab_size: int) -> str:
    """Return what is wrong with the first token id of sampling parameters that a model lacks."""
    biased = tuple(token for token, _ in decoding.logit_bias)
    fields = {
        "logit_bias": biased,
        "suppress_tokens": decoding.suppress_tokens,
        "stop_token_ids": decoding.stop_token_ids,
    }
    for name, ids in fields.items():
        for token in ids:
            if not 0 <= token < vocab_size:
                return (
                    f"{name} must hold token ids from 0 to {vocab_size - 1}, those of this model, "
                    f"got {token}"
                )
    return ""


def answer(rows: list[Row], attempt: Callable[[list[Row]], Iterable[T]]) -> Iterator[T | Failure]:
    """Yield a result for each of `rows`, whatever `attempt` raises.

    If `attempt` raises, results so far are kept and the other rows are retried in halves, down to
    single rows. A single row that fails is a Failure `out_of_memory` or `engine_error`.

    Args:
        attempt: runs rows as one batch and yields results as they finish, or marks rows as answered
            itself.

    Raises:
        BaseException: interrupts and errors of the caller's callback pass through.
    """
    groups = [rows]
    while groups:
        group = groups.pop()
        problem = ("engine_error", "the engine ended without a result for this row")
        try:
            yield from attempt(group)
        except CallbackError as error:
            raise error.error from None
        except Exception as error:  # noqa: BLE001 - what engines raise is not theirs to choose
            problem = diagnose(error)
        left = [row for row in group if not row.answered]
        if len(left) == 1:
            yield left[0].fail(*problem)
        elif left:
            half = len(left) // 2
            groups += [left[half:], left[:half]]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library raised because memory ran out."""
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


def diagnose(error: BaseException) -> tuple[str, str]:
    """Return failure code and one-line message for an exception of an engine."""
    line = f"{type(error).__name__}: {first_line(error)}"
    if is_out_of_memory(error):
        return (
            "out_of_memory",
            f"this row alone does not fit into memory ({line}): shorten it, lower max_new_tokens, "
            "or run with fewer workers",
        )
    return "engine_error", f"the engine failed on this row alone: {line}"
