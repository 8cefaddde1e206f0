"""Hugging Face checkpoints of the Llama family in the formats that other engines read.

`write_q8` writes GGUF in q8_0 (llama.cpp, OpenVINO GenAI), `write_w8a8` a compressed-tensors
folder (vLLM): int8 weights with one scale per output, int8 activations with one scale per token.
Both round to the nearest value, hold one shard at most, and need only numpy and safetensors (GGUF:
gguf), so that they run in the interpreter of the engine.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)


def read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def read_tensors(file: Path) -> Iterator[tuple[str, Array]]:
    """Yield the tensors of a safetensors file one by one, in float32."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        offset = 8 + size + start
        stored = np.fromfile(file, dtype, (end - start) // dtype.itemsize, offset=offset)
        if entry["dtype"] == "BF16":
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        yield name, stored.astype(np.float32, copy=False).reshape(entry["shape"])


def write_w8a8(folder: Path, target: Path) -> None:
    """Write a compressed-tensors folder in which all matrices of the layers are int8.

    Embeddings, head and norms are not quantized, as in the W8A8 checkpoints that vLLM's project
    publishes.
    """
    from safetensors.numpy import save_file

    target.mkdir(parents=True)
    for file in sorted(folder.glob("*.safetensors")):
        tensors: dict[str, Array] = {}
        for name, weights in read_tensors(file):
            if weights.ndim == 1 or not name.startswith("model.layers."):
                tensors[name] = weights
                continue
            scales = np.abs(weights).max(axis=1, keepdims=True) / 127
            tensors[name] = np.rint(weights / scales).astype(np.int8)
            tensors[f"{name}_scale"] = scales
        save_file(tensors, target / file.name, metadata={"format": "pt"})
    for name in _COPIED:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    config = {**read_config(folder), "quantization_config": _describe_w8a8()}
    (target / "config.json").write_text(json.dumps(config, indent=2))


def _describe_w8a8() -> dict[str, Any]:
    shared = {"num_bits": 8, "type": "int", "symmetric": True}
    weights = {**shared, "strategy": "channel", "dynamic": False}
    inputs = {**shared, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {**group, "output_activations": None}},
        "ignore": ["lm_head"],
    }


def write_q8(folder: Path, file: Path) -> None:
    """Write a GGUF file: matrices in q8_0 (blocks of 32 numbers with a scale), norms in float32."""
    import gguf

    config = read_config(folder)
    writer = gguf.GGUFWriter(file, "llama")
    _describe_gguf(writer, config)
    _add_gguf_tokenizer(writer, folder, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    kind = gguf.GGMLQuantizationType.Q8_0

    def tensors() -> Iterator[tuple[str, Array]]:
        for source in sorted(folder.glob("*.safetensors")):
            for name, weights in read_tensors(source):
                if name != "lm_head.weight" or not config["tie_word_embeddings"]:
                    yield name, weights

    for name, weights in tensors():
        stored = f"{names.get_name(name.removesuffix('.weight'))}.weight"
        if weights.ndim == 1:
            writer.add_tensor_info(stored, weights.shape, weights.dtype, weights.nbytes)
            continue
        shape = gguf.quant_shape_to_byte_shape(weights.shape, kind)
        size = int(np.prod(shape))
        writer.add_tensor_info(stored, shape, np.dtype(np.uint8), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, weights in tensors():
        if weights.ndim > 1:
            weights = gguf.quants.quantize(_interleave_rotary(name, weights, config), kind)
        writer.write_tensor_data(weights)
    writer.close()


def _describe_gguf(writer: Any, config: dict[str, Any]) -> None:
    import gguf

    writer.add_name("benchmark")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])


def _add_gguf_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    import gguf

    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    tokens += [f"<|unused_{number}|>" for number in range(len(tokens), config["vocab_size"])]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [kinds.CONTROL if token.startswith("<|") else kinds.NORMAL for token in tokens]
    )
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(model["vocab"]["<|im_end|>"])
    writer.add_unk_token_id(0)
    writer.add_chat_template((folder / "chat_template.jinja").read_text())


def _interleave_rotary(name: str, weights: Array, config: dict[str, Any]) -> Array:
    """Reorder queries and keys: llama.cpp rotates neighbouring numbers, transformers halves."""
    for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
        if part in name:
            halves = weights.reshape(config[heads], 2, -1, weights.shape[1])
            return halves.swapaxes(1, 2).reshape(weights.shape)
    return weights
