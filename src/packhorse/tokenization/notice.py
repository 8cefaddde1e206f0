"""Warnings about rows that mean something else than they seem to say."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from packhorse.data import Request, TokenIds
from packhorse.openai_format.row_errors import format_value
from packhorse.tokenization.codecs import Codec


@dataclass(slots=True)
class SpecialTextNotice:
    """Warns once if rows spell special tokens.

    Such rows are often prompts to which a chat template has been applied already.

    Attributes:
        report: Takes the warning.
        is_quiet: Whether nothing is said of special tokens.
    """

    report: Callable[[str], None]
    is_quiet: bool = False
    _was_reported: bool = False
    _unknown: set[str] = field(default_factory=set)

    def check_template_options(self, names: Iterable[str], codec: Codec) -> None:
        """Warn once of each template option that the chat template does not read."""
        known = codec.template_variables()
        for name in names:
            if known is not None and name not in known and name not in self._unknown:
                self._unknown.add(name)
                self.report(
                    f"the model's chat template does not read the option {format_value(name)}: it "
                    "changes nothing" + _known_options(known)
                )

    def check(self, requests: Sequence[Request], codec: Codec) -> None:
        if self._was_reported or self.is_quiet:
            return
        found = [(row, text) for row in requests if (text := _special_text(row, codec))]
        if not found:
            return
        self._was_reported = True
        row, text = found[0]
        is_wrapped = codec.has_chat_template and not row.bare
        self.report(
            f"{len(found):,} of the first {len(requests):,} rows spell special tokens of this model"
            f" (line {row.line}: {format_value(text)}): these stay text"
            + (", and the chat template is put around the prompt" * is_wrapped)
            + "; if they are meant, add --raw-prompts, or give messages and let the chat template "
            "write them"
        )


def _known_options(known: Collection[str]) -> str:
    given = {"messages", "tools", "documents", "add_generation_prompt", "strftime_now"}
    names = sorted(name for name in known if name not in given and not name.endswith("_token"))
    return f"; it reads {', '.join(names[:8])}" if names else ""


def _special_text(request: Request, codec: Codec) -> str:
    content = request.content
    if isinstance(content, TokenIds):
        return ""
    texts = [content] if isinstance(content, str) else [each.get("content") for each in content]
    return next(
        (found for text in texts if isinstance(text, str) and (found := codec.special_text(text))),
        "",
    )
