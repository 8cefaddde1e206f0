"""Log-probabilities of a completion's tokens as OpenAI's clients read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from packhorse.data import TokenLogProbs

PlacedToken = tuple[int, TokenLogProbs]
"""A token, and the number of characters of the completion's text before the one it begins with or
is a part of."""
MIN_LOG_PROB = -9999.0
"""Log-probability of a token with probability 0; JSON has no infinity."""


class TokenNames(Protocol):
    """What a tokenizer says about single tokens; see `packhorse.tokenization.Codec`."""

    def token_bytes(self, token_id: int) -> bytes | None: ...

    def token_name(self, token_id: int) -> str: ...


def log_probs_document(
    names: TokenNames, tokens: Sequence[PlacedToken], *, is_chat: bool
) -> dict[str, Any]:
    """Return `logprobs` of a choice, or of a part of one in a stream.

    Args:
        names: The model's tokenizer.
        tokens: The tokens of the choice or part.
        is_chat: Whether it is a choice of a chat completion, which has another form than one of a
            text completion.
    """
    return _chat_document(names, tokens) if is_chat else _text_document(names, tokens)


def join_log_probs(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the document of all tokens from the documents of consecutive parts."""
    return {
        name: [each for part in parts for each in part[name]] if isinstance(value, list) else value
        for name, value in parts[0].items()
    }


def echo_document(
    names: TokenNames, prompt: Sequence[PlacedToken], completion: dict[str, Any], offset: int
) -> dict[str, Any]:
    """Return the form of a text completion whose text begins with the prompt.

    Args:
        names: The model's tokenizer.
        prompt: Tokens of the prompt; nothing is known of the first one.
        completion: The document of the generated tokens.
        offset: Number of characters of the prompt.
    """
    document = _text_document(names, prompt)
    document["token_logprobs"][0] = document["top_logprobs"][0] = None
    offsets = [offset + each for each in completion["text_offset"]]
    return join_log_probs([document, {**completion, "text_offset": offsets}])


def prompt_document(
    names: TokenNames, tokens: Sequence[TokenLogProbs]
) -> list[dict[str, Any] | None]:
    """Return `prompt_logprobs` as vLLM writes it.

    Null for the first token of the prompt; for each other one, by token id, the log-probability,
    the rank and the text of this token and of the most probable ones in its place.
    """

    def described(token_id: int, log_prob: float, rank: int) -> dict[str, Any]:
        return {
            "logprob": max(log_prob, MIN_LOG_PROB),
            "rank": rank,
            "decoded_token": _token_text(names, token_id),
        }

    found: list[dict[str, Any] | None] = [None]
    for token in tokens:
        entry = {str(token.token_id): described(token.token_id, token.log_prob, token.rank)}
        for place, (token_id, log_prob) in enumerate(token.alternatives):
            entry.setdefault(str(token_id), described(token_id, log_prob, place + 1))
        found.append(entry)
    return found


def _chat_document(names: TokenNames, tokens: Sequence[PlacedToken]) -> dict[str, Any]:
    content = [
        {
            **_chat_token(names, token.token_id, token.log_prob),
            "top_logprobs": [_chat_token(names, *each) for each in token.alternatives],
        }
        for _, token in tokens
    ]
    return {"content": content, "refusal": None}


def _chat_token(names: TokenNames, token_id: int, log_prob: float) -> dict[str, Any]:
    encoded = names.token_bytes(token_id)
    return {
        "token": _token_text(names, token_id),
        "logprob": max(log_prob, MIN_LOG_PROB),
        "bytes": None if encoded is None else list(encoded),
    }


def _text_document(names: TokenNames, tokens: Sequence[PlacedToken]) -> dict[str, Any]:
    """Return the form of text completions.

    `top_logprobs` includes the generated token, even if it is not among the most probable ones.
    """

    def text_of(token_id: int) -> str:
        return _token_text(names, token_id, "bytes:")

    top = []
    for _, token in tokens:
        listed: dict[str, float] = {}
        for token_id, log_prob in (*token.alternatives, (token.token_id, token.log_prob)):
            listed.setdefault(text_of(token_id), max(log_prob, MIN_LOG_PROB))
        top.append(listed)
    return {
        "tokens": [text_of(token.token_id) for _, token in tokens],
        "token_logprobs": [max(token.log_prob, MIN_LOG_PROB) for _, token in tokens],
        "top_logprobs": top,
        "text_offset": [offset for offset, _ in tokens],
    }


def _token_text(names: TokenNames, token_id: int, prefix: str = "") -> str:
    """Return a token as text: its bytes as escapes if they are a part of a character."""
    encoded = names.token_bytes(token_id)
    if encoded is None:
        return names.token_name(token_id)
    try:
        return encoded.decode("utf-8")
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in encoded)
