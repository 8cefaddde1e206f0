"""SamplingParams as options of CTranslate2: how tokens are drawn, which may be, which end a row.

What the library (version 4.8) does differently is refused (src/decoding.cc, src/decoding_utils.cc):

- `repetition_penalty` leaves out the prompt; other penalties, `logit_bias`, `min_p` do not exist;
- a suppressed sequence of several tokens also matches tokens of a prompt that are forced through
  the decoder, which depends on the other rows of a batch;
- the logits that it returns are those after tokens were suppressed;
- `min_length` excludes `end_token` only, so not the model's end tokens beside `ignore_eos`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from packhorse.data import Prompt
from packhorse.engines.common.rows import Result, Row, diagnose
from packhorse.params.sampling_params import SamplingParams

GREEDY_BELOW_TEMPERATURE = 1e-4
CUDA_TOP_P_CANDIDATES = 8192
_ELSEWHERE = "use the engine transformers or packed"


def unsupported_sampling(prompt: Prompt, most_prompt: int) -> str:
    """Return what CTranslate2 would do differently for a row, "" if nothing.

    Args:
        prompt: The row.
        most_prompt: Tokens of a prompt whose logits may be kept at the same time.
    """
    decoding = prompt.decoding
    if decoding.prompt_log_probs is not None and len(prompt.token_ids) > most_prompt:
        return (
            "the engine ctranslate2 computes log-probabilities of prompts of at most "
            f"{most_prompt} tokens of this model: {_ELSEWHERE}"
        )
    if any(len(ids) > 1 for ids in decoding.bad_word_ids):
        return (
            "the engine ctranslate2 supports bad_words of a single token only, one of these has "
            f"several: {_ELSEWHERE}"
        )
    if decoding.top_log_probs is not None and decoding.changes_logits:
        return (
            "the engine ctranslate2 gives no log-probabilities beside bad_words, suppress_tokens "
            f"or min_tokens: {_ELSEWHERE}"
        )
    if decoding.min_tokens and decoding.ignore_eos:
        return f"the engine ctranslate2 does not support min_tokens with ignore_eos: {_ELSEWHERE}"
    return ""


def constraints(row: Row, end_ids: Collection[int]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Return the token ids that end a row, those that it never gets, and the least tokens left.

    Rows of one call of the library have the same.
    """
    decoding = row.prompt.decoding
    ends = {*decoding.stop_token_ids, *(() if decoding.ignore_eos else end_ids)}
    words = {ids[0] for ids in decoding.bad_word_ids}
    suppressed = {*decoding.suppress_tokens, *words}
    least = max(0, decoding.min_tokens - len(row.token_ids))
    return tuple(sorted(ends)), tuple(sorted(suppressed)), least


def read_prompt(
    row: Row, logits_after: Callable[[Sequence[int], int], NDArray[np.float32]]
) -> Iterator[Result]:
    """Compute the log-probabilities of a prompt; yield the row if it ends with that."""
    ids = row.prompt.token_ids
    try:
        for logits in logits_after(ids, len(ids))[:-1]:
            row.take_prompt_logits(logits)
    except Exception as error:  # noqa: BLE001 - what the library raises is not ours to choose
        yield row.fail(*diagnose(error))
        return
    if not row.prompt.decoding.max_new_tokens:
        yield row.finish_prompt()


def sampling_options(decoding: SamplingParams, vocab_size: int, device: str) -> dict[str, float]:
    """Return the library's options; greedy is sampling from the one most probable token."""
    if is_greedy(decoding):
        return {"sampling_topk": 1}
    top_k = decoding.top_k if decoding.top_k < vocab_size else 0
    if decoding.top_p < 1 and device == "cuda":
        top_k = min(top_k or CUDA_TOP_P_CANDIDATES, CUDA_TOP_P_CANDIDATES, vocab_size)
    return {
        "sampling_topk": top_k,
        "sampling_topp": decoding.top_p,
        "sampling_temperature": decoding.temperature,
    }


def is_greedy(decoding: SamplingParams) -> bool:
    return decoding.greedy or decoding.temperature < GREEDY_BELOW_TEMPERATURE


def has_seed(decoding: SamplingParams) -> bool:
    return decoding.seed is not None and not is_greedy(decoding)
