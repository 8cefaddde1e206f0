"""Write a Llama checkpoint with random weights, for benchmarks of speed and memory.

    python benchmarks/random_model.py {0.5B,1B,3B,8B} FOLDER [--dtype bfloat16]
        [--tokenizer smollm2-135m-instruct] [--vocabulary N] [--seed 0]

The shapes are those of Llama 3.2 1B and 3B and of Llama 3.1 8B; 0.5B is a shape between
SmolLM2-360M and Llama 3.2 1B. Tokenizer and chat template are those of --tokenizer, and the
vocabulary is as wide as that tokenizer (49,152 for the demonstration model), which makes 0.49,
1.07, 2.97 and 7.38 billion parameters. `--vocabulary 128256` pads it to that of Llama 3.

No file of the checkpoint names an end token, so that a row ends only at its maximum length. The
answers are meaningless. Logits are finite and vary from token to token: matrices keep the variance
of their input, those that write to the residual stream are scaled by 1 / sqrt(2 layers).

One shard per layer; at most one layer and the embeddings are in memory.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
END_KEYS = ("eos_token_id", "eos_token", "pad_token_id", "pad_token")
Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """Sizes of a Llama model; `head` is the number of dimensions of an attention head."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    tied: bool = True


SHAPES = {
    "0.5B": LlamaShape(28, 1024, 4096, 16, 8, 64),
    "1B": LlamaShape(16, 2048, 8192, 32, 8, 64),
    "3B": LlamaShape(28, 3072, 8192, 24, 8, 128),
    "8B": LlamaShape(32, 4096, 14336, 32, 8, 128, tied=False),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("size", choices=list(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--tokenizer", default="smollm2-135m-instruct", metavar="MODEL")
    parser.add_argument("--vocabulary", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def copy_without_end(source: Path, folder: Path) -> None:
    """Copy the tokenizer, and the configuration files if there are any, without end tokens."""
    for name in (*TOKENIZER_FILES, "config.json", "generation_config.json"):
        if not (source / name).is_file():
            continue
        if "config" not in name:
            shutil.copyfile(source / name, folder / name)
            continue
        settings = json.loads((source / name).read_text())
        for key in END_KEYS:
            settings.pop(key, None)
        if name == "config.json":
            settings["eos_token_id"] = None  # else transformers assumes Llama's default, 2
        (folder / name).write_text(json.dumps(settings, indent=2))


def config(shape: LlamaShape, vocabulary: int, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "dtype": dtype,
        "bos_token_id": 1,
        "eos_token_id": None,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
        "tie_word_embeddings": shape.tied,
        "vocab_size": vocabulary,
    }


def layer_matrices(shape: LlamaShape) -> dict[str, Shape]:
    """Return the shapes (outputs, inputs) of the matrices of one layer."""
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    return {
        "self_attn.q_proj": (queries, shape.hidden),
        "self_attn.k_proj": (keys, shape.hidden),
        "self_attn.v_proj": (keys, shape.hidden),
        "self_attn.o_proj": (shape.hidden, queries),
        "mlp.gate_proj": (shape.inner, shape.hidden),
        "mlp.up_proj": (shape.inner, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.inner),
    }


def shards(
    shape: LlamaShape, vocabulary: int, dtype: torch.dtype, seed: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the tensors of one shard after the other: embeddings, layers, norm and head."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(outputs: int, inputs: int, scale: float = 1.0) -> torch.Tensor:
        drawn = torch.empty(outputs, inputs, dtype=dtype)
        return drawn.normal_(0.0, scale / math.sqrt(inputs), generator=generator)

    yield {"model.embed_tokens.weight": matrix(vocabulary, shape.hidden)}
    residual = 1 / math.sqrt(2 * shape.layers)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        tensors = {
            f"{prefix}.{name}.weight": matrix(
                *sizes, scale=residual if name.endswith(("o_proj", "down_proj")) else 1.0
            )
            for name, sizes in layer_matrices(shape).items()
        }
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = torch.ones(shape.hidden, dtype=dtype)
        yield tensors
    last = {"model.norm.weight": torch.ones(shape.hidden, dtype=dtype)}
    if not shape.tied:
        last["lm_head.weight"] = matrix(vocabulary, shape.hidden)
    yield last


def write(folder: Path, parts: Iterator[dict[str, torch.Tensor]], count: int) -> int:
    """Write the shards and their index; return the number of parameters."""
    places: dict[str, str] = {}
    parameters = size = 0
    for number, tensors in enumerate(parts, start=1):
        name = f"model-{number:05}-of-{count:05}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
        parameters += sum(each.numel() for each in tensors.values())
        size += sum(each.nbytes for each in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return parameters


def main() -> None:
    from packhorse.models import model_facts, prepare

    options = arguments()
    shape = SHAPES[options.size]
    prepared = prepare(options.tokenizer, engine="transformers")
    vocabulary = options.vocabulary or model_facts(prepared).vocab_size
    options.folder.mkdir(parents=True, exist_ok=False)
    copy_without_end(prepared.tokenizer_folder, options.folder)
    described = config(shape, vocabulary, options.dtype)
    (options.folder / "config.json").write_text(json.dumps(described, indent=2))
    generation = {"bos_token_id": 1, "do_sample": False}
    (options.folder / "generation_config.json").write_text(json.dumps(generation, indent=2))
    parts = shards(shape, vocabulary, getattr(torch, options.dtype), options.seed)
    parameters = write(options.folder, parts, shape.layers + 2)
    print(
        f"{options.folder}: {parameters / 1e9:.2f} billion parameters in {options.dtype}, "
        f"a vocabulary of {vocabulary:,}"
    )


if __name__ == "__main__":
    main()
