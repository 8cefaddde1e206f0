"""Which tokens CTranslate2 may generate, and which end a row, by the rules of SamplingParams.

What the library (version 4.8) does differently is refused (src/decoding.cc, src/decoding_utils.cc):

- `repetition_penalty` leaves out the prompt; other penalties, `logit_bias`, `min_p` do not exist;
- a suppressed sequence of several tokens also matches tokens of a prompt that are forced through
  the decoder, which depends on the other rows of a batch;
- the logits that it returns are those after tokens were suppressed;
- `min_length` excludes `end_token` only, so not the model's end tokens beside `ignore_eos`.
"""

from __future__ import annotations

from collections.abc import Collection

from packhorse.engines.common.rows import Row
from packhorse.sampling_params import SamplingParams

_ELSEWHERE = "use the engine transformers or packed"


def unsupported_sampling(decoding: SamplingParams) -> str:
    """Return what CTranslate2 would do differently for a row, "" if nothing."""
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
