"""Options of prompts: how a row becomes a prompt, and how its output is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal


def parse_thinking(text: str) -> str | int:
    """Return a value of `PromptOptions.thinking`. Raises ValueError for any other text."""
    if text in ("auto", "off", "on"):
        return text
    if text.isascii() and text.isdecimal():
        return int(text)
    raise ValueError(f"must be auto, off, on or a number of tokens, got {text!r}")


def parse_template_option(text: str) -> tuple[str, Any]:
    """Return name and value of NAME=VALUE; the value is JSON, else text. Raises ValueError."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"must be NAME=VALUE, got {text!r}")
    try:
        return name.strip(), json.loads(value)
    except (ValueError, RecursionError):
        return name.strip(), value


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """How a row becomes a prompt, and how its output is read.

    Fields without help are set by rows and from Python only.

    Attributes:
        template_options: Variables of the chat template, such as {"enable_thinking": False}.
        thinking: Reasoning of the model: "auto" is the template's default, "off" and "on" set the
            template's switch, a number switches it on and ends it after that many tokens.
        thinking_tags: Texts that begin and end the reasoning; () finds them in template and
            tokenizer, ("none",) splits nothing.
        merge_system: Put system messages before the text of the first user message if the template
            takes none.
        final_assistant: What to do with a last message of the assistant: "continue" it, "answer"
            in a new message, or "drop" it and answer the message before.
        raw_prompts: Text prompts are rendered already: special tokens in them are tokens, and
            neither a template nor further special tokens are added.
        tools: Functions that the model may call, as in OpenAI's `tools`.
        tool_format: How the model writes calls; "auto" finds it in template and tokenizer.
        parallel_tool_calls: Whether more than one call of an output is returned.
        add_generation_prompt: Whether a chat's prompt ends by opening the assistant's message.
        reasoning_effort: Value of the template's variable of this name.
    """

    template_options: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={
            "flags": ("--template-option",),
            "metavar": "NAME=VALUE",
            "repeatable": True,
            "type": parse_template_option,
            "help": "set a variable of the chat template, e.g. enable_thinking=false; the value is "
            "JSON, else text; repeatable",
        },
    )
    thinking: str | int = field(
        default="auto",
        metadata={
            "metavar": "auto|off|on|N",
            "type": parse_thinking,
            "help": "reasoning of the model: the template's default, off, on, or at most N tokens "
            "(with transformers and packed)",
        },
    )
    thinking_tags: tuple[str, ...] = field(
        default=(),
        metadata={
            "metavar": "START,END",
            "help": "texts that begin and end the reasoning; none keeps it in the text",
            "default": "found in the model's template and tokenizer",
        },
    )
    merge_system: bool = field(
        default=False,
        metadata={
            "help": "put system messages into the first user message if the template takes none"
        },
    )
    final_assistant: Literal["continue", "answer", "drop"] = field(
        default="continue",
        metadata={
            "help": "what to do with a last message of the assistant: continue it, answer in a new "
            "message, or drop it and answer the message before"
        },
    )
    raw_prompts: bool = field(
        default=False,
        metadata={
            "help": "prompts are rendered already: special tokens in them are tokens, and no chat "
            "template is applied"
        },
    )
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_format: Literal["auto", "hermes", "mistral", "llama3", "none"] = field(
        default="auto",
        metadata={
            "help": "how the model writes tool calls",
            "default": "auto: found in the model's template and tokenizer",
        },
    )
    parallel_tool_calls: bool = True
    add_generation_prompt: bool = True
    reasoning_effort: str | None = None


def prompt_settings(options: PromptOptions) -> dict[str, Any]:
    """Return the options as settings of a journal, None for those with their default.

    A journal that was written before an option existed so has its default.
    """
    usual = PromptOptions()
    found: dict[str, Any] = {}
    for each in fields(PromptOptions):
        value = getattr(options, each.name)
        is_usual = value == getattr(usual, each.name)
        found[each.name] = None if is_usual else json.loads(json.dumps(value))
    return found
