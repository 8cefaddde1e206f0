"""Questions with a fixed set of answers, and the prompts that ask them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packhorse.data import Content, Message, TokenIds
from packhorse.errors import ConfigError
from packhorse.openai_format.row_errors import format_value

Kind = Literal["yes_no", "choice", "score"]
MAX_QUESTIONS = 64
MAX_OPTIONS = 64
_FIELDS = {
    "yes_no": {"name", "type", "question"},
    "choice": {"name", "type", "question", "options"},
    "score": {"name", "type", "question", "scale"},
}
_ADVICE = 'write one like {"name": "spam", "type": "yes_no", "question": "Is this mail spam?"}'
_SUFFIXES = ("", "_confidence", "_entropy", "_probabilities", "_mean")
_TAKEN = ("id", "error", "error_code", "error_message")


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        name: Name of its columns.
        kind: Type of its answers.
        text: The question.
        options: All answers; those of a score are numbers from the lowest on.
    """

    name: str
    kind: Kind
    text: str
    options: tuple[str, ...]

    def orders(self, most: int) -> list[tuple[int, ...]]:
        """Return the orders in which the options are listed, at most `most`.

        Those of a score are listed upwards and downwards, those of other questions once from each
        option on (rotations), evenly spread if there are more than `most`.
        """
        places = tuple(range(len(self.options)))
        if self.kind == "score":
            return [places, places[::-1]][:most]
        number = min(most, len(places))
        starts = [place * len(places) // number for place in range(number)]
        return [places[start:] + places[:start] for start in starts]

    def columns(self) -> dict[str, str]:
        """Return the names of its columns and their types; see `packhorse.outputs`."""
        is_score = self.kind == "score"
        kinds = ("int64" if is_score else "string", "float64", "float64", "json", "float64")
        names = (f"{self.name}{suffix}" for suffix in _SUFFIXES)
        found = dict(zip(names, kinds, strict=True))
        return found if is_score else {n: k for n, k in found.items() if not n.endswith("_mean")}

    def values(self, probabilities: Sequence[float]) -> dict[str, Any]:
        """Return the values of its columns for the probabilities of the options.

        Entropy is divided by that of equal probabilities: from 0 for a certain answer to 1.
        """
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        entropy = -sum(p * math.log(p) for p in probabilities if p > 0)
        entropy /= math.log(len(self.options))
        rounded = {
            option: round(p, 6) for option, p in zip(self.options, probabilities, strict=True)
        }
        answer = self.options[best]
        found: dict[str, Any] = {
            self.name: int(answer) if self.kind == "score" else answer,
            f"{self.name}_confidence": round(probabilities[best], 6),
            f"{self.name}_entropy": round(entropy, 6),
            f"{self.name}_probabilities": rounded,
        }
        if self.kind == "score":
            mean = sum(p * int(o) for p, o in zip(probabilities, self.options, strict=True))
            found[f"{self.name}_mean"] = round(mean, 6)
        return found


def read_questions(path: Path) -> tuple[Question, ...]:
    """Return the questions of a file: a JSON list, or one JSON object per line.

    Raises:
        ConfigError: The file cannot be read, or a question is not valid.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the questions {path} cannot be read: {error}", "name a file") from error
    try:
        if text.lstrip().startswith("["):
            given = json.loads(text)
        else:
            given = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the questions {path} are no JSON: {error}", _ADVICE) from error
    if not given or len(given) > MAX_QUESTIONS:
        raise ConfigError(
            f"{path} must have from 1 to {MAX_QUESTIONS} questions, got {len(given)}", _ADVICE
        )
    questions = tuple(_question(each, place, path) for place, each in enumerate(given, 1))
    taken = list(_TAKEN)
    for question in questions:
        for name in question.columns():
            if name in taken:
                raise ConfigError(
                    f"the name {question.name!r} in {path} gives a column {name!r}, which is taken",
                    "give each question a name of its own",
                )
            taken.append(name)
    return questions


def _question(given: Any, place: int, path: Path) -> Question:
    def refuse(message: str) -> ConfigError:
        return ConfigError(f"question {place} of {path} {message}", _ADVICE)

    if not isinstance(given, Mapping):
        raise refuse(f"must be an object, got {format_value(given)}")
    kind = given.get("type", "choice" if "options" in given else "yes_no")
    if kind not in _FIELDS:
        raise refuse(f"has type {format_value(kind)}; types are {', '.join(_FIELDS)}")
    if unknown := sorted(set(given) - _FIELDS[kind]):
        raise refuse(f"has a field {format_value(unknown[0])}, which type {kind} does not have")
    for name in ("name", "question"):
        value = given.get(name)
        if not isinstance(value, str) or not value.strip():
            raise refuse(f"must have a {name} that is text, got {format_value(value)}")
        if any(0xD800 <= ord(character) <= 0xDFFF for character in value):
            raise refuse(f"has a {name} with half a surrogate pair, which is not Unicode")
    return Question(given["name"], kind, given["question"].strip(), _options(given, kind, refuse))


def _options(given: Mapping[str, Any], kind: str, refuse: Any) -> tuple[str, ...]:
    if kind == "yes_no":
        return ("yes", "no")
    if kind == "score":
        scale = given.get("scale")
        if not isinstance(scale, list) or [type(each) for each in scale] != [int, int]:
            raise refuse(f"must have a scale of two integers, got {format_value(scale)}")
        low, high = scale
        if not 0 < high - low < MAX_OPTIONS or low < 0:
            raise refuse(
                f"has the scale {low} to {high}: it must go up from 0 or more, and have at most "
                f"{MAX_OPTIONS} values"
            )
        return tuple(map(str, range(low, high + 1)))
    options = given.get("options")
    if not isinstance(options, list) or not 2 <= len(options) <= MAX_OPTIONS:
        raise refuse(f"must have a list of 2 to {MAX_OPTIONS} options, got {format_value(options)}")
    if not all(isinstance(each, str) and each.strip() for each in options):
        raise refuse("has an option that is no text")
    found = tuple(each.strip() for each in options)
    if len({each.casefold() for each in found}) < len(found):
        raise refuse("has an option twice")
    return found


def ask(
    content: Content, question: Question, order: Sequence[int], *, is_chat: bool
) -> str | tuple[Message, ...] | None:
    """Return a prompt; None for a row of token ids, which cannot be asked about.

    The row comes first, so that all questions about it share its computation.

    Args:
        content: The row.
        question: The question.
        order: The options in the order in which they are listed.
        is_chat: Whether the model has a chat template.
    """
    if isinstance(content, TokenIds):
        return None
    listed = ", ".join(question.options[place] for place in order)
    asked = f"{question.text}\nAnswer with exactly one of: {listed}."
    if isinstance(content, str):
        if is_chat:
            return ({"role": "user", "content": f"{content}\n\n{asked}"},)
        return f"Text: {content}\nQuestion: {asked}\nAnswer:"
    *before, last = content
    if last["role"] == "user" and isinstance(last.get("content"), str):
        return (*before, {**last, "content": f"{last['content']}\n\n{asked}"})
    return (*content, {"role": "user", "content": asked})
