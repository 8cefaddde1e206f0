"""Inner loop of a run: tokenize, plan batches, run, decode.

Rows stream through in windows. The engine pulls batches, so the next window is read only when the
engine has room for more, and only rows in flight are in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from packhorse.batching.expected import expect
from packhorse.batching.planner import plan_batches
from packhorse.batching.sizes import Limits
from packhorse.data import (
    Batch,
    Completion,
    EngineOutput,
    Failure,
    Prompt,
    ReasoningTokens,
    Request,
    SamplingParams,
    Scores,
    TokenIds,
)
from packhorse.engine_protocol import Engine, EngineCapabilities, Scorer
from packhorse.engine_protocol.registry import sampling_refusal
from packhorse.errors import EngineError
from packhorse.inference.choices import Choices
from packhorse.inference.deduplication import Duplicates
from packhorse.inference.output_reader import Decoder, MarkedCodec, read_output
from packhorse.params.sampling_params import derived_seed
from packhorse.profiling.run_metrics import Meter
from packhorse.tokenization import Codec, OutputFormat, Refusal, Tokenizer
from packhorse.tokenization.output_format import PLAIN_OUTPUT

WINDOW_CHARACTERS = 64 << 20
WINDOWS_WAITING = 4
"""Number of windows of duplicates that may wait for a running row."""
_MAX_BYTES_PER_CHARACTER = 4


@dataclass(slots=True)
class GenerationRun:
    """One pass of requests through an engine; create a new one for every call.

    Attributes:
        engine: Engine to run on.
        tokenizer: Tokenizer of the model.
        policy: Batching policy.
        limits: Bounds of a batch.
        window_rows: Number of rows that are planned together.
        decoding: Sampling parameters of the job; a row's own options override them.
        meter: Metrics of the run.
        share_prefixes: See `packhorse.config.BatchingConfig`.
        deduplicate: See `packhorse.config.BatchingConfig`.
        tokenizing: Lock of the tokenizer, which is not safe for threads.
        stopping: Called before every batch. Once it returns True, no further batch is planned,
            running batches finish, and the remaining rows get no outcome.
    """

    engine: Engine
    tokenizer: Tokenizer
    policy: str
    limits: Limits
    window_rows: int
    decoding: SamplingParams
    meter: Meter
    share_prefixes: bool = False
    deduplicate: bool = False
    tokenizing: AbstractContextManager[Any] = field(default_factory=nullcontext)
    stopping: Callable[[], bool] = lambda: False
    _underway: dict[int, tuple[Request, Prompt]] = field(default_factory=dict)
    _forms: dict[int, tuple[OutputFormat, str]] = field(default_factory=dict)
    _refused: deque[Failure] = field(default_factory=deque)
    _duplicates: Duplicates = field(init=False)
    _choices: Choices = field(default_factory=Choices)

    def __post_init__(self) -> None:
        self._duplicates = Duplicates(most_waiting=WINDOWS_WAITING * self.window_rows)

    def outcomes(self, requests: Iterable[Request]) -> Iterator[Completion | Failure]:
        """Yield one outcome per request, in the order in which they finish."""
        decoder = MarkedCodec(self.tokenizer.codec, self.tokenizer.marker_ids)
        on_token = StopStrings(decoder, lambda row: self._underway[row][1].decoding)
        for result in self.engine.run(self._batches(requests, self.deduplicate), on_token):
            on_token.forget(result.index)
            yield from self._yield_unrun_outcomes()
            outcome = self._make_outcome(result)
            self._observe_output_length(outcome)
            self.meter.count_outcome(outcome)
            yield from self._choices.collect(outcome)
            for equal in self._duplicates.resolve_duplicates(outcome):
                self.meter.count_duplicate(equal)
                yield from self._choices.collect(equal)
        yield from self._yield_unrun_outcomes()

    def scores(
        self, requests: Iterable[Request], continuations: Sequence[Sequence[int]]
    ) -> Iterator[Scores | Failure]:
        """Yield scores of the continuations (token ids) after every request, as they finish.

        `decoding.max_new_tokens` must be the length of the longest continuation. Equal rows are
        scored separately.

        Raises:
            EngineError: The engine does not score.
        """
        engine = self.engine
        if not isinstance(engine, Scorer):
            raise EngineError(
                f"the engine {engine.capabilities.name} does not score given texts",
                "use --engine transformers, ctranslate2 or packed",
            )
        for result in engine.score(self._batches(requests, deduplicate=False), continuations):
            yield from self._yield_refusals()
            request, prompt = self._underway.pop(result.index)
            self._forms.pop(result.index, None)
            if isinstance(result, Failure):
                result = _make_failure(request, result.code, result.message)
                self.meter.count_outcome(result)
            else:
                self.meter.count_scores(result, len(prompt.token_ids))
            yield result
        yield from self._yield_refusals()

    def _batches(self, requests: Iterable[Request], deduplicate: bool) -> Iterator[Batch]:
        capabilities = self.engine.capabilities
        free: tuple[float, ...] = ()
        for window, more in windows(requests, self.window_rows):
            batches = plan_batches(
                self._prompts(window, deduplicate),
                self.policy,
                self.limits,
                mixed_decoding=capabilities.mixed_decoding,
                share_prefixes=self.share_prefixes and capabilities.shares_prefixes,
                free=free,
                more=more,
                length_group=capabilities.length_group,
            )
            if self.limits.costs is not None:
                expected = expect(batches, self.limits.costs, capabilities, free)
                free = expected.free
                self.meter.expect(expected)
            for batch in batches:
                if self.stopping():
                    return
                self.meter.count_batch(batch)
                yield batch

    def _prompts(self, window: list[Request], deduplicate: bool) -> list[Prompt]:
        """Tokenize a window; rows that cannot become prompts are added to the refused ones."""
        capabilities = self.engine.capabilities
        context, codec = capabilities.max_context, self.tokenizer.codec
        decodings = [row_decoding(self.decoding, request) for request in window]
        rooms = [context - decoding.max_new_tokens for decoding in decodings]
        prompts = []
        with self.tokenizing:
            encoded = self.tokenizer.encode(window, rooms)
        for request, ids, decoding, room in zip(window, encoded, decodings, rooms, strict=True):
            if room < 1:
                ids = Refusal(
                    "bad_option",
                    f"max_new_tokens of {decoding.max_new_tokens} leaves no room for a prompt: "
                    f"the model's context is {context} tokens",
                )
            if problem := row_refusal(decoding, request, capabilities):
                ids = problem
            form = ids if isinstance(ids, Refusal) else self._output_format(request, ids, decoding)
            if isinstance(ids, Refusal) or isinstance(form, Refusal):
                refusal = ids if isinstance(ids, Refusal) else form
                assert isinstance(refusal, Refusal)
                self._refused.append(_make_failure(request, refusal.code, refusal.message))
                continue
            if decoding.bad_words:
                with self.tokenizing:
                    decoding = with_bad_word_ids(decoding, codec)
            for choice, (index, own) in enumerate(self._choices.split(request, decoding)):
                part = replace(request, index=index) if choice else request
                prompt = Prompt(index, ids, own, form[1])
                if deduplicate and self._duplicates.join(part, prompt):
                    continue
                if form[0] is not PLAIN_OUTPUT:
                    key = f"{request.key}:{choice}" if choice else request.key
                    self._forms[index] = form[0], key
                self._underway[index] = (part, prompt)
                prompts.append(prompt)
        return prompts

    def _output_format(
        self, request: Request, ids: tuple[int, ...], decoding: SamplingParams
    ) -> tuple[OutputFormat, ReasoningTokens | None] | Refusal:
        """Return how the output of a row is to be read, and the tokens of its reasoning."""
        is_structured = decoding.structured_outputs is not None
        found = self.tokenizer.output_format(request, ids, is_structured=is_structured)
        return found if isinstance(found, Refusal) else limited(found, self.engine.capabilities)

    def _make_outcome(self, result: EngineOutput | Failure) -> Completion | Failure:
        request, prompt = self._underway.pop(result.index)
        form, key = self._forms.pop(result.index, (PLAIN_OUTPUT, request.key))
        if isinstance(result, Failure):
            return _make_failure(request, result.code, result.message)
        decoding = prompt.decoding
        codec = self.tokenizer.codec
        raw, was_cut = final_text(
            MarkedCodec(codec, form.keep), result.token_ids, decoding.stop, decoding.min_tokens
        )
        read = read_output(codec, form, result.token_ids, raw, key)
        text = read.text
        if decoding.echo and isinstance(request.content, str):
            text = request.content + text
        of_prompt = result.prompt_log_probs
        return Completion(
            index=request.index,
            id=request.id,
            key=request.key,
            text=text,
            token_ids=result.token_ids,
            finish_reason=read.finish_reason("stop" if was_cut else result.finish_reason),
            prompt_tokens=len(prompt.token_ids),
            timing=result.timing,
            log_probs=result.log_probs,
            prompt_token_ids=() if of_prompt is None else prompt.token_ids,
            prompt_log_probs=of_prompt,
            reasoning=read.reasoning,
            reasoning_tokens=read.reasoning_tokens,
            tool_calls=read.tool_calls,
            content=read.content,
            is_json=bool(decoding.structured_outputs and decoding.structured_outputs.is_json),
        )

    def _observe_output_length(self, outcome: Completion | Failure) -> None:
        """Update the output lengths that the next windows are planned with."""
        if self.limits.costs is not None and isinstance(outcome, Completion):
            self.limits.costs.outputs.observe(
                outcome.completion_tokens, reached_limit=outcome.finish_reason == "length"
            )

    def _yield_unrun_outcomes(self) -> Iterator[Completion | Failure]:
        """Yield outcomes of rows that need not or cannot run."""
        yield from self._yield_refusals()
        while self._duplicates.ready:
            equal = self._duplicates.ready.popleft()
            self.meter.count_duplicate(equal)
            yield from self._choices.collect(equal)

    def _yield_refusals(self) -> Iterator[Failure]:
        while self._refused:
            refusal = self._refused.popleft()
            self.meter.count_outcome(refusal)
            yield refusal


@dataclass(slots=True)
class StopStrings:
    """Token callback that ends a row when its text contains one of its stop strings.

    Only the tail that a stop string could reach is decoded at each token.

    Attributes:
        codec: Tokenizer that decodes the tail.
        decoding_of: Returns the sampling parameters of a running row.
    """

    codec: Decoder
    decoding_of: Callable[[int], SamplingParams]
    _tails: dict[int, deque[int]] = field(default_factory=dict)
    _skipped: dict[int, int] = field(default_factory=dict)

    def __call__(self, row: int, token_id: int) -> bool:
        decoding = self.decoding_of(row)
        stop = decoding.stop
        if not stop:
            return False
        if decoding.min_tokens and (skipped := self._skipped.get(row, 0)) < decoding.min_tokens:
            self._skipped[row] = skipped + 1
            return False
        tail = self._tails.get(row)
        if tail is None:
            reach = _MAX_BYTES_PER_CHARACTER * (max(map(len, stop)) + 2)
            tail = self._tails[row] = deque(maxlen=reach)
        tail.append(token_id)
        text = self.codec.decode(tuple(tail))
        if any(string in text for string in stop):
            self.forget(row)
            return True
        return False

    def forget(self, row: int) -> None:
        """Drop the state of a row that has ended."""
        self._tails.pop(row, None)
        self._skipped.pop(row, None)


def windows(requests: Iterable[Request], rows: int) -> Iterator[tuple[list[Request], bool]]:
    """Yield windows of requests and whether another one probably follows.

    A window holds up to `rows` requests and about WINDOW_CHARACTERS characters. It is followed by
    another one if it is full.
    """
    window: list[Request] = []
    characters = 0
    for request in requests:
        window.append(request)
        characters += _count_characters(request)
        if len(window) >= rows or characters >= WINDOW_CHARACTERS:
            yield window, True
            window, characters = [], 0
    if window:
        yield window, False


def row_decoding(decoding: SamplingParams, request: Request) -> SamplingParams:
    """Return the job's sampling parameters with the row's own options applied.

    A seed of the job becomes one seed per row, derived from the row's identity. So a row draws the
    same numbers whatever its batch, its place in the file, and whether the run was interrupted.
    """
    chosen = replace(decoding, **request.options) if request.options else decoding
    if chosen.greedy or chosen.seed is None or "seed" in request.options:
        return chosen
    return replace(chosen, seed=derived_seed(chosen.seed, request.key))


def final_text(
    codec: Decoder, token_ids: Sequence[int], stop: tuple[str, ...], min_tokens: int = 0
) -> tuple[str, bool]:
    """Return the text of a row's tokens before its first stop string, and whether there was one.

    Text of the first `min_tokens` tokens is not searched.
    """
    text = codec.decode(token_ids)
    if not (stop and min_tokens):
        return cut_at_stop(text, stop)
    before = codec.decode(token_ids[:min_tokens])
    if not text.startswith(before):
        before = before.rstrip("\N{REPLACEMENT CHARACTER}")
    rest, was_cut = cut_at_stop(text[len(before) :], stop)
    return text[: len(before)] + rest, was_cut


def with_bad_word_ids(decoding: SamplingParams, codec: Codec) -> SamplingParams:
    """Return the parameters with the token ids of `bad_words`.

    As in vLLM (`SamplingParams.update_from_tokenizer`): each word counts as it is written without
    leading spaces, and after one space if that gives as many tokens, the first of them another one.
    """
    if not decoding.bad_words:
        return decoding
    found: list[tuple[int, ...]] = []
    for word in decoding.bad_words:
        alone, after_space = (codec.encode_fragment(space + word.lstrip()) for space in ("", " "))
        if alone:
            found.append(alone)
        if after_space and len(alone) == len(after_space) and alone[0] != after_space[0]:
            found.append(after_space)
    return replace(decoding, bad_word_ids=tuple(found))


def row_refusal(
    decoding: SamplingParams, request: Request, capabilities: EngineCapabilities
) -> Refusal | None:
    """Return why an engine or a row's content does not allow its sampling parameters."""
    if decoding.top_log_probs is not None and not capabilities.gives_log_probs:
        return Refusal("unsupported_option", no_log_probs(capabilities.name))
    if problem := sampling_refusal(capabilities.name, capabilities.sampling_fields, decoding):
        return Refusal("unsupported_option", problem)
    if decoding.min_tokens > decoding.max_new_tokens:
        message = (
            f"min_tokens must be at most max_new_tokens ({decoding.max_new_tokens}), "
            f"got {decoding.min_tokens}"
        )
        return Refusal("bad_option", message)
    if decoding.echo and not isinstance(request.content, str):
        return Refusal(
            "bad_option", "echo is for prompts that are text, not for messages or token ids"
        )
    return None


