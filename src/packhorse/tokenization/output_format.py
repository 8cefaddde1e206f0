"""How the outputs of a model are written: tags of its reasoning, and markers of its tool calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from packhorse.data import ReasoningTokens, Request
from packhorse.errors import ConfigError
from packhorse.openai_format.row_errors import format_value
from packhorse.openai_format.tool_calls import TOOL_MARKERS, ToolFormat
from packhorse.params.prompt_options import PromptOptions
from packhorse.tokenization.codecs import Codec, Refusal
from packhorse.tokenization.placeholders import function_of

_TAIL_TOKENS = 32


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """Texts around the reasoning of a model.

    Attributes:
        start: Begins the reasoning.
        end: Ends it.
        before_answer: Texts that may stand between the reasoning and the answer; they are no part
            of either.
        forced_end: Written to end the reasoning at a limit.
    """

    start: str
    end: str
    before_answer: tuple[str, ...] = ()
    forced_end: str = ""


KNOWN_TAGS = (
    ReasoningTags("<think>", "</think>"),
    ReasoningTags("[THINK]", "[/THINK]"),
    ReasoningTags("<seed:think>", "</seed:think>"),
    ReasoningTags("<|START_THINKING|>", "<|END_THINKING|>"),
    ReasoningTags("◁think▷", "◁/think▷"),
    # OpenAI's harmony format (gpt-oss): the answer is a further message.
    ReasoningTags(
        "<|channel|>analysis<|message|>",
        "<|end|>",
        ("<|start|>assistant", "<|channel|>final<|message|>"),
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
)
_SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates switch reasoning on and off."""


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """How to read the output of one row.

    Attributes:
        tags: Tags of its reasoning; None if there is none.
        is_open: Whether the prompt has begun the reasoning.
        tool_format: How it writes tool calls; None if they are not read.
        tool_names: Names of its tools.
        parallel_tool_calls: Whether more than one call is returned.
        keep: Special tokens that are markers, and so must appear in the text that is read.
    """

    tags: ReasoningTags | None = None
    is_open: bool = False
    tool_format: ToolFormat | None = None
    tool_names: frozenset[str] = frozenset()
    parallel_tool_calls: bool = True
    keep: frozenset[int] = frozenset()

    @property
    def is_plain(self) -> bool:
        """Whether the output is text and nothing else."""
        return self.tags is None and self.tool_format is None


PLAIN_OUTPUT = OutputFormat()


