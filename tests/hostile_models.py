"""Model folders that lie: changes of a tiny Llama after which no engine may load it.

CASES: name -> (change, what the message must say). A change gets the folder and edits its files.
Each is refused with exit code 2 and one line; none runs code, hangs or takes much memory.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], None]
MARKER = "code-was-run"


class Evil:
    """Unpickling it writes a file beside the model."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def config(**changes: Any) -> Change:
    """Change values of config.json."""
    return edited("config.json", lambda document: {**document, **changes})


def edited(name: str, change: Callable[[Any], Any]) -> Change:
    """Change a JSON file."""

    def apply(folder: Path) -> None:
        path = folder / name
        document = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(change(document)))

    return apply


def written(name: str, data: bytes) -> Change:
    """Write a file."""
    return lambda folder: [None for _ in [(folder / name).write_bytes(data)]].clear()


def header(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Change the header of model.safetensors; its data stays."""

    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        found = json.loads(content[8 : 8 + length])
        changed = change(found)
        text = changed if isinstance(changed, bytes) else json.dumps(changed or found).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return apply


def tensor(**changes: Any) -> Change:
    """Change the first tensor's entry in the header of model.safetensors."""

    def apply(found: dict[str, Any]) -> None:
        name = next(name for name in found if name != "__metadata__")
        found[name] |= changes

    return header(apply)


def index(document: Any) -> Change:
    """Put an index in the place of the weights."""

    def apply(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(document))

    return apply


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(folder / MARKER)))


def with_code(folder: Path) -> None:
    code = f"from pathlib import Path\nPath({str(folder / MARKER)!r}).touch()\n"
    for name in ("modeling.py", "configuration.py"):
        (folder / name).write_text(code)
    config(
        model_type="homemade",
        auto_map={"AutoConfig": "configuration.C", "AutoModelForCausalLM": "modeling.M"},
    )(folder)


def with_tokenizer_code(folder: Path) -> None:
    (folder / "tokenization.py").write_text(
        f"from pathlib import Path\nPath({str(folder / MARKER)!r}).touch()\n"
    )
    auto_map = {"AutoTokenizer": ["tokenization.T", None]}
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    edited(
        "tokenizer_config.json",
        lambda found: {**found, "tokenizer_class": "OwnTokenizer", "auto_map": auto_map},
    )(folder)


def all_of(*changes: Change) -> Change:
    def apply(folder: Path) -> None:
        for change in changes:
            change(folder)

    return apply


