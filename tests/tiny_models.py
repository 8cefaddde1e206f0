"""Hugging Face folders of a few hundred kB with random weights, built in a second, always the same.

    tiny_llama(folder)   rotary positions, grouped key/value heads, chat template, three specials
    tiny_gpt2(folder)    learned absolute positions, no chat template, one special
    tiny_gptj(folder)    the same tokenizer, a family that is not folded for int8
    tiny_gguf(folder)    a tiny_llama folder as a float32 GGUF file, as llama.cpp would write it

Weights are large enough that greedy output differs between prompts and does not loop on one token.
Both take up to 256 tokens of context and have a byte-level BPE vocabulary of 300 ids.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCAB_SIZE = 300
MAX_CONTEXT = 256
ENDOFTEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CORPUS = (
    "The packhorse carries many small loads over the hills, one after the other, and none is lost.",
    "Summarise the following text in one sentence. Answer the question. Translate into German.",
    "What is the capital of France? What is the largest planet? Who wrote this, and when?",
    "user assistant system",
)


def tiny_tokenizer(folder: Path, specials: tuple[str, ...]) -> None:
    """Write tokenizer.json and tokenizer_config.json: `specials` get the ids from 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    tokenizer.save(str(folder / "tokenizer.json"))
    chat = IM_END in specials
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_CONTEXT,
        "bos_token": IM_START if chat else ENDOFTEXT,
        "eos_token": IM_END if chat else ENDOFTEXT,
        "unk_token": ENDOFTEXT,
        "pad_token": ENDOFTEXT,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    if chat:
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def tiny_llama(folder: Path, *, seed: int = 0, tied: bool = False, layers: int = 2) -> Path:
    """A llama with 4 heads and 2 key/value heads; ids 0, 1, 2 are endoftext, im_start, im_end."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_CONTEXT,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    folder.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer(folder, (ENDOFTEXT, IM_START, IM_END))
    with torch.random.fork_rng():
        _save(LlamaForCausalLM(config), folder, seed)
    return folder


def tiny_gpt2(folder: Path, *, seed: int = 0, layers: int = 2) -> Path:
    """A GPT-2 with 4 heads; id 0 is endoftext, which begins and ends every text."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=64,
        n_layer=layers,
        n_head=4,
        n_positions=MAX_CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    folder.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer(folder, (ENDOFTEXT,))
    with torch.random.fork_rng():
        _save(GPT2LMHeadModel(config), folder, seed)
    return folder


def tiny_gptj(folder: Path) -> Path:
    """A GPT-J with 4 heads; id 0 is endoftext, which begins and ends every text."""
    import torch
    from transformers import GPTJConfig, GPTJForCausalLM

    config = GPTJConfig(
        vocab_size=VOCAB_SIZE,
        n_embd=64,
        n_layer=2,
        n_head=4,
        rotary_dim=8,
        n_positions=MAX_CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
    )
    folder.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer(folder, (ENDOFTEXT,))
    with torch.random.fork_rng():
        _save(GPTJForCausalLM(config), folder, 0)
    return folder


def with_outlier(folder: Path) -> Path:
    """Makes the second layer of a tiny_llama read a channel a hundred times larger than the others;
    what it computes stays the same."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    layer = "model.layers.1."
    weights[layer + "post_attention_layernorm.weight"][7] *= 100
    weights[layer + "mlp.gate_proj.weight"][:, 7] /= 100
    weights[layer + "mlp.up_proj.weight"][:, 7] /= 100
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tiny_gguf(folder: Path, weights_as: str = "F32", **fields: int | str) -> Path:
    """Write `model.gguf` into a folder made by `tiny_llama` and return it.

    weights_as: the GGUF type of matrices, e.g. "Q8_0"; vectors are always F32.
    fields: further metadata, e.g. `eot_token_id=2` or `pre="smollm"` below `tokenizer.ggml`.
    """
    import gguf
    from safetensors.numpy import load_file

    file = folder / "model.gguf"
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(MAX_CONTEXT)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(VOCAB_SIZE)
    writer.add_tokenizer_model("gpt2")
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__)
    writer.add_token_list(tokens)
    kinds = gguf.TokenType
    writer.add_token_types(
        [kinds.CONTROL if token.startswith("<|") else kinds.NORMAL for token in tokens]
    )
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, value in fields.items():
        if isinstance(value, int):
            writer.add_uint32(f"tokenizer.ggml.{name}", value)
        else:
            writer.add_string(f"tokenizer.ggml.{name}", value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, weights in load_file(folder / "model.safetensors").items():
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        rotated = [config[count] for part, count in heads.items() if part in name]
        for number in rotated:  # llama.cpp pairs neighbouring dimensions, transformers halves
            halves = weights.reshape(number, 2, -1, weights.shape[1])
            weights = halves.swapaxes(1, 2).reshape(weights.shape)
        kind = gguf.GGMLQuantizationType[weights_as if weights.ndim == 2 else "F32"]
        stored = gguf.quants.quantize(weights, kind)
        writer.add_tensor(names.get_name(name, (".weight",)) or name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _save(model: Any, folder: Path, seed: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() == 2:
                std = 1.0 if "emb" in name or "wte" in name or "wpe" in name else 0.25
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
            elif "bias" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.eval()
    model.save_pretrained(folder)
