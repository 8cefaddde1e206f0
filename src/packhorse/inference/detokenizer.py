"""Text of a row while its tokens come: only what no later token can change.

A character of several bytes may be spread over tokens; until its last byte is there, decoding ends
with U+FFFD and is held back, as in Hugging Face's text-generation-inference. What could become a
stop string is held back too.
"""

from __future__ import annotations

from packhorse.inference.generation import cut_at_stop
from packhorse.tokenization import Codec

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class IncrementalDetokenizer:
    """The text of one row. All pieces `add` and `finish` return, joined, are the text that
    decoding all its tokens at once and cutting at the first stop string gives.

    decided: what was last decoded for good. undecided: what the tokens since then decode to so far.
    """

    def __init__(self, codec: Codec, stop: tuple[str, ...] = ()) -> None:
        self._codec, self._stop = codec, stop
        self._token_ids: list[int] = []
        self._context = 0  # tokens before it are not needed to decode those after
        self._decoded = 0  # tokens before it are text already
        self.decided = self.undecided = ""
        self._held = ""
        self._given = ""
        self._is_cut = False

    @property
    def decoded_length(self) -> int:
        """Characters that no later token can change."""
        return len(self._given) + len(self._held)

    @property
    def given_length(self) -> int:
        """Characters in the pieces returned so far."""
        return len(self._given)

    def add(self, token_ids: list[int]) -> str:
        """Text that is certain with these further tokens; often empty."""
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
        self._held, self._is_cut = cut_at_stop(self._held, self._stop)
        certain = len(self._held) - (0 if self._is_cut else self._count_possible_stop_characters())
        piece, self._held = self._held[:certain], self._held[certain:]
        self._given += piece
        return piece

    def finish(self) -> tuple[str, bool]:
        """The rest of the text, and whether a stop string cut it."""
        whole, was_cut = cut_at_stop(self._codec.decode(self._token_ids), self._stop)
        rest = whole[len(self._given) :] if whole.startswith(self._given) else self._held
        self._given += rest
        return rest, was_cut

    def _count_possible_stop_characters(self) -> int:
        """Characters at the end that a stop string could begin with."""
        return max(
            (
                length
                for stop in self._stop
                for length in range(1, min(len(stop), len(self._held) + 1))
                if self._held.endswith(stop[:length])
            ),
            default=0,
        )