def cut_at_stop(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """Return `text` before the first stop string in it, and whether there was one."""
    places = [place for string in stop if (place := text.find(string)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def no_log_probs(engine: str) -> str:
    """Return the message for an engine without log-probabilities."""
    return (
        f"the engine {engine} does not return log-probabilities: omit logprobs, or use "
        "transformers, ctranslate2 or packed"
    )


Read = tuple[OutputFormat, ReasoningTokens | None]
"""How an output is read, and the tokens of its reasoning."""


def limited(read: Read, capabilities: EngineCapabilities) -> Read | Refusal:
    """Return `read`, or why an engine cannot limit the reasoning so."""
    tokens = read[1]
    if tokens is not None and tokens.limit is not None and not capabilities.forces_tokens:
        return Refusal("unsupported_option", no_forced_tokens(capabilities.name))
    return read


def no_forced_tokens(engine: str) -> str:
    """Return the message for an engine that cannot limit reasoning."""
    return (
        f"the engine {engine} cannot limit the tokens of reasoning: use transformers or packed, or "
        "thinking auto, on or off"
    )


def _count_characters(request: Request) -> int:
    content = request.content
    if isinstance(content, (str, TokenIds)):
        return len(content)
    return sum(len(str(message.get("content", ""))) for message in content)


def _make_failure(request: Request, code: str, message: str) -> Failure:
    return Failure(request.index, code, message, request.id, request.line, request.key)
