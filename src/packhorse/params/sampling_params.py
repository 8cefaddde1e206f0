"""How rows are decoded: the sampling parameters of jobs, rows and requests.

A field that has a command-line option describes it in its metadata, as `packhorse.config` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from hashlib import blake2b
from typing import Any

from packhorse.params.structured_output import StructuredOutput


def token_bias(text: str) -> tuple[int, float]:
    """Return the token id and the bias of `ID=BIAS`.

    Raises:
        ValueError: For any other text.
    """
    token, _, bias = text.partition("=")
    return int(token), float(bias)


def token_id_list(text: str) -> tuple[int, ...]:
    """Return the token ids of a list with commas between them; raise ValueError for others."""
    return tuple(int(each) for each in text.split(",") if each.strip())


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one row is decoded, by the definitions of vLLM and OpenAI (docs/sampling.md).

    Lists become tuples and a mapping `logit_bias` sorted pairs, so that equal parameters compare
    equal; top_k -1 becomes 0 and seed -1 becomes None.

    Attributes:
        max_new_tokens: Maximum number of generated tokens; 0 only reads the prompt.
        temperature: 0 is greedy; otherwise logits are divided by it before the softmax.
        top_p: Nucleus sampling: the smallest set of tokens whose probability reaches it, in [0, 1];
            0 is the most probable token alone.
        top_k: Sample among the k most probable tokens; 0 is no limit.
        seed: Makes sampling repeatable; None draws differently each time.
        stop: Generation ends before the first of these strings, which is not part of the text.
        top_log_probs: Return the log-probability of each token and of this many of the most
            probable tokens in its place; None returns none. See TokenLogProbs.
        n: Number of completions. The first has `seed`, others seeds derived from it.
        min_p: Sample among tokens with at least this share of the largest probability, in [0, 1].
        presence_penalty: Subtracted from the logits of tokens that were generated before.
        frequency_penalty: The same, once per time that a token was generated.
        repetition_penalty: Divides the positive and multiplies the other logits of tokens that
            the prompt holds or that were generated before, above 0.
        logit_bias: Pairs of a token id and what is added to its logit.
        bad_words: Texts that are not generated, with or without a space before them.
        suppress_tokens: Token ids that are not generated.
        min_tokens: End tokens, `stop_token_ids` and `stop` count only after so many tokens.
        ignore_eos: The model's end tokens do not end the row.
        stop_token_ids: Further token ids that end a row; as end tokens, they are not kept.
        echo: The text begins with the prompt's (prompts that are text only).
        prompt_log_probs: As `top_log_probs`, for the tokens of the prompt.
        structured_outputs: What the answer must match; it then ends as soon as it does.
        bad_word_ids: Token ids of `bad_words`, which the tokenizer adds (`with_bad_word_ids`).
    """

    max_new_tokens: int = field(default=256, metadata={"help": "generate at most N tokens per row"})
    temperature: float = field(
        default=0.0, metadata={"metavar": "T", "help": "sampling temperature; 0 is greedy"}
    )
    top_p: float = field(
        default=1.0,
        metadata={
            "metavar": "P",
            "help": "sample from the smallest set of tokens whose probability reaches P",
        },
    )
    top_k: int = field(
        default=0,
        metadata={"metavar": "K", "help": "sample from the K most probable tokens; 0 is no limit"},
    )
    seed: int | None = field(default=None, metadata={"help": "make sampling repeatable"})
    stop: tuple[str, ...] = field(
        default=(), metadata={"repeatable": True, "help": "end a row before this text; repeatable"}
    )
    top_log_probs: int | None = None
    n: int = field(default=1, metadata={"help": "completions per row"})
    min_p: float = field(
        default=0.0,
        metadata={
            "metavar": "P",
            "help": "sample from tokens with at least P times the largest probability",
        },
    )
    presence_penalty: float = field(
        default=0.0,
        metadata={"metavar": "X", "help": "subtract X from the logits of generated tokens"},
    )
    frequency_penalty: float = field(
        default=0.0,
        metadata={
            "metavar": "X",
            "help": "subtract X from the logit of a token once per time that it was generated",
        },
    )
    repetition_penalty: float = field(
        default=1.0,
        metadata={
            "metavar": "X",
            "help": "divide positive logits of tokens of the prompt and of generated ones by X, "
            "multiply negative ones",
        },
    )
    logit_bias: tuple[tuple[int, float], ...] = field(
        default=(),
        metadata={
            "metavar": "ID=BIAS",
            "repeatable": True,
            "type": token_bias,
            "help": "add BIAS to the logit of the token ID; repeatable",
        },
    )
    bad_words: tuple[str, ...] = field(
        default=(), metadata={"repeatable": True, "help": "never generate this text; repeatable"}
    )
    suppress_tokens: tuple[int, ...] = field(
        default=(),
        metadata={
            "metavar": "IDS",
            "type": token_id_list,
            "help": "never generate these tokens: ids with commas between them",
        },
    )
    min_tokens: int = field(default=0, metadata={"help": "let a row end only after N tokens"})
    ignore_eos: bool = field(
        default=False, metadata={"help": "do not end a row at the model's end tokens"}
    )
    stop_token_ids: tuple[int, ...] = field(
        default=(),
        metadata={
            "metavar": "IDS",
            "type": token_id_list,
            "help": "also end a row at these tokens: ids with commas between them",
        },
    )
    echo: bool = field(
        default=False, metadata={"help": "begin each text with its prompt; not for messages"}
    )
    prompt_log_probs: int | None = field(
        default=None,
        metadata={
            "flags": ("--prompt-logprobs",),
            "help": "write the log-probabilities of the prompt's tokens, and of the N most "
            "probable tokens in each place",
        },
    )
    structured_outputs: StructuredOutput | None = None
    bad_word_ids: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        changes: dict[str, Any] = {
            name: tuple(value)
            for name in ("stop", "bad_words", "suppress_tokens", "stop_token_ids")
            if not isinstance(value := getattr(self, name), (tuple, str))
        }
        if self.logit_bias:
            pairs = self.logit_bias
            items = pairs.items() if isinstance(pairs, Mapping) else pairs
            changes["logit_bias"] = tuple(sorted((int(token), float(x)) for token, x in items))
        elif self.logit_bias != ():
            changes["logit_bias"] = ()
        if self.bad_word_ids:
            changes["bad_word_ids"] = tuple(map(tuple, self.bad_word_ids))
        elif self.bad_word_ids != ():
            changes["bad_word_ids"] = ()
        structured: Any = self.structured_outputs
        if isinstance(structured, Mapping):  # from JSON
            changes["structured_outputs"] = StructuredOutput(**structured)
        if self.top_k == -1:
            changes["top_k"] = 0
        if self.seed == -1:
            changes["seed"] = None
        for name, value in changes.items():
            object.__setattr__(self, name, value)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken, as with top_k 1."""
        return self.temperature == 0.0 or self.top_k == 1 or self.top_p == 0.0

    @property
    def changes_logits(self) -> bool:
        """Whether logits are changed before a token is chosen (`engines.common.logits`)."""
        return bool(self.structured_outputs) or self._has_other_changes

    @property
    def is_masked_greedy(self) -> bool:
        """Whether the most probable token that `structured_outputs` allows is always taken."""
        return self.greedy and bool(self.structured_outputs) and not self._has_other_changes

    @property
    def _has_other_changes(self) -> bool:
        return bool(
            self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1.0
            or self.logit_bias
            or self.bad_words
            or self.suppress_tokens
            or self.min_tokens
        )

    @property
    def engine_fields(self) -> tuple[str, ...]:
        """Names of the set fields that not every engine supports (`ENGINE_FIELDS`)."""
        return tuple(
            name for name in ENGINE_FIELDS if getattr(self, name) != _SAMPLING_DEFAULTS[name]
        )


ENGINE_FIELDS = (
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "bad_words",
    "suppress_tokens",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "prompt_log_probs",
    "structured_outputs",
)
"""Fields of SamplingParams that an engine supports if its `EngineEntry.sampling_fields` says so."""
_SAMPLING_DEFAULTS = {each.name: each.default for each in fields(SamplingParams)}


def single_choice(decoding: SamplingParams, choice: int) -> SamplingParams:
    """Return the parameters of one of `n` choices; the first has the seed itself."""
    if decoding.n == 1:
        return decoding
    seed = decoding.seed
    if seed is not None and choice:
        seed = derived_seed(seed, str(choice))
    return replace(decoding, n=1, seed=seed)


def derived_seed(seed: int, name: str) -> int:
    """Return a 63-bit seed that depends only on `seed` and `name`."""
    digest = blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
