"""Incremental detokenization: return text as soon as no later token can change it.

A character of several bytes may be split over tokens. Until its last byte is there, decoding ends
with U+FFFD, which is held back as in Hugging Face's text-generation-inference. Text that may be the
beginning of a stop string is held back too.
"""

from __future__ import annotations

from packhorse.inference.generation import cut_at_stop, final_text
from packhorse.inference.output_reader import Decoder

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class IncrementalDetokenizer:
    """Text of one row. The pieces from `add` and `finish` add up to the final text.

    That is the text of all tokens decoded at once and cut at the first stop string (`final_text`).

    Attributes:
        decided: Text that was last decoded and is final.
        undecided: Text that the tokens since then decode to so far.
    """

    def __init__(self, codec: Decoder, stop: tuple[str, ...] = (), min_tokens: int = 0) -> None:
        self._codec, self._stop, self._min_tokens = codec, stop, min_tokens
        self._token_ids: list[int] = []
        self._context = 0  # earlier tokens are not needed to decode later ones
        self._decoded = 0  # earlier tokens are decoded already
        self.decided = self.undecided = ""
        self._held = ""
        self._given = ""
        self._is_cut = False

    @property
    def decoded_length(self) -> int:
        """Number of characters that no later token can change."""
        return len(self._given) + len(self._held)

    @property
    def given_length(self) -> int:
        """Number of characters in the pieces returned so far."""
        return len(self._given)

    def add(self, token_ids: list[int]) -> str:
        """Return the text that becomes final with further tokens; often empty."""
        unsearched = self._min_tokens - len(self._token_ids)
        if 0 < unsearched < len(token_ids):
            return self.add(token_ids[:unsearched]) + self.add(token_ids[unsearched:])
        self._token_ids += token_ids
        before = self._codec.decode(self._token_ids[self._context : self._decoded])
        after = self._codec.decode(self._token_ids[self._context :])
        if self._is_cut:
            return ""
        if after.endswith(REPLACEMENT):
            self.undecided = after[len(before) :]
            return ""
        self._context, self._decoded = self._decoded, len(self._token_ids)
        self.undecided, self.decided = "", after[len(before) :]
        self._held += self.decided
        if len(self._token_ids) <= self._min_tokens:
            piece, self._held = self._held, ""
            self._given += piece
            return piece
        self._held, self._is_cut = cut_at_stop(self._held, self._stop)
        certain = len(self._held) - (0 if self._is_cut else self._count_possible_stop_characters())
        piece, self._held = self._held[:certain], self._held[certain:]
        self._given += piece
        return piece

    def finish(self) -> tuple[str, bool]:
        """Return the rest of the text and whether a stop string cut it."""
        whole, was_cut = final_text(self._codec, self._token_ids, self._stop, self._min_tokens)
        rest = whole[len(self._given) :] if whole.startswith(self._given) else self._held
        self._given += rest
        return rest, was_cut

    def _count_possible_stop_characters(self) -> int:
        """Return the number of characters at the end that may begin a stop string."""
        return max(
            (
                length
                for stop in self._stop
                for length in range(1, min(len(stop), len(self._held) + 1))
                if self._held.endswith(stop[:length])
            ),
            default=0,
        )
