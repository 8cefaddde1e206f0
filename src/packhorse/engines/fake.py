"""The engine `fake`: no model, no libraries, deterministic text.

For tests and dry runs. Token ids are bytes (see `packhorse.tokenization.ByteCodec`); the text is
English words chosen by a digest of the prompt.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from packhorse.config import EngineConfig
from packhorse.data import Batch, Failure, Prompt, SamplingParams, Scores, TokenLogProbs
from packhorse.engine_protocol import CostRule, EngineCapabilities, TokenCallback
from packhorse.engine_protocol.registry import engine_entry
from packhorse.engines.common.rows import Result, Row, answer, refuse, settle
from packhorse.errors import EngineError
from packhorse.params.sampling_params import ENGINE_FIELDS

if TYPE_CHECKING:
    from packhorse.models import ModelFacts, PreparedModel

SLOW_SECONDS_PER_TOKEN = 0.01
ANSWERS_VARIABLE = "PACKHORSE_FAKE_ANSWERS"
HANG_VARIABLE = "PACKHORSE_FAKE_HANG_ON"
DELAY_VARIABLE = "PACKHORSE_FAKE_SECONDS_PER_TOKEN"
BYTES = 256
END = 256
_WORDS = (
    "a,the,load,road,hill,mule,rope,bell,dawn,dusk,stone,river,bridge,carries,crosses,rests,"
    "climbs,follows,counts,slowly,steadily,again,over,under,beyond,small,grey,old,patient,many,one"
)
_SHORTEST, _LONGEST = 8, 160


@dataclass(frozen=True, slots=True)
class Faults:
    """Injected faults, for tests.

    Attributes:
        fail_rows: indexes of rows that fail in every batch.
        fail_batches_larger_than: a batch of more rows fails.
        oom_over_tokens: a batch with more padded tokens, those to be generated included, is out of
            memory.
        crash_after_rows: results after which the engine raises.
        hang_on: a batch with a prompt that contains this text blocks forever.
    """

    fail_rows: frozenset[int] = frozenset()
    fail_batches_larger_than: int | None = None
    oom_over_tokens: int | None = None
    crash_after_rows: int | None = None
    hang_on: str | None = None


def load(prepared: PreparedModel, facts: ModelFacts, config: EngineConfig) -> FakeEngine:
    """Load a fake engine for any prepared model.

    Environment variables: PACKHORSE_FAKE_SECONDS_PER_TOKEN delays every step, for tests that
    interrupt a run. PACKHORSE_FAKE_ANSWERS names a JSON file of [text, answer] pairs: a prompt that
    contains such a text (the last one counts) gets that answer, which is also the most probable.
    PACKHORSE_FAKE_HANG_ON is `Faults.hang_on`.

    Two formats differ, for tests of comparisons: "int8" answers every third prompt differently, as
    a lossy format would, and "int16" takes SLOW_SECONDS_PER_TOKEN longer per token.
    """
    slow = SLOW_SECONDS_PER_TOKEN if config.quantization == "int16" else 0.0
    return FakeEngine(
        compute_type="float32" if config.quantization == "auto" else config.quantization,
        lossy=config.quantization == "int8",
        max_context=facts.max_context,
        workers=config.workers or 1,
        threads=config.threads or 1,
        seconds_per_token=slow + float(os.environ.get(DELAY_VARIABLE) or 0),
        answers=_planted(os.environ.get(ANSWERS_VARIABLE)),
        faults=Faults(hang_on=os.environ.get(HANG_VARIABLE)),
    )


class FakeEngine:
    """`workers` batches at once, a step of each in turn; rows are yielded as they finish.

    Args:
        seconds_per_token: delay of every step, whatever the number of rows.
        seconds_per_batch: delay before a batch begins.
        lossy: every third prompt is answered differently.
        answers: answer by a text that a prompt may contain.
    """

    def __init__(
        self,
        *,
        compute_type: str = "float32",
        lossy: bool = False,
        max_context: int = 4096,
        cost_rule: CostRule = "padded",
        workers: int = 1,
        threads: int = 1,
        mixed_decoding: bool = True,
        seconds_per_token: float = 0.0,
        seconds_per_batch: float = 0.0,
        faults: Faults | None = None,
        answers: Mapping[str, str] | None = None,
    ) -> None:
        self._answers = {text.encode(): answer.encode() for text, answer in (answers or {}).items()}
        self._seconds_per_token = seconds_per_token
        self._seconds_per_batch = seconds_per_batch
        self._faults = faults or Faults()
        self._lossy = lossy
        self._is_closed = False
        self._traits = EngineCapabilities(
            name="fake",
            cost_rule=cost_rule,
            device="cpu",
            compute_type=compute_type,
            workers=workers,
            threads=threads,
            max_context=max_context,
            model_bytes=0,
            cache_bytes_per_token=1,
            mixed_decoding=mixed_decoding,
            shares_prefixes=True,
            runs_side_by_side=True,
            gives_log_probs=True,
            sampling_fields=engine_entry("fake").sampling_fields,
            forces_tokens=True,
        )

    @property
    def capabilities(self) -> EngineCapabilities:
        return self._traits

    def run(
        self, batches: Iterator[Batch], on_token: TokenCallback | None = None
    ) -> Iterator[Result]:
        """See `packhorse.engine_protocol.Engine`. Raises EngineError after `crash_after_rows`
        results."""
        if self._is_closed:
            raise EngineError("the engine is closed", "load the model again")
        results = 0
        underway: list[Iterator[Result | None]] = []
        is_more = True
        while is_more or underway:
            while is_more and len(underway) < self._traits.workers:
                batch = next(batches, None)
                is_more = batch is not None
                if batch is None or not batch.prompts:
                    break
                underway.append(self._answer(batch, on_token))
            for steps in list(underway):
                for result in steps:
                    if result is None:
                        break
                    yield result
                    results += 1
                    if results == self._faults.crash_after_rows:
                        raise EngineError(f"the fake engine died after {results} rows")
                else:
                    underway.remove(steps)

    def score(
        self, batches: Iterator[Batch], continuations: Sequence[Sequence[int]]
    ) -> Iterator[Scores | Failure]:
        """See `packhorse.engine_protocol.Scorer`: a planted answer is almost certain; other
        probabilities follow from a digest of prompt and continuation."""
        if self._is_closed:
            raise EngineError("the engine is closed", "load the model again")

        def scored(rows: list[Row]) -> Iterator[Scores]:
            self._break_down(rows)
            _wait(self._seconds_per_token)
            for row in rows:
                known = self._known(row.prompt)
                yield row.score([_log_prob(row.prompt, ids, known) for ids in continuations])

        for batch in batches:
            rows = [Row(prompt) for prompt in batch.prompts]
            refused = (refuse(row, self._traits.max_context, BYTES) for row in rows)
            yield from filter(None, refused)
            _wait(self._seconds_per_batch)
            yield from answer([row for row in rows if not row.answered], scored)

    def _known(self, prompt: Prompt) -> bytes | None:
        """Return the planted answer of the text that occurs last in a prompt."""
        if not self._answers:
            return None
        text = bytes(prompt.token_ids)
        last, known = max((text.rfind(part), answer) for part, answer in self._answers.items())
        return known if last >= 0 else None

    def close(self) -> None:
        self._is_closed = True

    def _answer(self, batch: Batch, on_token: TokenCallback | None) -> Iterator[Result | None]:
        """Yield results of a batch, and None after every step."""
        rows = [Row(prompt) for prompt in batch.prompts]
        settled = (settle(row, self._traits.max_context, BYTES) for row in rows)
        yield from filter(None, settled)
        accepted = [row for row in rows if not row.answered]
        for row in accepted:
            _take_prompt_log_probs(row)
            if not row.prompt.decoding.max_new_tokens:
                yield row.finish_prompt()
        accepted = [row for row in accepted if not row.answered]
        words = {row.prompt.index: self._words(row.prompt) for row in accepted}
        _wait(self._seconds_per_batch)

        def decode(rows: list[Row]) -> Iterator[Result | None]:
            self._break_down(rows)
            while rows:
                _wait(self._seconds_per_token)
                for row in rows:
                    forced = row.forced_token()
                    token_id = next(words[row.prompt.index], END) if forced is None else forced
                    if token_id == END and len(row.token_ids) < row.prompt.decoding.min_tokens:
                        token_id = ord(" ")
                    log_probs = _token_log_probs(row, token_id)
                    if result := row.take(token_id, (END,), on_token, log_probs):
                        yield result
                rows = [row for row in rows if not row.answered]
                yield None

        yield from answer(accepted, decode)

    def _words(self, prompt: Prompt) -> Iterator[int]:
        known = self._known(prompt)
        return written(prompt, lossy=self._lossy) if known is None else iter(known)

    def _break_down(self, rows: list[Row]) -> None:
        """Raise what a real engine would for rows that are set to fail."""
        faults = self._faults
        if faults.hang_on is not None:
            hanging = faults.hang_on.encode()
            if any(hanging in bytes(row.prompt.token_ids) for row in rows):
                threading.Event().wait()
        if any(row.prompt.index in faults.fail_rows for row in rows):
            raise RuntimeError("a row of this batch was chosen to fail")
        if len(rows) > (faults.fail_batches_larger_than or len(rows)):
            raise RuntimeError(f"a batch of {len(rows)} rows was chosen to fail")
        tokens = len(rows) * max(len(row.sequence) + row.tokens_left for row in rows)
        if tokens > (faults.oom_over_tokens or tokens):
            raise MemoryError(f"{tokens} tokens were chosen not to fit")


def written(prompt: Prompt, *, lossy: bool = False) -> Iterator[int]:
    """Yield the bytes that follow a prompt, without an end token.

    A pure function of its token ids and sampling settings; without a seed a sampled text differs
    each time. A larger limit does not change the tokens before it.
    """
    words = _WORDS.split(",")
    state = blake2b(",".join(map(str, prompt.token_ids)).encode()).digest()
    if lossy and state[0] % 3 == 0:
        state = blake2b(state).digest()
    if not _is_greedy(prompt.decoding):
        state = blake2b(state + _chance(prompt.decoding)).digest()
    if prompt.decoding.changes_logits:
        changes = (getattr(prompt.decoding, name) for name in ENGINE_FIELDS)
        state = blake2b(state + repr(tuple(changes)).encode()).digest()
    length = _SHORTEST + int.from_bytes(state[:4], "big") % (_LONGEST - _SHORTEST)
    while length > 0:
        word = words[state[-1] % len(words)].encode()[:length]
        yield from word
        length -= len(word)
        if length > 0:
            yield ord(" ")
            length -= 1
        state = blake2b(state).digest()


def _log_prob(prompt: Prompt, ids: Sequence[int], known: bytes | None) -> float:
    if known is not None and bytes(ids).strip() == known:
        return -0.05 * len(ids)
    digest = blake2b(repr((prompt.token_ids, tuple(ids))).encode(), digest_size=4).digest()
    return -len(ids) * (1.0 + int.from_bytes(digest, "big") / 2**32)


def _token_log_probs(row: Row, token_id: int) -> TokenLogProbs | None:
    """Return log-probabilities if asked for: the token is the most probable, by a digest of the
    sequence; each of the following byte values has half of the remaining probability."""
    count = row.prompt.decoding.top_log_probs
    if count is None or token_id == END:
        return None
    return _digest_log_probs(row.sequence, token_id, count)


def _take_prompt_log_probs(row: Row) -> None:
    ids, count = row.prompt.token_ids, row.prompt.decoding.prompt_log_probs
    if count is not None:
        row.prompt_log_probs[:] = [
            replace(_digest_log_probs(ids[:place], ids[place], count), rank=1)
            for place in range(1, len(ids))
        ]


def _digest_log_probs(before: Sequence[int], token_id: int, count: int) -> TokenLogProbs:
    digest = blake2b(repr(tuple(before)).encode(), digest_size=4).digest()
    best = 0.5 + int.from_bytes(digest, "big") / 2**34
    shares = [best, *((1 - best) / 2**place for place in range(1, count))]
    alternatives = [
        ((token_id + place) % BYTES, math.log(share)) for place, share in enumerate(shares)
    ]
    return TokenLogProbs(token_id, math.log(best), tuple(alternatives[:count]))


def _planted(path: str | None) -> dict[str, str] | None:
    return dict(json.loads(Path(path).read_text())) if path else None


def _is_greedy(decoding: SamplingParams) -> bool:
    return decoding.greedy or decoding.temperature < 1e-4


def _chance(decoding: SamplingParams) -> bytes:
    seed = os.urandom(8).hex() if decoding.seed is None else decoding.seed
    return f"{decoding.temperature} {decoding.top_k} {decoding.top_p} {seed}".encode()


def _wait(seconds: float) -> None:
    if seconds > 0:
        time.sleep(seconds)
