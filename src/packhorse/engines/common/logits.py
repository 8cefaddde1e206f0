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

from packhorse.engines.common.grammars import Grammars
from packhorse.sampling_params import SamplingParams


class LogitsProcessor:
    """The changes of one row, whose generated tokens only grow.

    Args:
        decoding: Sampling parameters with `bad_word_ids`.
        prompt_ids: Token ids of the prompt.
        end_ids: The model's end tokens.
        grammars: Compiled grammars of the model, for `structured_outputs`.
    """

    def __init__(
        self,
        decoding: SamplingParams,
        prompt_ids: Sequence[int],
        end_ids: Collection[int],
        grammars: Grammars | None = None,
    ) -> None:
        self._decoding = decoding
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
        if self._grammar is not None:
            self._grammar.mask(logits, token_ids)
        excluded = self._suppressed + self._last_tokens_of_words(token_ids)
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
        return self._grammar.best(logits, token_ids)

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
