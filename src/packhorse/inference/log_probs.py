"""Log-probabilities of a completion's tokens in the formats of the OpenAI API."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from packhorse.data import Completion, Request, SamplingParams, TokenLogProbs
from packhorse.inference.detokenizer import IncrementalDetokenizer
from packhorse.inference.generation import row_decoding
from packhorse.tokenization import Codec

Placed = tuple[int, TokenLogProbs]
"""A token, and the number of characters of the text before it.

The position is that of the character that the token begins with or is part of.
"""
LEAST = -9999.0
"""Log-probability of tokens that the model considers impossible; JSON has no infinity."""


class IncrementalLogProbs:
    """Text of one row as its tokens arrive, and with each piece the tokens that begin in it.

    The pieces are those of `IncrementalDetokenizer`. A token belongs to the completion if the
    character that it begins with or is part of does: a stop string cuts both.
    """

    def __init__(self, codec: Codec, stop: tuple[str, ...] = ()) -> None:
        self._text = IncrementalDetokenizer(codec, stop)
        self._held: deque[Placed] = deque()
        self._undecided: list[tuple[str, TokenLogProbs]] = []

    def add(self, token: TokenLogProbs) -> tuple[str, list[Placed]]:
        """Return the text and tokens that become final with this token."""
        before = self._text.decoded_length
        self._undecided.append((self._text.undecided, token))
        piece = self._text.add([token.token_id])
        if not self._text.undecided:
            self._decide(before, self._text.decided)
        return piece, self._released()

    def finish(self) -> tuple[str, list[Placed], bool]:
        """Return the rest of text and tokens, and whether a stop string cut them."""
        self._decide(self._text.decoded_length, self._text.undecided)
        rest, was_cut = self._text.finish()
        tokens = self._released() if was_cut else list(self._held)
        self._held.clear()
        return rest, tokens, was_cut

    def _decide(self, before: int, text: str) -> None:
        """Place tokens that were decoded together to `text`, after `before` characters.

        A token that completes a character is placed where the character begins; one after a broken
        character is placed after it.
        """
        for so_far, token in self._undecided:
            self._held.append((before + _common_prefix_length(so_far, text), token))
        self._undecided.clear()

    def _released(self) -> list[Placed]:
        found = []
        while self._held and self._held[0][0] < self._text.given_length:
            found.append(self._held.popleft())
        return found


def _common_prefix_length(one: str, other: str) -> int:
    """Return the number of leading characters that two texts have in common."""
    pairs = zip(one, other, strict=False)
    different = (place for place, (left, right) in enumerate(pairs) if left != right)
    return next(different, min(len(one), len(other)))


def placed(codec: Codec, stop: tuple[str, ...], tokens: Iterable[TokenLogProbs]) -> list[Placed]:
    """Return the placed tokens of a complete text."""
    growing = IncrementalLogProbs(codec, stop)
    found = [each for token in tokens for each in growing.add(token)[1]]
    return found + growing.finish()[1]


def log_probs_note(
    codec: Codec, row: Request, answer: Completion, decoding: SamplingParams
) -> dict[str, Any]:
    """Return the log-probabilities to store with a completion in the journal.

    See `packhorse.outputs.OutputRow.log_probs`.

    Args:
        codec: Tokenizer of the model.
        row: The request.
        answer: Its completion.
        decoding: Sampling parameters of the job; the row's own options override them.
    """
    tokens = placed(codec, row_decoding(decoding, row).stop, answer.log_probs or ())
    return {"log_probs": document(codec, tokens, is_chat=not isinstance(row.content, str))}


def document(codec: Codec, tokens: Sequence[Placed], *, is_chat: bool) -> dict[str, Any]:
    """Return `logprobs` of a choice or of a streamed part of one."""
    return _build_chat_document(codec, tokens) if is_chat else _build_text_document(codec, tokens)


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the document of tokens whose parts, in order, have the given documents."""
    return {
        name: [each for part in parts for each in part[name]] if isinstance(value, list) else value
        for name, value in parts[0].items()
    }


def _build_chat_document(codec: Codec, tokens: Sequence[Placed]) -> dict[str, Any]:
    content = [
        {
            **_build_chat_token(codec, token.token_id, token.log_prob),
            "top_logprobs": [_build_chat_token(codec, *each) for each in token.alternatives],
        }
        for _, token in tokens
    ]
    return {"content": content, "refusal": None}


def _build_chat_token(codec: Codec, token_id: int, log_prob: float) -> dict[str, Any]:
    written = codec.token_bytes(token_id)
    return {
        "token": codec.token_name(token_id) if written is None else _show_bytes(written),
        "logprob": max(log_prob, LEAST),
        "bytes": None if written is None else list(written),
    }


def _build_text_document(codec: Codec, tokens: Sequence[Placed]) -> dict[str, Any]:
    """Return `logprobs` of a text completion.

    `top_logprobs` also lists the token itself if it is not among the most probable ones.
    """

    def shown(token_id: int) -> str:
        written = codec.token_bytes(token_id)
        return codec.token_name(token_id) if written is None else _show_bytes(written, "bytes:")

    top = []
    for _, token in tokens:
        several: dict[str, float] = {}
        for token_id, log_prob in (*token.alternatives, (token.token_id, token.log_prob)):
            several.setdefault(shown(token_id), max(log_prob, LEAST))
        top.append(several)
    return {
        "tokens": [shown(token.token_id) for _, token in tokens],
        "token_logprobs": [max(token.log_prob, LEAST) for _, token in tokens],
        "top_logprobs": top,
        "text_offset": [offset for offset, _ in tokens],
    }


def _show_bytes(written: bytes, prefix: str = "") -> str:
    """Return a token as text; a partial character is shown as escaped bytes."""
    try:
        return written.decode("utf-8")
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in written)
