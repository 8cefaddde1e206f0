"""Changes of logits before a token is chosen, for engines that choose tokens themselves.

Definitions and order are those of vLLM 1 (vllm/v1/sample/sampler.py, `Sampler.forward`; the
formulas of the penalties are in vllm/model_executor/layers/utils.py, `apply_penalties`):

0. `structured_outputs`: the logits of tokens that cannot lead to a match become -infinity.
1. `suppress_tokens` and `bad_words`: the logit of a token that must not follow becomes -infinity.
   A word of several tokens is excluded by its last one, after generated tokens that begin it.
2. `min_tokens`: while fewer tokens are generated, those that end a row become -infinity.
3. `logit_bias` is added.
4. `repetition_penalty` r, for tokens of the prompt and generated ones: a logit x > 0 becomes x / r,
   any other x * r (Keskar et al. 2019, arXiv 1909.05858, section 4.1).
5. `frequency_penalty` f and `presence_penalty` p, for generated tokens alone: x - f * count - p, as
   in OpenAI's API reference.

Temperature, `min_p`, `top_k` and `top_p` follow in `packhorse.engines.common.sampling`. All steps
work on single logits of a row in float32, so a row's result does not depend on its batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from packhorse.data import ReasoningTokens
from packhorse.engines.common.grammars import Grammars
from packhorse.params.sampling_params import SamplingParams


class LogitsProcessor:
    """The changes of one row, whose generated tokens only grow.

    Args:
        decoding: Sampling parameters with `bad_word_ids`.
        prompt_ids: Token ids of the prompt.
        end_ids: The model's end tokens.
        grammars: Compiled grammars of the model, for `structured_outputs`.
        reasoning: Tokens of the row's reasoning, after which a structured output begins.
    """

    def __init__(
        self,
        decoding: SamplingParams,
        prompt_ids: Sequence[int],
        end_ids: Collection[int],
        grammars: Grammars | None = None,
        reasoning: ReasoningTokens | None = None,
    ) -> None:
        self._decoding = decoding
        # An answer without reasoning could not be told from the first of several start tokens.
        self._reasoning = reasoning if reasoning and len(reasoning.start) <= 1 else None
        self._answer_start: int | None = None
        structured = decoding.structured_outputs
        self._grammar = grammars.start(structured) if structured and grammars else None
        words = decoding.bad_word_ids
        singles = {ids[0] for ids in words if len(ids) == 1}
        self._suppressed = sorted({*decoding.suppress_tokens, *singles})
        self._words = [ids for ids in words if len(ids) > 1]
        self._ends = sorted({*end_ids, *decoding.stop_token_ids})
        self._biased = [token for token, _ in decoding.logit_bias]
        self._biases = [bias for _, bias in decoding.logit_bias]
        self._counts: Counter[int] = Counter()
        repeats = decoding.repetition_penalty != 1.0
        self._seen = dict.fromkeys(prompt_ids if repeats else ())
        self._num_counted = 0

    def __call__(self, logits: Tensor, token_ids: Sequence[int]) -> None:
        """Change the logits of the next token in place.

        Args:
            logits: [vocabulary] float32.
            token_ids: Tokens that were generated so far.
        """
        decoding = self._decoding
        excluded = self._suppressed + self._last_tokens_of_words(token_ids)
        if self._grammar is not None:
            start = self._find_answer(token_ids)
            if start is None:
                excluded = excluded + self._ends
            else:
                opening = self._opening(token_ids)
                kept = logits[opening].clone()
                self._grammar.mask(logits, token_ids[start:])
                logits[opening] = kept
        if len(token_ids) < decoding.min_tokens:
            excluded = excluded + self._ends
        if excluded:
            logits[excluded] = -torch.inf
        if self._biased:
            logits[self._biased] += torch.tensor(self._biases, device=logits.device)
        self._count(token_ids)
        if decoding.repetition_penalty != 1.0:
            seen = list(self._seen)
            values, penalty = logits[seen], decoding.repetition_penalty
            logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if self._counts and (decoding.frequency_penalty or decoding.presence_penalty):
            counts = torch.tensor(list(self._counts.values()), device=logits.device).float()
            generated = list(self._counts)
            logits[generated] -= decoding.frequency_penalty * counts
            logits[generated] -= decoding.presence_penalty

    def best(self, logits: Tensor, token_ids: Sequence[int]) -> int | None:
        """Return the next token of a row that `is_masked_greedy`; see `GrammarState.best`."""
        assert self._grammar is not None
        start = self._find_answer(token_ids)
        if start is None:
            logits = logits.to(torch.float32, copy=True)
            logits[self._ends] = -torch.inf
            largest, place = logits.max(dim=0)
            return int(place) if bool(largest.isfinite()) else None
        token = self._grammar.best(logits, token_ids[start:])
        for opening in self._opening(token_ids):
            if token is None or bool(logits[opening] > logits[token]):
                return opening
        return token

    def _find_answer(self, token_ids: Sequence[int]) -> int | None:
        """Return the place of the answer that the grammar describes; None in the reasoning."""
        if self._reasoning is None:
            return 0
        if self._answer_start is None or len(token_ids) <= 1:
            self._answer_start = self._reasoning.answer_start(token_ids)
        return self._answer_start

    def _opening(self, token_ids: Sequence[int]) -> list[int]:
        """Return the token by which the reasoning may begin now."""
        start = () if self._reasoning is None or token_ids else self._reasoning.start
        return list(start)

    def _count(self, token_ids: Sequence[int]) -> None:
        new = token_ids[self._num_counted :]
        self._num_counted = len(token_ids)
        self._counts.update(new)
        if self._decoding.repetition_penalty != 1.0:
            self._seen.update(dict.fromkeys(new))

    def _last_tokens_of_words(self, token_ids: Sequence[int]) -> list[int]:
        """Return the last tokens of words that the generated tokens begin."""
        return [
            ids[-1]
            for ids in self._words
            if len(ids) <= len(token_ids) + 1
            and tuple(token_ids[len(token_ids) - len(ids) + 1 :]) == ids[:-1]
        ]
