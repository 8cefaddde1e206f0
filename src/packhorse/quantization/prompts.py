"""Default calibration prompts: 96 prompts shipped with the package.

They hold questions, instructions, texts to summarise or classify, code, and a dozen languages.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib import resources

from packhorse.data import Request, as_messages
from packhorse.tokenization import Codec, Refusal, Tokenizer

_FILE = "calibration.jsonl"
MAX_PROMPT_TOKENS = 512


def shipped_bytes() -> bytes:
    """Return the content of the file of prompts, JSONL with `messages`."""
    return (resources.files(__package__) / _FILE).read_bytes()


def shipped_requests() -> list[Request]:
    """Return the shipped prompts, mixed: any part of them holds some of each kind."""
    rows = [json.loads(line) for line in shipped_bytes().decode("utf-8").splitlines()]
    return [
        Request(index=index, id=index, line=index + 1, content=tuple(row["messages"]))
        for index, row in enumerate(rows)
    ]


def tokenize_prompts(
    codec: Codec, requests: Iterable[Request], max_tokens: int = MAX_PROMPT_TOKENS
) -> list[tuple[int, ...]]:
    """Return token ids of the requests that can be tokenized, cut to their last tokens.

    Without a chat template, the messages become paragraphs of one text.

    Args:
        codec: Tokenizer of the model.
        requests: Prompts or messages.
        max_tokens: Maximum length of a prompt; longer ones lose their beginning (tokens).
    """
    if not codec.has_chat_template:
        requests = [_as_text(request) for request in requests]
    return list(_readable(Tokenizer(codec), list(requests), max_tokens))


def _readable(
    tokenizer: Tokenizer, requests: list[Request], max_tokens: int
) -> Iterator[tuple[int, ...]]:
    for ids in tokenizer.encode(requests, [1 << 30] * len(requests)):
        if not isinstance(ids, Refusal):
            yield ids[-max_tokens:]


def _as_text(request: Request) -> Request:
    if not request.is_chat:
        return request
    text = "\n\n".join(str(each["content"]) for each in as_messages(request.content))
    return Request(request.index, request.id, request.line, text)
