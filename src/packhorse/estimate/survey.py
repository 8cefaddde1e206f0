"""Survey of an input: number of rows and their lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from packhorse.config import InputConfig
from packhorse.data import Failure, Prompt, Request, SamplingParams
from packhorse.errors import InputError
from packhorse.inference.generation import row_decoding, windows
from packhorse.inputs import Source, read_rows
from packhorse.tokenization import Refusal, Tokenizer

SURVEYED_ROWS = 20_000
_WINDOW_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Survey:
    """Result of a survey.

    Attributes:
        rows: Usable rows of the input.
        unusable: Surveyed rows that cannot be read or do not fit.
        prompts: Of the first SURVEYED_ROWS usable rows; later rows are assumed to be alike.
        requests: Of the same rows.
    """

    rows: int
    unusable: int
    prompts: tuple[Prompt, ...]
    requests: tuple[Request, ...]

    @property
    def scale(self) -> float:
        """All usable rows / surveyed rows."""
        return self.rows / len(self.prompts)

    @property
    def prompt_tokens(self) -> int:
        return round(self.scale * sum(len(prompt.token_ids) for prompt in self.prompts))


def survey(
    source: Source,
    reading: InputConfig,
    tokenizer: Tokenizer,
    decoding: SamplingParams,
    max_context: int,
    report: Callable[[str], None] = lambda message: None,
) -> Survey:
    """Tokenize the first rows and count the rest. Raises InputError if no row can be used."""
    prompts: list[Prompt] = []
    requests: list[Request] = []
    unusable = more = 0
    rows = iter(read_rows(source, reading, report))

    def readable() -> Iterator[Request]:
        nonlocal unusable
        for row in rows:
            if isinstance(row, Failure):
                unusable += 1
            else:
                yield row

    for window, _ in windows(readable(), _WINDOW_ROWS):
        decodings = [row_decoding(decoding, request) for request in window]
        rooms = [max_context - chosen.max_new_tokens for chosen in decodings]
        encoded = tokenizer.encode(window, rooms)
        for request, ids, chosen, room in zip(window, encoded, decodings, rooms, strict=True):
            is_structured = chosen.structured_outputs is not None
            form = (
                ids
                if isinstance(ids, Refusal)
                else tokenizer.output_format(request, ids, is_structured=is_structured)
            )
            if isinstance(ids, Refusal) or isinstance(form, Refusal) or room < 1:
                unusable += 1
            else:
                prompts.append(Prompt(request.index, ids, chosen, form[1]))
                requests.append(request)
        if len(prompts) >= SURVEYED_ROWS:
            break
    if not prompts:
        raise InputError(
            f"no row of {source} can be run", "packhorse run shows the reason for each row"
        )
    more = sum(isinstance(row, Request) for row in rows)
    usable_share = len(prompts) / (len(prompts) + unusable)
    return Survey(
        len(prompts) + round(more * usable_share), unusable, tuple(prompts), tuple(requests)
    )
