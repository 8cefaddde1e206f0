"""Small random models of `decoder_families`, rows for them, and what `generate` makes of those.

One token of the tokenizer is one printable ASCII character, so that texts have exact lengths, a
generated text tells its tokens, and byte-level tokenizers, which transformers puts in place of
others for some families, change nothing.
"""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoder_families import COMMON, CONTEXT, TRAINED, VOCABULARY, WINDOW, Family

NEW_TOKENS = 10
END, BEGIN, UNKNOWN, PADDING = "<end>", "<begin>", "<unknown>", "<padding>"
SHARED_LENGTHS = (20, 44)
"""Tokens that several prompts begin with: more than a window, and more than the trained length."""
PROMPT_LENGTHS = (
    1, 2, 5, WINDOW - 1, WINDOW, WINDOW + 1, TRAINED - NEW_TOKENS // 2, TRAINED - 1, TRAINED,
    3 * WINDOW, 3 * TRAINED,
)  # fmt: skip
TAILS = (1, 4, 30)
"""Tokens of the prompts that have a common beginning, after it."""
TIE = 1e-4
"""Two logits this near may be taken one for the other: float32 does not decide between them."""
_KEPT = ("A_log", "D", "dt_bias", "time_decay", "time_first", "time_maa")
"""Parameters of recurrences, whose own initialization keeps them stable."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What `generate` makes of one prompt. logits: [tokens, vocabulary], the choices of each."""

    token_ids: tuple[int, ...]
    logits: NDArray[np.float32]


def character(token_id: int) -> str:
    """The text of a token."""
    return chr(ord("!") + token_id)


def prompts() -> list[str]:
    """Rows of very different length, two groups of them with a common beginning."""
    chance = random.Random(7)

    def text(length: int) -> str:
        return "".join(character(chance.randrange(4, VOCABULARY)) for _ in range(length))

    single = [text(length) for length in PROMPT_LENGTHS]
    for length in SHARED_LENGTHS:
        beginning = text(length)
        single += [beginning + text(tail) for tail in TAILS]
    chance.shuffle(single)
    return single


def save_tokenizer(folder: Path, *, tokens_named: bool) -> None:
    """Write a tokenizer of `VOCABULARY` single characters; id 0 ends a text.

    tokens_named: ids 1 to 3 are named as tokens for beginning, unknown and padding; otherwise the
    tokenizer names no token but the end.
    """
    from tokenizers import Tokenizer, decoders, models

    named = [END, BEGIN, UNKNOWN, PADDING] if tokens_named else [END]
    tokens = named + [character(token_id) for token_id in range(len(named), VOCABULARY)]
    unknown = UNKNOWN if tokens_named else None
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=unknown))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(named)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "clean_up_tokenization_spaces": False,
    }
    if tokens_named:
        config |= {"bos_token": BEGIN, "unk_token": UNKNOWN, "pad_token": PADDING}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def build(family: Family, folder: Path) -> None:
    """Write a model of `family` with sharpened weights, and its tokenizer, into `folder`."""
    import torch
    import transformers

    default = transformers.AutoConfig.for_model(family.model_type)
    common = {name: value for name, value in COMMON.items() if hasattr(default, name)}
    facts: dict[str, Any] = {
        "vocab_size": VOCABULARY + family.unused_ids,
        "bos_token_id": 1 if family.tokens_named else None,
        "eos_token_id": 0,
        "pad_token_id": 3 if family.tokens_named else None,
        "tie_word_embeddings": False,
    }
    settings = {**facts, **common, **family.settings}
    config = transformers.AutoConfig.for_model(family.model_type, **settings)
    decoder = not config.is_encoder_decoder
    builder: Any = (
        transformers.AutoModelForCausalLM if decoder else transformers.AutoModelForSeq2SeqLM
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = builder.from_config(config, dtype=torch.float32)
    sharpen(model)
    if decoder:
        model.generation_config.eos_token_id = 0
        model.generation_config.pad_token_id = facts["pad_token_id"]
    model.to(getattr(torch, family.stored_as)).save_pretrained(folder)
    save_tokenizer(folder, tokens_named=family.tokens_named)


def sharpen(model: Any, seed: int = 0) -> None:
    """Draw all weights anew, so that attention, positions, norms and biases decide tokens.

    As transformers initializes a model, its residual stream is little but the last token's
    embedding: a model with tied embeddings then repeats that token whatever its attention does.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)
    }
    correction = [
        (name, tensor) for name, tensor in model.named_buffers() if "correction_bias" in name
    ]
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *correction]:
            leaf = name.rsplit(".", 1)[-1]
            if not weight.is_floating_point() or leaf.startswith(_KEPT):
                continue
            noise = torch.randn(weight.shape, generator=generator)
            if id(weight) in embeddings:
                weight.copy_(0.6 * noise)
            elif weight.dim() > 1:
                inputs = min(weight.shape[-2:]) if weight.dim() > 2 else weight.shape[-1]
                weight.copy_(1.3 * noise / max(inputs, 4) ** 0.5)
            elif leaf == "weight" or "norm" in name:
                weight.add_(0.25 * noise)
            else:
                weight.add_(0.2 * noise)


class Judge:
    """A model as transformers' own `generate` runs it: greedy, a row at a time, in float32."""

    def __init__(self, folder: Path, *, cached: bool = True) -> None:
        import torch
        import transformers

        builder: Any = transformers.AutoModelForCausalLM
        self._model = builder.from_pretrained(folder, dtype=torch.float32).eval()
        self._cached = cached

    def expected(self, token_ids: list[int], new_tokens: int = NEW_TOKENS) -> Expected:
        """What `generate` makes of a prompt, the end token included."""
        import torch

        ids = torch.tensor([token_ids])
        model = copy.deepcopy(self._model)  # some keep what they computed for the rows before
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            use_cache=self._cached,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        logits = torch.cat([step.float() for step in made.logits]).numpy()
        return Expected(tuple(made.sequences[0, len(token_ids) :].tolist()), logits)


def token_ids_of(folder: Path, texts: list[str]) -> list[list[int]]:
    """Texts by the folder's own tokenizer, which must take them a character a token."""
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    found = [list(tokenizer(text)["input_ids"]) for text in texts]
    wanted = [[ord(letter) - ord(character(0)) for letter in text] for text in texts]
    assert found == wanted, "the tokenizer of this family changes texts"
    return found


def text_of(token_ids: tuple[int, ...], *, tokens_named: bool) -> str:
    """The text of generated tokens: special ones, and ids without a token, have none."""
    first = 4 if tokens_named else 1
    return "".join(character(token) for token in token_ids if first <= token < VOCABULARY)


assert max(PROMPT_LENGTHS) + NEW_TOKENS < CONTEXT
