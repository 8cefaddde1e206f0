"""Fields of OpenAI and vLLM requests that say how a chat becomes a prompt, and how it is answered.

They are read to fields of `PromptOptions`, by `read_prompt_options` and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from packhorse.openai_format.field_types import NumberRange
from packhorse.openai_format.request_fields import is_neutral
from packhorse.openai_format.row_errors import RowError, format_value

_FLAGS = (
    "parallel_tool_calls",
    "enable_thinking",
    "continue_final_message",
    "add_generation_prompt",
)
PROMPT_FIELDS = frozenset(
    {
        "tools",
        "tool_choice",
        "chat_template_kwargs",
        "thinking",
        "thinking_budget",
        "reasoning_effort",
        *_FLAGS,
    }
)
_NEUTRAL_HERE = {
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "continue_final_message": None,
    "add_generation_prompt": None,
}
"""Fields whose neutral value differs from that in requests without tools and prefills."""
_THINKING_TOKENS = NumberRange(int, 0, 2**31 - 1)
_OWN_FIELDS = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})
"""Variables of templates that are set by fields of their own."""
MAX_TOOLS = 512


def has_effect(name: str, value: Any) -> bool:
    """Return whether a field of PROMPT_FIELDS has a value that may change a prompt."""
    if name in _NEUTRAL_HERE:
        return value is not None and value != _NEUTRAL_HERE[name]
    return value is not None and not is_neutral(name, value)


def read_prompt_options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of PromptOptions that a row or a request sets.

    Raises:
        RowError: `bad_option` for a wrong type or fields that contradict each other,
            `unsupported_option` for a `tool_choice` that forces a call.
    """
    if PROMPT_FIELDS.isdisjoint(fields):
        return {}
    names = PROMPT_FIELDS & fields.keys()
    given = {name: fields[name] for name in names if fields[name] is not None}
    for name in _FLAGS:
        if not isinstance(given.get(name, True), bool):
            raise _bad(name, "true or false", given[name])
    found: dict[str, Any] = {**_tools(given), **_final(given), **_thinking(given)}
    if variables := _variables(given.get("chat_template_kwargs", {})):
        found["template_options"] = variables
    if (effort := given.get("reasoning_effort")) is not None:
        if not isinstance(effort, str) or not effort:
            raise _bad("reasoning_effort", "text such as low, medium or high", effort)
        found["reasoning_effort"] = effort
    return found


def write_prompt_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request fields that ask for `options`, which have the names of PromptOptions."""
    names = {"template_options": "chat_template_kwargs"}
    found = {
        names.get(name, name): list(value) if isinstance(value, tuple) else value
        for name, value in options.items()
        if name != "final_assistant"
    }
    if "final_assistant" in options:
        found["continue_final_message"] = options["final_assistant"] == "continue"
    return found


def _variables(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _bad("chat_template_kwargs", "an object", value)
    for name in value:
        if name in _OWN_FIELDS:
            raise RowError(
                "bad_option",
                f"chat_template_kwargs sets {format_value(name)}; use the field of that name",
            )
    return value


def _tools(given: Mapping[str, Any]) -> dict[str, Any]:
    choice = given.get("tool_choice", "auto")
    if choice not in ("auto", "none"):
        raise RowError(
            "unsupported_option",
            f"tool_choice must be auto or none, got {format_value(choice)}: a call cannot be "
            "forced",
        )
    tools = read_tools(given.get("tools", []))
    if not tools or choice == "none":
        return {}
    single = {} if given.get("parallel_tool_calls", True) else {"parallel_tool_calls": False}
    return {"tools": tools, **single}


def read_tools(value: Any) -> tuple[dict[str, Any], ...]:
    """Return definitions of functions, each with `type` and `function`; JSON text is parsed.

    Raises:
        RowError: `bad_option`.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError):
            raise RowError("bad_option", "tools is text that is not JSON; give a list") from None
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise _bad("tools", f"a list of at most {MAX_TOOLS} functions", value)
    return tuple(_tool(tool, place) for place, tool in enumerate(value))


def _tool(value: Any, place: int) -> dict[str, Any]:
    tool = value if isinstance(value, dict) else {}
    if tool.get("type", "function") != "function":
        raise RowError(
            "unsupported_option",
            f"tools[{place}] has type {format_value(tool['type'])}; only functions are supported",
        )
    function = tool.get("function", {k: v for k, v in tool.items() if k != "type"})
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise RowError("bad_option", f"tools[{place}] must be a function with a name")
    if not isinstance(function.get("parameters") or {}, dict):
        raise RowError(
            "bad_option", f"the parameters of tool {format_value(name)} must be an object"
        )
    if function.get("strict"):  # would need constrained decoding
        raise RowError(
            "unsupported_option",
            f"tool {format_value(name)} is strict, which is not supported; leave strict out",
        )
    kept = {k: each for k, each in function.items() if each is not None and k != "strict"}
    return {"type": "function", "function": kept}


def _final(given: Mapping[str, Any]) -> dict[str, Any]:
    continues, opens = given.get("continue_final_message"), given.get("add_generation_prompt")
    if continues and opens:
        raise RowError(
            "bad_option",
            "continue_final_message and add_generation_prompt are both true; keep one",
        )
    found: dict[str, Any] = {}
    if continues is not None or opens is not None:
        found["final_assistant"] = "continue" if continues else "answer"
    if opens is False and not continues:
        found["add_generation_prompt"] = False
    return found


def _thinking(given: Mapping[str, Any]) -> dict[str, Any]:
    wanted: dict[str, Any] = {}
    if "thinking" in given:
        wanted["thinking"] = _thinking_value(given["thinking"])
    if "thinking_budget" in given:
        if not _THINKING_TOKENS.accepts(given["thinking_budget"]):
            raise _bad("thinking_budget", str(_THINKING_TOKENS), given["thinking_budget"])
        wanted["thinking_budget"] = given["thinking_budget"]
    if "enable_thinking" in given:
        is_on = given["enable_thinking"]
        if not is_on or not wanted:
            wanted["enable_thinking"] = "on" if is_on else "off"
    values = {value for value in wanted.values() if value != "auto"}
    if len(values) > 1:
        raise RowError("bad_option", f"{' and '.join(wanted)} contradict each other; keep one")
    return {"thinking": values.pop()} if values else ({"thinking": "auto"} if wanted else {})


def _thinking_value(value: Any) -> str | int:
    """Return a value of `PromptOptions.thinking`; Anthropic's objects are read too."""
    if isinstance(value, dict):
        is_on = {"enabled": True, "disabled": False}.get(str(value.get("type")))
        value = value.get("budget_tokens", True) if is_on else is_on
    if isinstance(value, bool):
        return "on" if value else "off"
    if value in ("auto", "on", "off"):
        return str(value)
    if _THINKING_TOKENS.accepts(value):
        return int(value)
    raise _bad("thinking", "auto, on, off or a number of tokens", value)


def _bad(name: str, wanted: str, value: Any) -> RowError:
    return RowError("bad_option", f"{name} must be {wanted}, got {format_value(value)}")
