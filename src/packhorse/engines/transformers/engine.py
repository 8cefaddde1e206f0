"""The engine `transformers`: any causal language model of the transformers library, on torch."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from packhorse.config import EngineConfig
from packhorse.data import Batch, Failure, Scores
from packhorse.engine_protocol import EngineCapabilities, TokenCallback
from packhorse.engines.common.log_probs import wanted_log_probs
from packhorse.engines.common.rows import NOT_NUMBERS, Result, Row, answer, by_common, refuse
from packhorse.engines.common.sampling import choose_tokens, row_generator
from packhorse.engines.transformers.batch_rule import BatchRule
from packhorse.engines.transformers.continuations import (
    continuation_log_probs,
    logits_after,
    stepped_log_probs,
)
from packhorse.engines.transformers.padded_batch import PaddedBatch
from packhorse.engines.transformers.prefix_states import PrefixState, PrefixStates
from packhorse.engines.transformers.self_check import DAMAGED, examine
from packhorse.errors import EngineError, ModelError, model_errors
from packhorse.models.loading import require_fitting_size
from packhorse.models.prepare import torch_device
from packhorse.models.quiet import quiet_transformers
from packhorse.models.resolved_config import load_config
from packhorse.profiling.cores import usable_cores

if TYPE_CHECKING:
    from packhorse.models import ModelFacts, PreparedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STEP_BYTES_PER_LOGIT = 32


def load(prepared: PreparedModel, facts: ModelFacts, config: EngineConfig) -> TransformersEngine:
    """Loads a Hugging Face folder. Raises ModelError and EngineError as `TransformersEngine`."""
    if config.workers not in (None, 1):
        raise EngineError(
            f"the transformers engine runs one batch at a time, not {config.workers}",
            "leave --workers out and give it more --threads, or use --engine ctranslate2",
        )
    return TransformersEngine(
        prepared.folder,
        end_ids=facts.eos_token_ids,
        max_context=facts.max_context,
        quantization=config.quantization,
        device=config.device,
        threads=config.threads,
    )


class TransformersEngine:
    """One batch at a time, padded on the left; rows that are finished leave it at once.

    folder: config.json and weights of a causal language model; no remote code is run.
    end_ids: token ids that end a row. max_context: prompt and generated tokens of a row (tokens).
    quantization: "auto" (float32 on a CPU, float16 on a GPU), "float32", "bfloat16", "float16".
    device: "auto", "cpu" or "cuda". threads: None is all cores this process may use; it is torch's
    own setting and so holds for the whole process.

    Raises EngineError for a format or device that it or the machine does not have, ModelError for
    a folder that cannot be loaded whole or does not compute what it should (`self_check`).
    """

    def __init__(
        self,
        folder: Path,
        *,
        end_ids: tuple[int, ...],
        max_context: int,
        quantization: str = "auto",
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        device = _device(device)
        dtype = _dtype(quantization, device)
        torch.set_num_threads(threads or usable_cores())
        self._model: PreTrainedModel | None = _load_model(folder, DTYPES[dtype], device)
        found = examine(self._model, folder)
        self._prefixes = PrefixStates(self._model) if found.shares_prefixes else None
        self._end_ids = frozenset(end_ids)
        self._vocab_size, self._rule = found.vocab_size, found.rule
        tensors = [*self._model.parameters(), *self._model.buffers()]
        self._traits = EngineCapabilities(
            name="transformers",
            cost_rule="padded",
            device=device,
            compute_type=dtype,
            workers=1,
            threads=torch.get_num_threads(),
            max_context=max_context,
            model_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            cache_bytes_per_token=found.cache_bytes,
            step_bytes_per_row=self._vocab_size * _STEP_BYTES_PER_LOGIT + 2 * found.fixed_bytes,
            cache_copies=2,
            shares_prefixes=self._prefixes is not None,
            gives_log_probs=True,
            same_length_above=self._rule.same_length_above,
            rows_alone=self._rule.alone,
            separate_above=self._rule.separate_above,
        )

    @property
    def capabilities(self) -> EngineCapabilities:
        return self._traits

    def run(
        self, batches: Iterator[Batch], on_token: TokenCallback | None = None
    ) -> Iterator[Result]:
        """See `packhorse.engine_protocol.Engine`. A batch is pulled when the one before is
        answered."""
        model = self._model
        if model is None:
            raise EngineError("the engine is closed", "load the model again")
        for batch in batches:
            rows = [Row(prompt) for prompt in batch.prompts]
            yield from self._refusals(rows)
            accepted = [row for row in rows if not row.answered]
            if accepted:
                prefix = batch.prompts[0].token_ids[: batch.shared_prefix]
                yield from self._answer(model, accepted, prefix, on_token)

    def score(
        self, batches: Iterator[Batch], continuations: Sequence[Sequence[int]]
    ) -> Iterator[Scores | Failure]:
        """See `packhorse.engine_protocol.Scorer`."""
        model = self._model
        if model is None:
            raise EngineError("the engine is closed", "load the model again")
        for batch in batches:
            rows = [Row(prompt) for prompt in batch.prompts]
            yield from self._refusals(rows)
            accepted = [row for row in rows if not row.answered]
            if accepted:
                prefix = batch.prompts[0].token_ids[: batch.shared_prefix]
                attempt = partial(self._score, model, prefix, continuations)
                yield from answer(accepted, attempt)

    def logits_after(self, token_ids: Sequence[int], count: int) -> NDArray[np.float32]:
        """See `packhorse.engine_protocol.LogitsProvider`."""
        if self._model is None:
            raise EngineError("the engine is closed", "load the model again")
        return logits_after(self._model, token_ids, count)

    def _score(
        self,
        model: PreTrainedModel,
        prefix: tuple[int, ...],
        continuations: Sequence[Sequence[int]],
        rows: list[Row],
    ) -> Iterator[Scores | Failure]:
        longest = max(map(len, continuations))

        def is_stepped(row: Row) -> bool:
            beyond = self._rule.one_scale and self._rule.is_beyond(row.tokens)
            return self._rule.is_beyond(row.tokens + longest - 1) and not beyond

        stepped = [row for row in rows if is_stepped(row)]
        others = [row for row in rows if not is_stepped(row)]
        for group in by_common(others, lambda row: self._group(row, longest)):
            state = self._prefix_state(prefix, group)
            sequences = [row.sequence for row in group]
            found = continuation_log_probs(model, sequences, continuations, state)
            yield from _scores(group, found)
        for group in by_common(stepped, lambda row: (self._group(row, longest), row.tokens)):
            sequences = [row.sequence for row in group]
            found = stepped_log_probs(model, sequences, continuations, self._rule)
            yield from _scores(group, found)

    def _group(self, row: Row, more: int = 0) -> object:
        """What rows have in common that may share a batch. more: tokens after the prompt, where
        they are not to be generated."""
        prompt = len(row.prompt.token_ids)
        most = prompt + (more or row.prompt.decoding.max_new_tokens)
        own = row.prompt.index if self._rule.needs_own_batch(most) else None
        return own, self._rule.group(prompt, row.tokens, most)

    def _prefix_state(self, prefix: tuple[int, ...], rows: Sequence[Row]) -> PrefixState | None:
        """The state that rows of one batch may go on from, if they may share one."""
        longest = max(row.tokens for row in rows)
        if self._prefixes is None or not self._rule.holds_prefix(len(prefix), longest):
            return None
        return self._prefixes.of(prefix)

    def _refusals(self, rows: list[Row]) -> Iterator[Failure]:
        refused = (refuse(row, self._traits.max_context, self._vocab_size) for row in rows)
        yield from filter(None, refused)

    def close(self) -> None:
        self._model = self._prefixes = None
        if self._traits.device == "cuda":
            torch.cuda.empty_cache()

    def _answer(
        self,
        model: PreTrainedModel,
        rows: list[Row],
        prefix: tuple[int, ...],
        on_token: TokenCallback | None,
    ) -> Iterator[Result]:
        draws = {row.prompt.index: row_generator(row.prompt.decoding) for row in rows}

        def decode(rows: list[Row]) -> Iterator[Result]:
            groups = by_common(rows, self._group)
            while groups:
                group = groups.pop(0)
                state = self._prefix_state(prefix, group)
                crossing = yield from self._decode(model, group, state, draws, on_token)
                groups += by_common(crossing, self._group)

        return answer(rows, decode)

    def _decode(
        self,
        model: PreTrainedModel,
        rows: list[Row],
        state: PrefixState | None,
        draws: Mapping[int, Random],
        on_token: TokenCallback | None,
    ) -> Generator[Result, None, list[Row]]:
        """Results of rows of one group; returns those that grew past the trained length
        beside others and go on from there in a batch of their own."""
        rule, crossing = self._rule, list[Row]()
        batch, logits = _begin(model, rows, state, rule)
        is_below = not any(rule.is_beyond(row.tokens) for row in rows)
        while True:
            chosen = choose_tokens(
                logits,
                [row.prompt.decoding for row in rows],
                [draws[row.prompt.index] for row in rows],
            )
            found = wanted_log_probs(
                chosen,
                [row.prompt.decoding for row in rows],
                lambda place: logits[place].float().cpu().numpy(),  # noqa: B023 (used at once)
            )
            going_on = []
            for place, (row, token_id) in enumerate(zip(rows, chosen, strict=True)):
                if token_id is None:
                    yield row.fail("engine_error", NOT_NUMBERS)
                elif result := row.take(token_id, self._end_ids, on_token, found.get(place)):
                    yield result
                elif is_below and rule.is_beyond(row.tokens):
                    crossing.append(row)
                else:
                    going_on.append(place)
            if not going_on:
                return crossing
            if len(going_on) < len(rows):
                rows = [rows[place] for place in batch.keep(going_on)]
            logits = batch.step([row.token_ids[-1] for row in rows])


def _begin(
    model: PreTrainedModel, rows: list[Row], state: PrefixState | None, rule: BatchRule
) -> tuple[PaddedBatch, torch.Tensor]:
    """A batch of rows of one group and the logits of their next tokens."""
    sequences = [row.sequence for row in rows]
    at_once = [rule.prefill_tokens(len(row.prompt.token_ids), row.tokens) for row in rows]
    begun = [ids[:count] for ids, count in zip(sequences, at_once, strict=True)]
    batch = PaddedBatch(model, begun, pad_id=0, prefix=state)
    logits = batch.prefill()
    for place in range(at_once[0], rows[0].tokens):
        logits = batch.step([ids[place] for ids in sequences])
    return batch, logits


def _scores(rows: Sequence[Row], found: torch.Tensor) -> Iterator[Scores | Failure]:
    for row, values in zip(rows, found.tolist(), strict=True):
        numbers = all(map(math.isfinite, values))
        yield row.score(values) if numbers else row.fail("engine_error", NOT_NUMBERS)


def _load_model(folder: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    require_fitting_size(folder)
    with model_errors(f"{folder} cannot be loaded", DAMAGED), quiet_transformers():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=load_config(folder),
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model: PreTrainedModel = loaded[0].eval().to(device)
    if missing := sorted(loaded[1]["missing_keys"]):
        raise ModelError(
            f"{folder} lacks {len(missing)} of the model's weights, e.g. {missing[0]}", DAMAGED
        )
    return model


def _device(asked: str) -> str:
    if asked == "cuda" and not torch.cuda.is_available():
        raise EngineError(
            "no CUDA device is available to torch", "use --device cpu, or install torch with CUDA"
        )
    return torch_device(asked)


def _dtype(asked: str, device: str) -> str:
    if asked == "auto":
        return "float16" if device == "cuda" else "float32"
    if asked not in DTYPES:
        raise EngineError(
            f"the transformers engine does not run {asked}, only {', '.join(DTYPES)}",
            "for int8 use --engine ctranslate2",
        )
    return asked
