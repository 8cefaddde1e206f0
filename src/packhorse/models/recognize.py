"""Recognize files and folders that packhorse cannot read as a model, and say what to do.

Only names, first bytes and config.json are read; no library is loaded. Each message says what the
file is and what to give instead.
"""

from __future__ import annotations

import re
from pathlib import Path

from packhorse.errors import ModelError
from packhorse.storage.json_files import shown

DECODER_ONLY = "packhorse runs decoder-only language models such as llama, qwen or gpt2"
COPY_COMPLETELY = "it was not copied or fetched completely: do that again"
_START_BYTES = 512
_POINTER = b"version https://git-lfs"
_ORIGINAL = "give the Hugging Face folder of the model, with config.json and safetensors weights"
_UNPACK = "unpack it, and give the folder or file that comes out"
_AGAIN = "fetch it again; if it needs a login or a licence, do that first"
_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (_POINTER, "a Git LFS pointer, not the file itself", "run: git lfs pull"),
    (b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    (b"\xfd7zXZ\0", "compressed with xz", _UNPACK),
    (b"BZh", "compressed with bzip2", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x89HDF\r\n", "a Keras or TensorFlow file (HDF5)", _ORIGINAL),
    (b"%PDF", "a PDF document", _AGAIN),
    (b"MZqFpD", "a llamafile, a program with a model in it", "unpack the GGUF file: unzip it"),
    (b"\x7fELF", "a program", _ORIGINAL),
    (b"lmgg", "in GGML's format from before GGUF", "fetch the model as GGUF"),
    (b"tjgg", "in GGML's format from before GGUF", "fetch the model as GGUF"),
    (b"fmgg", "in GGML's format from before GGUF", "fetch the model as GGUF"),
)
_PICKLE = "a PyTorch pickle"
_SAFETENSORS = rb".{4}\0{4}\{"
"""The length of the header, which may begin as other formats do, and its first character."""
_PARTIAL = (".incomplete", ".part", ".partial", ".aria2", ".crdownload", ".download", ".tmp")


def describe_content(path: Path) -> tuple[str, str] | None:
    """Return what a file is by its first bytes, and what to do; None if they do not tell."""
    with path.open("rb") as file:
        start = file.read(_START_BYTES)
    if not start:
        return "empty", COPY_COMPLETELY
    if re.match(_SAFETENSORS, start, re.DOTALL):
        return None
    for beginning, what, hint in _STARTS:
        if start.startswith(beginning):
            return what, hint
    if start[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml|head)", start, re.IGNORECASE):
        return "a web page, not the file itself", _AGAIN
    if start.startswith(b"PK\3\4"):
        is_torch = b"data.pkl" in start or path.suffix in {".pt", ".pth", ".ckpt", ".bin"}
        return (_PICKLE, _ORIGINAL) if is_torch else ("a zip archive", _UNPACK)
    if re.match(rb"\x80[\2-\5]", start):
        return _PICKLE, _ORIGINAL
    if len(start) >= 8 and set(start[:64]) == {0}:
        return "filled with zeros", COPY_COMPLETELY
    return None


def require_content(path: Path, *, allow_pickle: bool = False) -> None:
    """Raise ModelError if a file of weights or of a tokenizer is recognizably something else."""
    found = describe_content(path)
    if found and not (allow_pickle and found[0] == _PICKLE):
        what, hint = found
        raise ModelError(f"{path} is {what}", hint)


def unknown_file(path: Path) -> ModelError:
    """Return the error for a file that is not a GGUF file."""
    if path.suffix in _PARTIAL:
        return ModelError(
            f"{path} is a download that was not finished ({path.suffix})", "finish or repeat it"
        )
    if found := describe_content(path):
        return ModelError(f"{path} is {found[0]}, not a model", found[1])
    beside = (path.parent / "config.json").is_file()
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or (start[8:9] == b"{" and start[3:8] == bytes(5)):
        what = f"{path} holds weights (safetensors), which is only a part of a model"
    elif path.suffix in {".onnx", ".tflite", ".task", ".mlmodel", ".engine", ".plan", ".pte"}:
        what = f"{path} is a model for {_RUNTIMES[path.suffix]}, which packhorse does not run"
        beside = False
    elif path.suffix == ".gguf":
        return ModelError(
            f"{path} is not a GGUF file (its first bytes are not GGUF)", "fetch it again"
        )
    else:
        what = f"{path} is a file, but not a GGUF file"
    hint = f"give the folder that holds it: {path.parent}" if beside else _ORIGINAL
    return ModelError(what, hint)


_RUNTIMES = {
    ".onnx": "ONNX Runtime", ".tflite": "TensorFlow Lite", ".task": "MediaPipe",
    ".mlmodel": "Core ML", ".engine": "TensorRT", ".plan": "TensorRT", ".pte": "ExecuTorch",
}  # fmt: skip


def describe_weights(folder: Path) -> tuple[str, str] | None:
    """Return which other format the weights in a folder have, and what to do; None for none."""
    names = sorted(path.name for path in folder.iterdir())

    def has(*patterns: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in patterns for name in names)

    for patterns, what in _FORMATS:
        if has(*patterns):
            return f"holds {what}", _ORIGINAL
    downloads = folder.glob(".cache/huggingface/download/*.incomplete")
    partial = [name for name in names if Path(name).suffix in _PARTIAL]
    partial += sorted(path.name for path in downloads)
    if partial:
        return f"is a download that was not finished, e.g. {partial[0]}", "finish or repeat it"
    return None


_FORMATS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((r"openvino_.*\.(xml|bin)",), "OpenVINO's weights, which packhorse does not read"),
    ((r".*\.onnx", r"onnx"), "ONNX weights, which packhorse does not read"),
    ((r".*\.engine", r".*\.plan", r"rank\d+\.safetensors"),
     "an engine of TensorRT, which packhorse does not read"),
    ((r"tf_model.*\.h5", r"saved_model\.pb", r"model\.ckpt.*"),
     "TensorFlow's weights, which packhorse does not read"),
    ((r"flax_model.*\.msgpack",), "Flax weights, which packhorse does not read"),
    ((r"params\.json", r"consolidated.*\.(pth|safetensors)", r"tekken\.json"),
     "the model in its maker's own format (params.json, consolidated), not in transformers'"),
    ((r".*\.nemo",), "a NeMo archive, which packhorse does not read"),
    ((r".*\.mlpackage", r".*\.mlmodelc"), "a Core ML model, which packhorse does not read"),
    ((r".*\.ckpt", r"checkpoint\.pt", r"mp_rank_.*\.pt"),
     "a training checkpoint (a pickle of Lightning, DeepSpeed or fairseq), which is never opened"),
    ((r".*\.xml",), "OpenVINO's weights, which packhorse does not read"),
    ((r".*\.(pt|pth)",), "only PyTorch pickles (.pt), which are never opened"),
)  # fmt: skip