class OutputRules:
    """How the outputs of one model are written, found when it is first asked for.

    Args:
        codec: Tokenizer of the model.
        options: Options of the job.
    """

    def __init__(self, codec: Codec, options: PromptOptions) -> None:
        self._codec, self._options = codec, options

    def check(self) -> None:
        """Raise ConfigError for tags of the options that are not two texts."""
        find_tags(self._codec, self._options)

    @cached_property
    def tags(self) -> ReasoningTags | None:
        """Tags of the model's reasoning; see `find_tags`."""
        return find_tags(self._codec, self._options)

    @cached_property
    def tag_ids(self) -> frozenset[int]:
        """Special tokens of the tags."""
        if self.tags is None:
            return frozenset()
        texts = (self.tags.start, self.tags.end, *self.tags.before_answer)
        return marker_ids(self._codec, texts)

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """How the model writes tool calls."""
        return find_tool_format(self._codec, self._options)

    @cached_property
    def tool_ids(self) -> frozenset[int]:
        """Special tokens of tool calls."""
        if self.tool_format is None:
            return frozenset()
        return marker_ids(self._codec, TOOL_MARKERS[self.tool_format])

    @cached_property
    def switch(self) -> str:
        """Variable by which the chat template switches reasoning; "" if there is none."""
        return next((name for name in _SWITCHES if name in self._known), "")

    @cached_property
    def takes_system(self) -> bool:
        """Whether the chat template takes a system message."""
        user, system = ({"role": role, "content": "Hello"} for role in ("user", "system"))
        alone, both = self._codec.encode_chats([[user], [system, user]])
        return isinstance(alone, Refusal) or not isinstance(both, Refusal)

    def thinking_fault(self, thinking: str | int) -> str:
        """Return why the model cannot reason as asked; "" if it can."""
        if thinking == "auto":
            return ""
        if thinking == "off":
            if self.tags is None or self.switch:
                return ""
            return "the model's chat template has no switch that turns its reasoning off"
        if self.tags is None:
            return (
                "neither template nor tokenizer of this model has known tags of reasoning, so "
                f"thinking must be auto or off, got {thinking}"
            )
        return ""

    def variables(self, own: Mapping[str, Any]) -> dict[str, Any] | Refusal:
        """Return the variables of the template for a row.

        Args:
            own: The row's own options, which override those of the job.
        """
        return self._variables(own) if own else self._usual_variables

    @cached_property
    def _usual_variables(self) -> dict[str, Any] | Refusal:
        return self._variables({})

    def _variables(self, own: Mapping[str, Any]) -> dict[str, Any] | Refusal:
        found: dict[str, Any] = {}
        job: dict[str, Any] = {
            "thinking": self._options.thinking,
            "reasoning_effort": self._options.reasoning_effort,
            "template_options": self._options.template_options,
        }
        for level in (job, own):
            thinking, effort = level.get("thinking", "auto"), level.get("reasoning_effort")
            if effort is not None and "reasoning_effort" in self._known:
                found["reasoning_effort"] = effort
            elif effort == "none":
                thinking = "off"
            elif effort is not None:
                return Refusal(
                    "unsupported_option",
                    f"reasoning_effort is {format_value(effort)}, which this model's chat template "
                    "does not read; leave it out",
                )
            if fault := self.thinking_fault(thinking):
                return Refusal("unsupported_option", f"{fault}; leave it out")
            if thinking != "auto" and self.switch:
                found[self.switch] = thinking != "off"
            found |= level.get("template_options", {})
        return found

    def format_of(
        self, request: Request, ids: Sequence[int], *, is_structured: bool
    ) -> tuple[OutputFormat, ReasoningTokens | None] | Refusal:
        """Return how to read the output of a row, and the tokens of its reasoning.

        These tokens are None if the reasoning has no limit and no structured output follows it.

        Args:
            request: The row.
            ids: Its prompt, as `encode` returns it.
            is_structured: Whether the answer is a structured output.
        """
        if request.bare and not isinstance(self._limit(request), int):
            return PLAIN_OUTPUT, None
        own = request.prompt_options
        tools = own.get("tools", self._options.tools)
        limit = self._limit(request)
        if self.tags is None and not tools:
            if isinstance(limit, int):
                return Refusal("unsupported_option", self.thinking_fault(limit))
            return PLAIN_OUTPUT, None
        tool_format = self.tool_format if tools else None
        keep = self.tag_ids | (self.tool_ids if tools else frozenset())
        is_open = False
        if self.tags is not None:
            prefill = self._prefill(request)
            is_open = prompt_opens_reasoning(self._codec, self.tags, self.tag_ids, ids, prefill)
        found = OutputFormat(
            tags=self.tags,
            is_open=is_open,
            tool_format=tool_format,
            tool_names=frozenset(str(function_of(tool).get("name")) for tool in tools),
            parallel_tool_calls=own.get("parallel_tool_calls", self._options.parallel_tool_calls),
            keep=keep,
        )
        if request.bare:  # a text completion has no field for reasoning
            found = PLAIN_OUTPUT
        if self.tags is None:
            return found, None
        if isinstance(limit, int):
            tokens = reasoning_tokens(self._codec, self.tags, limit, is_open=is_open)
            what, advice = "be limited to a number of tokens", "auto, on or off"
        elif is_structured and (is_open or not self._closes_reasoning(ids)):
            tokens = reasoning_tokens(self._codec, self.tags, None, is_open=is_open)
            if tokens is None and not is_open:  # without reasoning, then
                return found, None
            what, advice = "come before a structured output", "off"
        else:
            return found, None
        if tokens is None:
            return Refusal(
                "unsupported_option",
                f"this model writes {self.tags.end} in several tokens, so its reasoning cannot "
                f"{what}; use thinking {advice}",
            )
        return found, tokens

    def _closes_reasoning(self, ids: Sequence[int]) -> bool:
        """Return whether a prompt ends after the end of the reasoning."""
        assert self.tags is not None
        tail = self._codec.decode(ids[-_TAIL_TOKENS:], self.tag_ids).rstrip()
        return tail.endswith(self.tags.end)

    def _limit(self, request: Request) -> str | int:
        thinking: str | int = request.prompt_options.get("thinking", self._options.thinking)
        return thinking

    def _prefill(self, request: Request) -> str:
        """Return the message of the assistant that the prompt of a row ends in."""
        if not request.is_chat:
            return ""
        last = request.content[-1]
        assert isinstance(last, Mapping)
        final = request.prompt_options.get("final_assistant", self._options.final_assistant)
        is_continued = last.get("role") == "assistant" and final == "continue"
        return str(last.get("content") or "") if is_continued else ""

    @cached_property
    def _known(self) -> frozenset[str]:
        return self._codec.template_variables() or frozenset()


