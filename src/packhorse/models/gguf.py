"""Convert a GGUF file to a Hugging Face folder: dequantize weights to float32, keep tokenizer and
chat template.

transformers does the conversion. Added here is what it leaves out or mistakes: end-of-turn tokens,
the tokens that begin and end a text, and the pre-tokenizer of some byte-level BPE vocabularies,
without which token boundaries move.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packhorse.errors import model_errors
from packhorse.models.checkpoint import require_all_weights
from packhorse.models.gguf_checks import read_field, require_language_model
from packhorse.models.gguf_header import read_header
from packhorse.models.loading import require_fitting_config
from packhorse.models.prepared import Report
from packhorse.models.quiet import quiet_transformers
from packhorse.models.storage import require_free_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONVERSION = "gguf-2"
"""Version of the conversion; changes if the same GGUF file would give another folder."""

END_OF_TURN = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>", "<|eom_id|>"}
)
_BYTE_LEVEL_BPE = "gpt2"
_SPLIT_EACH_DIGIT = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})
_PLAIN_SPLIT = frozenset({"gpt-2", "default", "phi-2", "mpt", "olmo", "jais", "dolly"})


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """Metadata of a GGUF file.

    Attributes:
        architecture: `general.architecture`.
        parameters: Number of weights.
        context_length: Context length (tokens), None if not given.
        vocabulary_kind: `tokenizer.ggml.model`.
        split_kind: `tokenizer.ggml.pre`, the pre-tokenizer.
        tokens: Vocabulary by token id.
        end_ids: Token ids that end a text or a turn.
        chat_template: Chat template, "" if not given.
        special_tokens: The `bos_token` and `eos_token` by their attribute of a tokenizer, those
            that the file gives.
    """

    architecture: str
    parameters: int
    context_length: int | None
    vocabulary_kind: str
    split_kind: str
    tokens: Sequence[str]
    end_ids: tuple[int, ...]
    chat_template: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)


def convert_gguf(file: Path, folder: Path, scratch: Path, report: Report) -> None:
    """Write a GGUF file as a float32 Hugging Face folder.

    transformers would also read a config or tokenizer beside the file, so it gets the file alone,
    linked in `scratch`.

    Args:
        file: The GGUF file.
        folder: An empty folder.
        scratch: Scratch space.
        report: Receives progress lines.

    Raises:
        ModelError: The file is invalid, or transformers cannot read its architecture.
    """
    facts = read_facts(file)
    report(f"unpacking {file.name} ({facts.parameters / 1e6:,.0f} M weights) to float32")
    require_free_bytes(folder, 4 * facts.parameters)
    _report_unknown_split(facts, report)
    alone = _link_file(file, scratch)
    what = f"transformers cannot use {file.name} ({facts.architecture})"
    hint = "give the model's Hugging Face folder instead"
    with model_errors(what, hint), quiet_transformers():
        tokenizer = _load_tokenizer(alone, facts)
        model = _load_model(alone, facts)
        _set_token_ids(model, tokenizer, facts)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def read_facts(file: Path) -> GgufFacts:
    """Return the metadata of a GGUF file.

    Raises:
        ModelError: The file is truncated or damaged, is not a language model, or describes sizes
            that its tensors cannot have.
    """
    header = read_header(file)
    require_language_model(file, header)

    def value(name: str, kind: Any, otherwise: Any) -> Any:
        return read_field(file, header, name, kind, otherwise)

    def token_id(name: str) -> Any:
        return value(f"tokenizer.ggml.{name}_token_id", int, None)

    architecture = value("general.architecture", str, "")
    tokens = value("tokenizer.ggml.tokens", list[str], [])
    edges = {f"{name}_token": token_id(name) for name in ("bos", "eos")}
    ends = [token_id(name) for name in ("eos", "eot", "eom")]
    return GgufFacts(
        architecture=architecture,
        parameters=sum(tensor.elements for tensor in header.tensors.values()),
        context_length=value(f"{architecture}.context_length", int, None),
        vocabulary_kind=value("tokenizer.ggml.model", str, ""),
        split_kind=value("tokenizer.ggml.pre", str, "default"),
        tokens=tokens,
        end_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
        chat_template=value("tokenizer.chat_template", str, ""),
        special_tokens={
            name: tokens[index]
            for name, index in edges.items()
            if index is not None and 0 <= index < len(tokens)
        },
    )


def end_token_ids(facts: GgufFacts) -> list[int]:
    """Return the ids that end a text: the file's own, and end-of-turn tokens of its template."""
    ends = END_OF_TURN
    if "<|return|>" in facts.chat_template:
        ends -= {"<|end|>"}  # in such templates it ends the reasoning, and the answer follows
    written = [
        index
        for index, token in enumerate(facts.tokens)
        if token in ends and token in facts.chat_template
    ]
    return list(dict.fromkeys([*facts.end_ids, *written]))


def _link_file(file: Path, scratch: Path) -> Path:
    folder = scratch / "gguf"
    folder.mkdir()
    link = folder / "model.gguf"
    try:
        link.symlink_to(file.resolve())
    except OSError:  # not every file system has links
        shutil.copyfile(file, link)
    return link


def _load_tokenizer(file: Path, facts: GgufFacts) -> PreTrainedTokenizerBase:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    if facts.vocabulary_kind == _BYTE_LEVEL_BPE and facts.split_kind in _SPLIT_EACH_DIGIT:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    for name, token in facts.special_tokens.items():
        setattr(tokenizer, name, token)  # transformers 5.8 takes bos for eos and the reverse
    if facts.context_length:
        tokenizer.model_max_length = int(facts.context_length)
    return tokenizer


def _load_model(file: Path, facts: GgufFacts) -> Any:
    import torch
    import transformers

    options: dict[str, Any] = {"gguf_file": file.name, "dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):  # 5.2x keeps weights packed where it has kernels
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    config = transformers.AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    require_fitting_config(config, facts.parameters, file.name)
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, output_loading_info=True, **options
    )
    model, loading = loaded
    require_all_weights(loading)
    # save_pretrained refuses what it takes for a quantized model; these weights are unpacked.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    return model


def _set_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase, facts: GgufFacts) -> None:
    ends = end_token_ids(facts)
    generation = model.generation_config
    if ends:
        generation.eos_token_id = ends if len(ends) > 1 else ends[0]
    if generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id


def _report_unknown_split(facts: GgufFacts, report: Report) -> None:
    if facts.vocabulary_kind != _BYTE_LEVEL_BPE:
        return
    try:
        from transformers.integrations.gguf import gguf_tokenizer_mapping as mapping

        known = set(mapping.GGUF_PRE_TOKENIZER_SPLITS)
    except (ImportError, AttributeError):  # older and newer transformers keep it elsewhere
        known = set()
    if facts.split_kind not in known | _SPLIT_EACH_DIGIT | _PLAIN_SPLIT:
        report(
            f"the pre-tokenizer {facts.split_kind!r} of this GGUF file is not known: "
            "some texts may be split into other tokens than those the model was trained with"
        )