def describe_folder(folder: Path) -> tuple[str, str] | None:
    """Return a predicate for a folder without config.json, and what to do; None if unknown."""
    held = {path.name for path in folder.iterdir()}
    if not held:
        return "is empty", _ORIGINAL
    if "model_index.json" in held:
        return (
            "is a pipeline of diffusers, which makes images, video or sound",
            "packhorse runs language models that continue text",
        )
    if snapshots := sorted(folder.glob("snapshots/*/config.json")):
        return "is a folder of the hub's cache", f"did you mean {snapshots[-1].parent}?"
    if repositories := sorted(name for name in held if name.startswith("models--")):
        first = repositories[0].removeprefix("models--").replace("--", "/")
        return "is the hub's cache, which holds many models", f"name one of them, e.g. {first}"
    if ggufs := sorted(name for name in held if name.endswith(".gguf")):
        chosen = next((name for name in ggufs if "mmproj" not in name), ggufs[0])
        return "has no config.json, but GGUF files", f"did you mean {folder / chosen}?"
    if inner := sorted(path.parent for path in folder.glob("*/config.json")):
        return "is not a model folder: it has no config.json", f"did you mean {inner[0]}?"
    return describe_weights(folder)


def require_tokenizer_content(path: Path) -> None:
    """Raise ModelError if a tokenizer's file is recognizably not what its name says."""
    require_content(path)
    if path.suffix != ".json":
        return
    with path.open("rb") as file:
        start = file.read(_START_BYTES).lstrip()
    if not start.startswith((b"{", b"[")):
        raise ModelError(
            f"{path} is not JSON: it begins with {shown(start[:20])}", "copy or fetch it again"
        )
