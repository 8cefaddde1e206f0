"""Log-probabilities of a completion's tokens: which tokens belong to its text, and where."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from packhorse.data import Completion, Request, SamplingParams, TokenLogProbs
from packhorse.inference.detokenizer import IncrementalDetokenizer
from packhorse.inference.generation import row_decoding
from packhorse.inference.output_reader import Decoder, output_note
from packhorse.openai_format.log_probs import (
    PlacedToken,
    echo_document,
    log_probs_document,
    prompt_document,
)
from packhorse.tokenization import Codec


class HasPromptLogProbs(Protocol):
    """A finished row: a Completion, or a row of the server."""

    @property
    def prompt_log_probs(self) -> tuple[TokenLogProbs, ...] | None: ...


class IncrementalLogProbs:
    """Text of one row as its tokens arrive, and with each piece the tokens that begin in it.

    The pieces are those of `IncrementalDetokenizer`. A token belongs to the completion if the
    character that it begins with or is part of does: a stop string cuts both.
    """

    def __init__(self, codec: Decoder, stop: tuple[str, ...] = (), min_tokens: int = 0) -> None:
        self._text = IncrementalDetokenizer(codec, stop, min_tokens)
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
    codec: Decoder,
    stop: tuple[str, ...],
    tokens: Iterable[TokenLogProbs],
    min_tokens: int = 0,
) -> list[PlacedToken]:
    """Return the placed tokens of a complete text."""
    growing = IncrementalLogProbs(codec, stop, min_tokens)
    found = [each for token in tokens for each in growing.add(token)[1]]
    return found + growing.finish()[1]


def choice_log_probs(
    codec: Codec, decoding: SamplingParams, answer: Completion, prompt: str | None
) -> dict[str, Any] | None:
    """Return `logprobs` of a choice; None if they were not requested.

    Args:
        codec: Tokenizer of the model.
        decoding: Sampling parameters of the row.
        answer: The choice.
        prompt: Text of the prompt of a text completion, None for a chat.
    """
    if answer.log_probs is None:
        return None
    tokens = placed(codec, decoding.stop, answer.log_probs, decoding.min_tokens)
    document = log_probs_document(codec, tokens, is_chat=prompt is None)
    if prompt is None:
        return document
    return with_echo(codec, decoding, document, answer.prompt_token_ids, answer, prompt)


def with_echo(
    codec: Codec,
    decoding: SamplingParams,
    document: dict[str, Any],
    prompt_ids: Sequence[int],
    of_prompt: HasPromptLogProbs,
    prompt: str,
) -> dict[str, Any]:
    """Return `logprobs` of a text completion with its prompt's, if the text has it."""
    if not decoding.echo or of_prompt.prompt_log_probs is None:
        return document
    known = (TokenLogProbs(prompt_ids[0], 0.0), *of_prompt.prompt_log_probs)
    return echo_document(codec, placed(codec, (), known), document, len(prompt))


def completion_note(
    codec: Codec, row: Request, answer: Completion, decoding: SamplingParams
) -> dict[str, Any] | None:
    """Return what the journal stores with a completion besides its text; None for nothing.

    The fields of `packhorse.outputs.OutputRow`: log_probs, prompt_log_probs, other_choices,
    reasoning, reasoning_tokens, tool_calls and content.

    Args:
        codec: Tokenizer of the model.
        row: The request.
        answer: Its completion.
        decoding: Sampling parameters of the job; the row's own options override them.
    """
    chosen = row_decoding(decoding, row)
    prompt = None if row.is_chat else row.content if isinstance(row.content, str) else ""
    note = output_note(answer)
    if answer.log_probs is not None:
        note["log_probs"] = choice_log_probs(codec, chosen, answer, prompt)
    if answer.prompt_log_probs is not None:
        note["prompt_log_probs"] = prompt_document(codec, answer.prompt_log_probs)
    if answer.other_choices:
        note["other_choices"] = [
            {
                "text": each.text,
                "finish_reason": each.finish_reason,
                "log_probs": choice_log_probs(codec, chosen, each, prompt),
                **output_note(each),
            }
            for each in answer.other_choices
        ]
    return note or None
