"""Tokenize requests outside the event loop and admit their rows to the queue."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from queue import Empty, SimpleQueue

from packhorse.data import Content, Prompt, ReasoningTokens, Request, SamplingParams, TokenIds
from packhorse.errors import ConfigError, PackhorseError
from packhorse.inference.generation import limited, row_decoding, row_refusal, with_bad_word_ids
from packhorse.inference.model import check_decoding
from packhorse.models import PreparedModel
from packhorse.openai_format.batch_lines import check_model
from packhorse.openai_format.row_errors import RowError
from packhorse.params.prompt_options import PromptOptions
from packhorse.params.sampling_params import single_choice
from packhorse.serve.background import BackgroundTasks
from packhorse.serve.errors import APIError
from packhorse.serve.request_queue import tokens_of
from packhorse.serve.request_state import Finished, RequestState
from packhorse.serve.requests import ParsedRequest
from packhorse.serve.supervisor import MAX_BACKOFF_SECONDS, UNAVAILABLE, Supervisor
from packhorse.tokenization import Codec, OutputFormat, Refusal, SpecialTextNotice, Tokenizer
from packhorse.tokenization.output_format import PLAIN_OUTPUT

MAX_RETRY_SECONDS = 60
TOKENIZING_THREADS = 2
"""A second one begins when a request comes while the first is at parsed, so that one row that takes
long, by its template or its length, does not hold up all others."""
PROMPTS_AT_ONCE = 8
"""Of one request, before other requests get their turn."""
_RATE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Choice:
    """One text a client gets. Choices that cannot differ share a row.

    content: number of the prompt in its request. prompt: the prompt itself. form: how the output is
    written. key: what identifies the choice; ids of tool calls are digests of it.
    """

    index: int
    content: int
    row: RequestState
    prompt: Content = ""
    form: OutputFormat = PLAIN_OUTPUT
    key: str = ""


EncodedRow = tuple[tuple[int, ...], OutputFormat, ReasoningTokens | None]
"""Token ids of a prompt, how its output is written, and tokens that limit its reasoning."""


@dataclass(slots=True)
class Service:
    """What routes need: a model that is served.

    name: what clients call it. decoding: what requests get that say nothing. codec: for decoding,
    in the event loop; encoding has a tokenizer of its own, because it is not safe for threads.
    max_log_probs: see `RequestLimits.log_probs`. names: by which clients may call it, `name`
    first; () is that alone. aliases: those of them that /v1/models lists. background: tasks beside
    the requests. prompts: how requests become prompts, unless they say otherwise. report: takes
    warnings.
    """

    name: str
    prepared: PreparedModel
    decoding: SamplingParams
    supervisor: Supervisor
    codec: Codec
    max_log_probs: int
    created: int = field(default_factory=lambda: int(time.time()))
    names: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    background: BackgroundTasks = field(default_factory=BackgroundTasks)
    prompts: PromptOptions = field(default_factory=PromptOptions)
    report: Callable[[str], None] = lambda text: None
    _notice: SpecialTextNotice = field(init=False)
    _threads: ThreadPoolExecutor = field(init=False)
    _tokenizers: SimpleQueue[Tokenizer] = field(default_factory=SimpleQueue)
    _indexes: itertools.count[int] = field(default_factory=itertools.count)
    _finished_at: deque[float] = field(default_factory=lambda: deque(maxlen=256))
    _encoding: int = 0

    def __post_init__(self) -> None:
        self._notice = SpecialTextNotice(self.report, is_quiet=True)
        tokenizer = self._new_tokenizer()
        tokenizer.check_options(self.report)
        self._tokenizers.put(tokenizer)
        self._threads = ThreadPoolExecutor(TOKENIZING_THREADS, thread_name_prefix="tokenizing")

    def _new_tokenizer(self) -> Tokenizer:
        return Tokenizer(self.prepared.codec(), notice=self._notice, prompts=self.prompts)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def check_model(self, name: str) -> None:
        """Raises APIError for a model that is not served."""
        try:
            check_model(name, self.names or (self.name,))
        except RowError:
            message = f"the model served here is {self.name!r}"
            raise APIError(404, "model_not_found", message, param="model") from None

    def require_ready(self) -> int:
        """Tokens of a row at most. Raises APIError while nothing can be taken."""
        supervisor = self.supervisor
        if supervisor.state in ("draining", "stopped"):
            raise APIError(503, "shutting_down", "the server is shutting down", retry_after=5)
        if supervisor.loaded is None:
            raise APIError(503, "not_ready", "the model is being loaded", retry_after=5)
        if supervisor.state == "unavailable":
            seconds = math.ceil(MAX_BACKOFF_SECONDS)
            raise APIError(503, "engine_unavailable", UNAVAILABLE, retry_after=seconds)
        return supervisor.loaded.batching.capabilities.max_context

    async def admit(self, parsed: ParsedRequest) -> list[Choice]:
        """Tokenize a request and queue its rows. Raises APIError."""
        max_context = self.require_ready()
        decoding = replace(self.decoding, **parsed.options)
        self._check_sampling(decoding, parsed)
        self._check_fits_queue(_num_rows(parsed, decoding), 0)
        self._check_queue_space(len(parsed.contents))
        encoded = await self._encode(parsed.requests(), max_context, decoding, parsed)
        if decoding.bad_words:
            decoding = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._with_bad_word_ids, decoding
            )
        prompts: list[Prompt] = []
        places: list[tuple[int, int]] = []
        for content, (ids, _, reasoning) in enumerate(encoded):
            room = max_context - len(ids)
            chosen = replace(decoding, max_new_tokens=min(decoding.max_new_tokens, room))
            can_differ = not chosen.greedy
            for choice in range(decoding.n):
                if choice == 0 or can_differ:
                    own = single_choice(chosen, choice)
                    prompts.append(Prompt(next(self._indexes), ids, own, reasoning))
                places.append((content, len(prompts) - 1))
        self._check_num_log_probs(prompts)
        self._check_fits_queue(len(prompts), sum(map(tokens_of, prompts)))
        self.require_ready()
        rows = self.supervisor.submit(prompts)
        if rows is None:
            raise self._queue_full_error()
        return [
            Choice(
                index,
                content,
                rows[row],
                parsed.contents[content],
                encoded[content][1],
                f"{parsed.key}:{index}",
            )
            for index, (content, row) in enumerate(places)
        ]

    async def admit_for_client(self, parsed: ParsedRequest) -> list[Choice]:
        """Call `admit`; count the rows if the queue is full."""
        try:
            return await self.admit(parsed)
        except APIError as problem:
            if problem.code == "queue_full":
                rows = _num_rows(parsed, replace(self.decoding, **parsed.options))
                self.supervisor.metrics.rows_refused.inc(rows)
            raise

    def release(self, choices: list[Choice]) -> None:
        """Note the rows that finished and abort the others: the client has its answer or left."""
        rows = {id(choice.row): choice.row for choice in choices}
        self._finished_at.extend(
            time.monotonic() for row in rows.values() if isinstance(row.outcome, Finished)
        )
        self.supervisor.abort([row for row in rows.values() if row.outcome is None])

    def retry_after(self) -> int:
        """Whole seconds until what waits now may be done, by how fast rows ended lately."""
        now = time.monotonic()
        recent = [moment for moment in self._finished_at if now - moment < _RATE_SECONDS]
        if not recent:
            return MAX_RETRY_SECONDS // 4
        rate = len(recent) / max(1.0, now - recent[0])
        return max(1, min(MAX_RETRY_SECONDS, math.ceil(len(self.supervisor.waiting) / rate)))

    async def _encode(
        self,
        requests: list[Request],
        max_context: int,
        decoding: SamplingParams,
        parsed: ParsedRequest,
    ) -> list[EncodedRow]:
        """Token ids of each; a limit the client did not set itself shrinks to the room there is."""
        try:
            check_decoding(decoding, max_context if "max_new_tokens" in parsed.options else None)
        except ConfigError as error:
            raise APIError(400, "bad_option", str(error)) from None
        least_new = decoding.max_new_tokens if "max_new_tokens" in parsed.options else 1
        room = max_context - least_new
        self._check_length(requests, room)
        rooms = [room] * len(requests)
        loop = asyncio.get_running_loop()
        self._encoding += len(requests)
        encoded: list[EncodedRow | Refusal] = []
        try:
            for start in range(0, len(requests), PROMPTS_AT_ONCE):
                part = slice(start, start + PROMPTS_AT_ONCE)
                encoded += await loop.run_in_executor(
                    self._threads, self._encode_in_thread, requests[part], rooms[part], parsed.date
                )
        except PackhorseError as error:  # the process that renders templates cannot start
            raise APIError(503, "engine_unavailable", str(error), retry_after=5) from None
        finally:
            self._encoding -= len(requests)
        found = []
        for each in encoded:
            if isinstance(each, Refusal):
                code = "context_length_exceeded" if each.code == "prompt_too_long" else each.code
                is_of_messages = each.code in ("chat_template", "no_chat_template", "bad_messages")
                message = each.message.split(", or use --")[0]
                raise APIError(400, code, message, param="messages" if is_of_messages else None)
            self._check_limit_supported(each)
            found.append(each)
        return found

    def _encode_in_thread(
        self, requests: list[Request], rooms: list[int], date: datetime | None
    ) -> list[EncodedRow | Refusal]:
        """Runs in a tokenizing thread."""
        with self._tokenizer() as tokenizer:
            encoded = tokenizer.encode(requests, rooms, date)
            return [
                self._with_format(tokenizer, request, ids)
                for request, ids in zip(requests, encoded, strict=True)
            ]

    def _with_format(
        self, tokenizer: Tokenizer, request: Request, ids: tuple[int, ...] | Refusal
    ) -> EncodedRow | Refusal:
        if isinstance(ids, Refusal):
            return ids
        is_structured = row_decoding(self.decoding, request).structured_outputs is not None
        found = tokenizer.output_format(request, ids, is_structured=is_structured)
        return found if isinstance(found, Refusal) else (ids, *found)

    def _with_bad_word_ids(self, decoding: SamplingParams) -> SamplingParams:
        """Runs in a tokenizing thread."""
        with self._tokenizer() as tokenizer:
            return with_bad_word_ids(decoding, tokenizer.codec)

    @contextmanager
    def _tokenizer(self) -> Iterator[Tokenizer]:
        """A tokenizer that no other thread uses meanwhile."""
        try:
            tokenizer = self._tokenizers.get_nowait()
        except Empty:
            tokenizer = self._new_tokenizer()
        try:
            yield tokenizer
        finally:
            self._tokenizers.put(tokenizer)

    def _check_length(self, requests: list[Request], room: int) -> None:
        """Refuses before it is tokenized what cannot fit, however long its tokens are."""
        allowed = room * self.codec.longest_token
        for request in requests:
            content = request.content
            if isinstance(content, TokenIds):
                continue
            texts = [content] if isinstance(content, str) else [each["content"] for each in content]
            if (characters := sum(map(len, texts))) > allowed:
                message = (
                    f"the prompt has {characters:,} characters; the {room:,} tokens that fit "
                    f"beside those to be generated hold {allowed:,} at most"
                )
                raise APIError(400, "context_length_exceeded", message)

    def _check_num_log_probs(self, prompts: list[Prompt]) -> None:
        """Refuse a request whose answer could hold too many log-probabilities."""
        new = sum(prompt.decoding.max_new_tokens for prompt in prompts)
        given = sum(len(prompt.token_ids) for prompt in prompts)
        tokens = count = 0
        decoding = prompts[0].decoding
        for top, some in ((decoding.top_log_probs, new), (decoding.prompt_log_probs, given)):
            if top is not None:
                tokens, count = tokens + some, count + some * (1 + top)
        if count > self.max_log_probs:
            message = (
                f"{count:,} log-probabilities may come of {tokens:,} tokens; at most "
                f"{self.max_log_probs:,} a request: lower max_tokens, n or their number"
            )
            raise APIError(400, "too_many_log_probs", message, param="logprobs")

    def _check_sampling(self, decoding: SamplingParams, parsed: ParsedRequest) -> None:
        """Refuse what the engine does not support, or what contradicts itself."""
        loaded = self.supervisor.loaded
        if loaded is None:
            return
        if "max_new_tokens" not in parsed.options:  # the server's limit, which may shrink
            decoding = replace(
                decoding, max_new_tokens=max(decoding.max_new_tokens, decoding.min_tokens)
            )
        capabilities = loaded.batching.capabilities
        for request in parsed.requests():
            if refusal := row_refusal(decoding, request, capabilities):
                supported = capabilities.sampling_fields
                wrong = [name for name in decoding.engine_fields if name not in supported]
                if decoding.top_log_probs is not None and not capabilities.gives_log_probs:
                    wrong = ["logprobs"]
                param = wrong[0] if wrong else None
                raise APIError(400, refusal.code, refusal.message, param=param)

    def _check_limit_supported(self, row: EncodedRow) -> None:
        loaded = self.supervisor.loaded
        found = limited(row[1:], loaded.batching.capabilities) if loaded else row[1:]
        if isinstance(found, Refusal):
            raise APIError(400, found.code, found.message, param="thinking")

    def _check_queue_space(self, rows: int) -> None:
        """Refuses before any parsed what could not wait anyway."""
        waiting = self.supervisor.waiting
        if len(waiting) + self._encoding + rows > waiting.config.max_rows:
            raise self._queue_full_error()

    def _check_fits_queue(self, rows: int, tokens: int) -> None:
        """Refuses for good what trying again later would not help. tokens: 0 while not known."""
        waiting = self.supervisor.waiting
        if waiting.can_hold(rows, tokens):
            return
        if rows > waiting.config.max_rows:
            message = (
                f"the request makes {rows:,} rows, one for each choice of each prompt; at most "
                f"{waiting.config.max_rows:,} may wait here: send fewer at once"
            )
            raise APIError(400, "too_many_rows", message)
        message = (
            f"the rows of the request take up to {tokens:,} tokens together; at most "
            f"{waiting.config.max_tokens:,} may wait here: send fewer at once, or lower max_tokens"
        )
        raise APIError(400, "too_many_tokens", message)

    def _queue_full_error(self) -> APIError:
        return APIError(
            429,
            "queue_full",
            "too many requests wait for the engine; try again later",
            retry_after=self.retry_after(),
        )


def _num_rows(parsed: ParsedRequest, decoding: SamplingParams) -> int:
    """Choices that cannot differ share a row."""
    return len(parsed.contents) * (1 if decoding.greedy else decoding.n)