def find_tags(codec: Codec, options: PromptOptions) -> ReasoningTags | None:
    """Return the tags of a model's reasoning: those of the options, else the first known ones.

    Known tags are those of a model if its chat template writes the end tag, or if both are single
    tokens of its vocabulary.

    Raises:
        ConfigError: The options do not name two tags.
    """
    chosen = options.thinking_tags
    if chosen == ("none",):
        return None
    if chosen:
        if len(chosen) != 2 or not all(chosen):
            raise ConfigError(
                f"thinking_tags must be two texts, the start and the end, got {len(chosen)}",
                "write them as <think>,</think>, or none for no reasoning",
            )
        known = {(each.start, each.end): each for each in KNOWN_TAGS}
        start, end = chosen
        return known.get((start, end), ReasoningTags(start, end))
    template = codec.chat_template
    for tags in KNOWN_TAGS:
        parts: tuple[str, ...] = (tags.start, tags.end)
        if tags.before_answer:  # a template may write these parts separately
            parts = ("<|channel|>", "<|message|>", "<|end|>")
        elif tags.end in template:
            return tags
        if all(
            len(ids) == 1 and codec.is_single_token(ids[0]) for ids in codec.encode_rendered(parts)
        ):
            return tags
    return None


def find_tool_format(codec: Codec, options: PromptOptions) -> ToolFormat | None:
    """Return how a model writes tool calls; None if that is not known or not wanted."""
    if options.tool_format == "none":
        return None
    if options.tool_format != "auto":
        return options.tool_format
    template = codec.chat_template
    for name, (marker, *_) in TOOL_MARKERS.items():
        if marker in template:
            return name
    for name, (marker, *_) in TOOL_MARKERS.items():
        if is_single(codec, marker):
            return name
    return None


def is_single(codec: Codec, text: str) -> bool:
    """Return whether a text is one token that is never joined with text beside it."""
    (ids,) = codec.encode_rendered([text])
    return len(ids) == 1 and codec.is_single_token(ids[0])


def marker_ids(codec: Codec, texts: Sequence[str]) -> frozenset[int]:
    """Return the special tokens in these texts, which decoding would leave out."""
    ids = {each for encoded in codec.encode_rendered(list(texts)) for each in encoded}
    return frozenset(
        each for each in ids if codec.is_single_token(each) and not codec.decode([each])
    )


def prompt_opens_reasoning(
    codec: Codec, tags: ReasoningTags, keep: frozenset[int], ids: Sequence[int], prefill: str
) -> bool:
    """Return whether a prompt ends inside reasoning: after its start tag, or in a prefill of it.

    Args:
        codec: Tokenizer of the model.
        tags: Tags of its reasoning.
        keep: Special tokens of the tags.
        ids: The prompt.
        prefill: The message of the assistant that is continued; "" for none.
    """
    tail = codec.decode(ids[-_TAIL_TOKENS:], keep).rstrip()
    return tail.endswith(tags.start) or prefill.rfind(tags.start) > prefill.rfind(tags.end)


def reasoning_tokens(
    codec: Codec, tags: ReasoningTags, limit: int | None, *, is_open: bool
) -> ReasoningTokens | None:
    """Return the tokens of reasoning that ends after `limit` tokens, if there is a limit.

    None if the tags are written in tokens that may be joined with other text: whether they were
    generated could then not be told from tokens.
    """
    parts = [tags.start, tags.end, tags.forced_end or tags.end]
    start, end, forced = codec.encode_rendered(parts)
    for ids in (start, end):
        if not ids or not codec.is_single_token(ids[0]) or not codec.is_single_token(ids[-1]):
            return None
    return ReasoningTokens(limit, forced, end, () if is_open else start)
