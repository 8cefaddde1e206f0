"""Build the language model's prompts: instruction, labels, examples, text.

A chat model gets instruction and text as a user message, after examples as earlier turns; a base
model gets one text with "Text:" and "Label:" before each. The shared part comes first, so that it
is computed once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from packhorse.assess.rows import LabelledRow
from packhorse.data import Message
from packhorse.errors import ConfigError
from packhorse.tokenization import Codec, Refusal

DEFAULT_INSTRUCTION = "Decide which label fits the text."
EXAMPLE_TOKENS = 128
SPARE_TOKENS = 48
"""Reserve for free text and for text that is tokenized differently inside a prompt."""
_CHARACTERS_PER_TOKEN = 16
"""Characters per token before tokenization; prose has no longer tokens."""


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """Prompts for any text.

    Attributes:
        instruction: without the labels.
        names: (label, words the model reads and writes for it).
        examples: (text, label) pairs before each text.
        max_text_tokens: longer texts are truncated.
    """

    instruction: str
    names: tuple[tuple[str, str], ...]
    examples: tuple[tuple[str, str], ...] = ()
    max_text_tokens: int = 1024

    @property
    def whole_instruction(self) -> str:
        listed = ", ".join(words for _, words in self.names)
        return f"{self.instruction}\nAnswer with exactly one of: {listed}."

    def continuations(self, codec: Codec) -> list[str]:
        """Return the answer for each label as it continues a prompt."""
        space = "" if codec.has_chat_template else " "
        return [space + words for _, words in self.names]

    def prompts(self, texts: Sequence[str], codec: Codec) -> list[str | tuple[Message, ...]]:
        """Return one prompt for each text, truncated to `max_text_tokens`."""
        cut = [truncate_text(text, self.max_text_tokens, codec) for text in texts]
        if codec.has_chat_template:
            return [self._chat(text) for text in cut]
        return [self._text(text) for text in cut]

    def _chat(self, text: str) -> tuple[Message, ...]:
        words = dict(self.names)
        turns = [*self.examples, (text, "")]
        turns[0] = (f"{self.whole_instruction}\n\n{turns[0][0]}", turns[0][1])
        messages: list[Message] = []
        for content, label in turns:
            messages.append({"role": "user", "content": content})
            if label:
                messages.append({"role": "assistant", "content": words[label]})
        return tuple(messages)

    def _text(self, text: str) -> str:
        words = dict(self.names)
        shown = [f"Text: {example}\nLabel: {words[label]}" for example, label in self.examples]
        return "\n\n".join([self.whole_instruction, *shown, f"Text: {text}\nLabel:"])


def zero_shot_template(
    instruction: str | None,
    label_names: Sequence[tuple[str, str]],
    classes: Sequence[str],
    max_text_tokens: int,
) -> PromptTemplate:
    """Return the zero-shot prompt; raises ConfigError for an unknown label or two labels of one
    name.
    """
    given = dict(label_names)
    for label in given:
        if label not in classes:
            raise ConfigError(
                f"there is no label {label!r} for --label-name",
                f"the labels are {', '.join(classes[:20])}",
            )
    names = tuple((label, given.get(label, label)) for label in classes)
    if len({words for _, words in names}) < len(names):
        raise ConfigError("two labels have the same name", "give each label a different name")
    return PromptTemplate(instruction or DEFAULT_INSTRUCTION, names, (), max_text_tokens)


def draw_examples(
    rows: Sequence[LabelledRow], per_class: int, codec: Codec, seed: int
) -> tuple[tuple[tuple[str, str], ...], frozenset[int]]:
    """Draw `per_class` training rows of each class, truncated to EXAMPLE_TOKENS.

    Returns:
        The examples with the classes in turn, and the indices of their rows.
    """
    rng = random.Random(seed)  # noqa: S311 - a sample, no secret
    by_class: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_class.setdefault(row.label, []).append(index)
    drawn = {
        label: rng.sample(indices, min(per_class, len(indices)))
        for label, indices in sorted(by_class.items())
    }
    turns = [indices[turn] for turn in range(per_class) for indices in drawn.values()
             if turn < len(indices)]  # fmt: skip
    examples = tuple(
        (truncate_text(rows[index].text, EXAMPLE_TOKENS, codec), rows[index].label)
        for index in turns
    )
    return examples, frozenset(turns)


def fit_to_context(prompting: PromptTemplate, codec: Codec, context: int) -> PromptTemplate:
    """Limit text tokens so that prompt and answer fit into the model's context (tokens).

    Raises:
        ConfigError: instruction and labels alone do not fit.
    """
    longest = max(len(codec.encode_fragment(each)) for each in prompting.continuations(codec))
    room = context - count_prompt_tokens(prompting, codec) - longest - SPARE_TOKENS
    if room < 1:
        raise ConfigError(
            f"instruction and labels fill the model's context of {context:,} tokens",
            "shorten --instruction, or give labels shorter names with --label-name",
        )
    return replace(prompting, max_text_tokens=min(prompting.max_text_tokens, room))


def count_prompt_tokens(prompting: PromptTemplate, codec: Codec) -> int:
    """Return the tokens of a prompt without its text."""
    (prompt,) = prompting.prompts(["."], codec)
    if isinstance(prompt, str):
        return len(codec.encode_texts([prompt])[0])
    (ids,) = codec.encode_chats([prompt])
    if isinstance(ids, Refusal):
        raise ConfigError(f"the model cannot read the prompt: {ids.message}", "try another model")
    return len(ids)


def truncate_text(text: str, tokens: int, codec: Codec) -> str:
    """Return the beginning of a text, at most `tokens` tokens."""
    head = text[: tokens * _CHARACTERS_PER_TOKEN]
    ids = codec.encode_fragment(head)
    if len(ids) <= tokens:
        return head
    return codec.decode(ids[:tokens]).rstrip("\N{REPLACEMENT CHARACTER}")