DEEP = b"[" * 200_000
_WEIGHTS = "is no safetensors file|is truncated"
CASES: dict[str, tuple[Change, str]] = {
    "config empty": (written("config.json", b""), "is empty"),
    "config list": (written("config.json", b"[]"), "must hold a JSON object, not a list"),
    "config deep": (written("config.json", DEEP), "nested more than 64"),
    "config deep value": (
        edited("config.json", lambda c: {**c, "x": json.loads("[" * 70 + "]" * 70)}),
        "nested more than 64",
    ),
    "config binary": (written("config.json", b"\x89PNG\r\n\x1a\n"), "is not UTF-8"),
    "config byte order mark": (written("config.json", b"\xef\xbb\xbf{}"), "byte order mark"),
    "config utf-16": (written("config.json", '{"a": 1}'.encode("utf-16")), "is not UTF-8"),
    "config twice": (
        written("config.json", b'{"model_type": "llama", "model_type": "gpt2"}'),
        "two different values for 'model_type'",
    ),
    "config pointer": (
        written("config.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "Git LFS pointer",
    ),
    "config page": (written("config.json", b"<!DOCTYPE html><html>"), "is not JSON"),
    "config long number": (
        written("config.json", b'{"a": ' + b"9" * 10_000 + b"}"),
        "is not JSON",
    ),
    "architectures numbers": (config(architectures=[1]), r"architectures\[0\] must be a text"),
    "architectures number": (config(architectures=5), "architectures must be a list"),
    "architectures text": (config(architectures="BertModel"), "is a BertModel, not a language"),
    "architectures null": (config(architectures=[None]), r"architectures\[0\] must be a text"),
    "model_type list": (config(model_type=["llama"]), "model_type must be a text"),
    "model_type object": (config(model_type={}), "model_type must be a text"),
    "model_type number": (config(model_type=3), "model_type must be a text"),
    "model_type lines": (config(model_type="a\nb"), "does not know models of type 'a"),
    "model_type long": (config(model_type="x" * 100_000), "does not know models of type 'x"),
    "layers many": (config(num_hidden_layers=10**9), "num_hidden_layers must be .* from 1 to"),
    "layers huge": (config(num_hidden_layers=10**40), "num_hidden_layers must be"),
    "layers negative": (config(num_hidden_layers=-1), "got -1"),
    "layers none": (config(num_hidden_layers=0), "got 0"),
    "layers float": (config(num_hidden_layers=2.5), r"got 2\.5"),
    "layers text": (config(num_hidden_layers="2"), "got '2'"),
    "layers true": (config(num_hidden_layers=True), "got True"),
    "layers list": (config(num_hidden_layers=[2] * 20_000), "has 20,000 values"),
    "layers nan": (config(num_hidden_layers=float("nan")), "got nan"),
    "layers more": (config(num_hidden_layers=3), "missing|lacks"),
    "vocabulary many": (config(vocab_size=10**9), "vocab_size must be .*no tensor"),
    "vocabulary negative": (config(vocab_size=-300), "vocab_size must be"),
    "vocabulary text": (config(vocab_size="many"), "vocab_size must be"),
    "hidden many": (config(hidden_size=10**9), "hidden_size must be"),
    "hidden none": (config(hidden_size=0), "hidden_size must be"),
    "hidden float": (config(hidden_size=64.0), "hidden_size must be"),
    "inner many": (config(intermediate_size=10**12), "intermediate_size must be"),
    "inner larger": (config(intermediate_size=90_000), "."),
    "heads many": (config(num_attention_heads=10**9), "num_attention_heads must be"),
    "heads none": (config(num_attention_heads=0), "."),
    "heads seven": (config(num_attention_heads=7), "."),
    "experts many": (config(num_local_experts=10**6), "num_local_experts must be"),
    "window text": (config(model_type="mistral", sliding_window="x"), "sliding_window"),
    "labels many": (config(num_labels=10**9), "num_labels must be"),
    "kv heads negative": (config(num_key_value_heads=-2), "num_key_value_heads must be"),
    "head size many": (config(head_dim=100_000), "."),
    "context huge": (config(max_position_embeddings=10**12), "max_position_embeddings must be"),
    "context text": (config(max_position_embeddings="long"), "max_position_embeddings must be"),
    "context negative": (config(max_position_embeddings=-5), "max_position_embeddings must be"),
    "text config list": (config(text_config=[1]), "text_config must be an object"),
    "text config layers": (
        config(text_config={"num_hidden_layers": 10**9}),
        r"text_config\.num_hidden_layers must be",
    ),
    "quantization text": (config(quantization_config="awq"), "quantization_config must be"),
    "quantization unknown": (
        config(quantization_config={"quant_method": "own"}),
        "in a form that no engine computes",
    ),
    "quantization awq": (
        config(quantization_config={"quant_method": "awq", "bits": 4}),
        "gptqmodel, and that is not installed",
    ),
    "encoder-decoder text": (config(is_encoder_decoder="yes"), "must be true or false"),
    "end tokens": (config(eos_token_id={"a": 1}), "eos_token_id must be a list or a whole num"),
    "rope list": (config(rope_parameters=[1]), "rope_parameters must be an object"),
    "rope type": (config(rope_parameters={"rope_type": "none", "rope_theta": 1.0}), "."),
    "activation": (config(hidden_act="os.system"), "."),
    "epsilon text": (config(rms_norm_eps="small"), "."),
    "code": (with_code, "needs Python code of its own"),
    "pickle": (pickled, "only PyTorch pickles"),
    "tokenizer code": (with_tokenizer_code, "tokenizer"),
    "header deep": (header(lambda _: DEEP), _WEIGHTS),
    "header list": (header(lambda _: b"[]"), _WEIGHTS),
    "header binary": (header(lambda _: b"\xff" * 40), _WEIGHTS),
    "header empty": (written("model.safetensors", b""), "is empty"),
    "header length": (written("model.safetensors", b"\xff" * 8 + b"{}"), _WEIGHTS),
    "header zeros": (written("model.safetensors", bytes(5000)), "filled with zeros"),
    "header page": (written("model.safetensors", b"<html>" + bytes(99)), "a web page"),
    "header gzip": (written("model.safetensors", b"\x1f\x8b\x08" + bytes(99)), "with gzip"),
    "header twice": (
        header(lambda h: json.dumps(h).encode()[:-1] + b',"a":1,"a":2}'),
        "two different values for 'a'",
    ),
    "metadata list": (header(lambda h: {**h, "__metadata__": [1]}), "__metadata__ must be"),
    "metadata numbers": (header(lambda h: {**h, "__metadata__": {"a": 1}}), "must be a text"),
    "tensor number": (header(lambda h: {**h, "x": 5}), "tensor 'x' must be an object"),
    "offsets texts": (tensor(data_offsets=["0", "9"]), "must be a whole number"),
    "offsets nulls": (tensor(data_offsets=[None, None]), "must be a whole number"),
    "offsets three": (tensor(data_offsets=[0, 1, 2]), "the offsets"),
    "offsets one": (tensor(data_offsets=[0]), "the offsets"),
    "offsets object": (tensor(data_offsets={"a": 0}), "must be a list"),
    "offsets negative": (tensor(data_offsets=[-64, 0]), "the offsets"),
    "offsets beyond": (tensor(data_offsets=[10**15, 10**15 + 76_800]), "a gap|overlap"),
    "offsets backwards": (tensor(data_offsets=[76_800, 0]), "do not fit"),
    "offsets float": (tensor(data_offsets=[0.0, 76_800.0]), "must be a whole number"),
    "offsets huge": (tensor(data_offsets=[0, 10**30]), "do not fit"),
    "dtype number": (tensor(dtype=5), "dtype must be a text"),
    "dtype list": (tensor(dtype=["F32"]), "dtype must be a text"),
    "dtype unknown": (tensor(dtype="F31"), "unknown number format"),
    "dtype other": (tensor(dtype="F64"), "do not fit"),
    "shape text": (tensor(shape="300x64"), "shape must be a list"),
    "shape negative": (tensor(shape=[-300, -64]), "the shape"),
    "shape huge": (tensor(shape=[2**62, 2**62]), "do not fit"),
    "shape more": (tensor(shape=[300, 64, 2]), "do not fit"),
    "index empty": (index({}), "weight_map must be an object"),
    "index list": (index({"weight_map": [1]}), "weight_map must be an object"),
    "index lists": (index({"weight_map": {"a": ["model-1.safetensors"]}}), "must be a text"),
    "index objects": (index({"weight_map": {"a": {}}}), "must be a text"),
    "index numbers": (index({"weight_map": {"a": 1, "b": "c"}}), "must be a text"),
    "index nothing": (index({"weight_map": {}}), "lists no weight files"),
    "index above": (
        index({"weight_map": {"a": "../model-1.safetensors"}}),
        "no weight file beside",
    ),
    "index root": (index({"weight_map": {"a": "/etc/passwd"}}), "no weight file beside"),
    "index passwd": (index({"weight_map": {"a": "../../etc/passwd"}}), "no weight file beside"),
    "index dots": (index({"weight_map": {"a": ".."}}), "no weight file beside"),
    "index other": (index({"weight_map": {"a": "config.json"}}), "no weight file beside"),
    "index missing": (index({"weight_map": {"a": "b.safetensors"}}), "lacks 1 of 1"),
    "index nul": (index({"weight_map": {"a": "b\0.safetensors"}}), "lacks 1 of 1"),
    "index long": (
        index({"weight_map": {"a": "b" * 999 + ".safetensors"}}),
        "no weight file beside",
    ),
    "index deep": (
        all_of(index({}), written("model.safetensors.index.json", DEEP)),
        "nested more than 64",
    ),
    "tokenizer empty": (written("tokenizer.json", b""), "is empty"),
    "tokenizer pointer": (
        written("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "Git LFS pointer",
    ),
    "tokenizer page": (written("tokenizer.json", b"<!doctype html>"), "a web page"),
    "tokenizer deep": (written("tokenizer.json", DEEP), "tokenizer"),
    "tokenizer deep object": (
        written("tokenizer.json", b'{"a":' * 5000 + b"1" + b"}" * 5000),
        "tokenizer",
    ),
    "tokenizer list": (written("tokenizer.json", b"[]"), "tokenizer"),
    "tokenizer nothing": (written("tokenizer.json", b"{}"), "tokenizer"),
    "tokenizer model": (edited("tokenizer.json", lambda t: {**t, "model": 5}), "tokenizer"),
    "tokenizer kind": (
        edited("tokenizer.json", lambda t: {**t, "model": {"type": "Own", "vocab": {}}}),
        "tokenizer",
    ),
    "tokenizer vocabulary": (
        edited("tokenizer.json", lambda t: {**t, "model": {**t["model"], "vocab": [1]}}),
        "tokenizer",
    ),
    "tokenizer ids": (
        edited("tokenizer.json", lambda t: {**t, "model": {**t["model"], "vocab": {"a": -1}}}),
        "tokenizer",
    ),
    "tokenizer merges": (
        edited("tokenizer.json", lambda t: {**t, "model": {**t["model"], "merges": [["a"]]}}),
        "tokenizer",
    ),
    "tokenizer merge of strangers": (
        edited("tokenizer.json", lambda t: {**t, "model": {**t["model"], "merges": [["§", "§"]]}}),
        "tokenizer",
    ),
    "tokenizer added": (edited("tokenizer.json", lambda t: {**t, "added_tokens": 1}), "tokenizer"),
    "tokenizer splitter": (
        edited("tokenizer.json", lambda t: {**t, "pre_tokenizer": {"type": "Own"}}),
        "tokenizer",
    ),
    "tokenizer_config length": (
        edited("tokenizer_config.json", lambda c: {**c, "model_max_length": "long"}),
        "tokenizer",
    ),
    "tokenizer_config list": (written("tokenizer_config.json", b"[]"), "must hold a JSON object"),
    "tokenizer_config deep": (written("tokenizer_config.json", DEEP), "nested more than 64"),
    "generation_config deep": (written("generation_config.json", DEEP), "nested more than 64"),
    "generation_config list": (written("generation_config.json", b"[]"), "must hold a JSON obj"),
    "special_tokens deep": (written("special_tokens_map.json", DEEP), "nested more than 64"),
}

REACH_AN_ENGINE = frozenset(
    name for name, (_, message) in CASES.items() if message == "." or message == "tokenizer"
) | {"layers more"}
"""Cases that only the library of an engine can refuse."""


def bits(name: str, place: int, data: bytes) -> Change:
    """Overwrite bytes of a file."""

    def apply(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[place : place + len(data)] = data
        (folder / name).write_bytes(content)

    return apply


_LISTED = edited("vocabulary.json", lambda tokens: tokens[:10])
CONVERTED_CASES: dict[str, tuple[Change, str]] = {
    "config deep": (written("config.json", DEEP), "."),
    "config list": (written("config.json", b"[]"), "."),
    "config tokens": (config(bos_token=None, unk_token=[1]), "."),
    "config epsilon": (config(layer_norm_epsilon="small"), "."),
    "config binary": (written("config.json", b"\xff\xfe"), "."),
    "vocabulary fewer": (_LISTED, "has 10 tokens"),
    "vocabulary object": (written("vocabulary.json", b"{}"), "vocabulary"),
    "vocabulary numbers": (written("vocabulary.json", b"[1, 2]"), "."),
    "vocabulary deep": (written("vocabulary.json", DEEP), "."),
    "vocabulary binary": (written("vocabulary.json", b"\xff\xff"), "."),
    "version": (bits("model.bin", 0, struct.pack("<I", 99)), "has format 99"),
    "name long": (bits("model.bin", 4, b"\xff\xff"), "truncated or damaged"),
    "name other": (bits("model.bin", 6, b"Trans"), "."),
    "variables huge": (bits("model.bin", 33, struct.pack("<I", 2**32 - 1)), "."),
    "truncated": (lambda folder: os.truncate(folder / "model.bin", 5000), "truncated or damaged"),
    "empty": (written("model.bin", b""), "."),
    "ends": (
        all_of(
            written("tokenizer/generation_config.json", b'{"eos_token_id": [[2]]}'),
            written("tokenizer/config.json", b"{}"),
            written("tokenizer/tokenizer_config.json", b'{"eos_token": [1]}'),
        ),
        ".",
    ),
    "own config deep": (written("tokenizer/config.json", DEEP), "nested more than 64"),
    "own config context": (
        written("tokenizer/config.json", b'{"model_type": "llama", "vocab_size": "x"}'),
        ".",
    ),
    "tokenizer": (written("tokenizer/tokenizer.json", b"{}"), "tokenizer"),
}
"""Changes of a CTranslate2 folder, which has no config.json of transformers' kind."""
