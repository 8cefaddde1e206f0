"""Log-probabilities of a completion's tokens: which tokens belong to its text, and where."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from packhorse.data import Completion, Request, SamplingParams, TokenLogProbs
from packhorse.inference.detokenizer import IncrementalDetokenizer
from packhorse.inference.generation import row_decoding
from packhorse.inference.output_reader import Decoder
from packhorse.openai_format.log_probs import PlacedToken, log_probs_document
from packhorse.tokenization import Codec


class IncrementalLogProbs:
    """Text of one row as its tokens arrive, and with each piece the tokens that begin in it.

    The pieces are those of `IncrementalDetokenizer`. A token belongs to the completion if the
    character that it begins with or is part of does: a stop string cuts both.
    """

    def __init__(self, codec: Decoder, stop: tuple[str, ...] = ()) -> None:
        self._text = IncrementalDetokenizer(codec, stop)
        self._held: deque[PlacedToken] = deque()
        self._undecided: list[tuple[str, TokenLogProbs]] = []

    def add(self, token: TokenLogProbs) -> tuple[str, list[PlacedToken]]:
        """Return the text and tokens that become final with this token."""
        before = self._text.decoded_length
        self._undecided.append((self._text.undecided, token))
        piece = self._text.add([token.token_id])
        if not self._text.undecided:
            self._decide(before, self._text.decided)
        return piece, self._released()

    def finish(self) -> tuple[str, list[PlacedToken], bool]:
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

    def _released(self) -> list[PlacedToken]:
        found = []
        while self._held and self._held[0][0] < self._text.given_length:
            found.append(self._held.popleft())
        return found


def _common_prefix_length(one: str, other: str) -> int:
    """Return the number of leading characters that two texts have in common."""
    pairs = zip(one, other, strict=False)
    different = (place for place, (left, right) in enumerate(pairs) if left != right)
    return next(different, min(len(one), len(other)))


def placed(
    codec: Decoder, stop: tuple[str, ...], tokens: Iterable[TokenLogProbs]
) -> list[PlacedToken]:
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
    return {"log_probs": log_probs_document(codec, tokens, is_chat=row.is_chat)}
