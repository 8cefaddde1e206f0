"""Messages for files and folders that are not a model that packhorse reads."""

from __future__ import annotations

import io
import json
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from packhorse.errors import ModelError
from packhorse.models import prepare
from packhorse.models.recognize import require_content
from packhorse.models.resolve import resolve

Tiny = Callable[[str], Path]


def zipped(name: str) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(name, "x" * 100)
    return target.getvalue()


def tarred() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model/config.json"))
    return target.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("model.gguf.gz", b"\x1f\x8b\x08rest", "is compressed with gzip", "unpack"),
        ("model.gguf", b"\x1f\x8b\x08rest", "is compressed with gzip", "unpack"),
        ("model.zst", b"\x28\xb5\x2f\xfdrest", "with zstd", "unpack"),
        ("model.xz", b"\xfd7zXZ\0rest", "with xz", "unpack"),
        ("model.zip", zipped("model/config.json"), "a zip archive", "unpack"),
        ("model.tar", tarred(), "a tar archive", "unpack"),
        ("model.pt", zipped("model/data.pkl"), "a PyTorch pickle", "safetensors"),
        ("model.ckpt", b"\x80\x02}q\0.", "a PyTorch pickle", "safetensors"),
        ("model.h5", b"\x89HDF\r\n\x1a\n", "HDF5", "Hugging Face folder"),
        ("model.onnx", b"\x08\x07\x12", "for ONNX Runtime", "Hugging Face folder"),
        ("model.tflite", b"\x1c\0\0\0TFL3", "for TensorFlow Lite", "Hugging Face folder"),
        ("model.gguf", b"<!DOCTYPE html>\n<html>", "a web page", "fetch it again"),
        ("model.gguf", b"\n <html lang=en>", "a web page", "fetch it again"),
        ("model.gguf", b"version https://git-lfs.github.com/spec/v1\n", "LFS pointer", "git lfs"),
        ("model.gguf", b"", "is empty", "completely"),
        ("model.gguf", bytes(5000), "filled with zeros", "completely"),
        ("model.gguf.part", b"GG", "a download that was not finished", "finish"),
        ("model.incomplete", b"something", "a download that was not finished", "finish"),
        ("model.bin", b"lmgg\1\0\0\0", "from before GGUF", "GGUF"),
        ("model.llamafile", b"MZqFpD='\n", "a llamafile", "unzip"),
        ("model.safetensors", struct.pack("<Q", 2) + b"{}", "a part of a model", "Hugging Face"),
        ("readme.txt", b"some text", "not a GGUF file", "Hugging Face"),
    ],
)
def test_files(tmp_path: Path, name: str, content: bytes, message: str, hint: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        resolve(str(tmp_path / name))
    assert hint in caught.value.hint


@pytest.mark.parametrize("length", [0x580, 0x8B1F])
def test_a_header_may_have_the_length_that_another_format_begins_with(
    tmp_path: Path, length: int
) -> None:
    header = b'{"__metadata__":{}}'.ljust(length)
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + header)
    require_content(path)


def test_weights_beside_a_config_name_their_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(ModelError) as caught:
        resolve(str(tmp_path / "model.safetensors"))
    assert caught.value.hint == f"give the folder that holds it: {tmp_path}"


@pytest.mark.parametrize(
    ("names", "message", "hint"),
    [
        (["model_index.json", "unet/config.json"], "a pipeline of diffusers", "language models"),
        (["models--org--name/refs/main", "version.txt"], "holds many models", "e.g. org/name"),
        (["snapshots/a1/config.json", "refs/main"], "a folder of the hub's cache", "snapshots/a1"),
        (["mmproj-model.gguf", "model-Q4.gguf"], "GGUF files", "model-Q4.gguf?"),
        (["params.json", "consolidated.safetensors"], "its maker's own format", "Hugging Face"),
        (["params.json", "consolidated.00.pth"], "its maker's own format", "Hugging Face"),
        (["last.ckpt"], "a training checkpoint", "Hugging Face"),
        (["saved_model.pb", "variables/variables.index"], "TensorFlow's weights", "Hugging Face"),
        (["model.nemo"], "a NeMo archive", "Hugging Face"),
        (["model.safetensors.incomplete"], "a download that was not finished", "finish"),
        ([".cache/huggingface/download/x.incomplete"], "that was not finished", "finish"),
        (["a/config.json", "b/config.json"], "has no config.json", "did you mean"),
    ],
)
def test_folders_without_config(tmp_path: Path, names: list[str], message: str, hint: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(ModelError, match=message) as caught:
        resolve(str(tmp_path))
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["openvino_model.xml", "openvino_model.bin"], "holds OpenVINO's weights"),
        (["model.onnx"], "holds ONNX weights"),
        (["onnx/model.onnx"], "holds ONNX weights"),
        (["rank0.engine"], "an engine of TensorRT"),
        (["tf_model.h5"], "holds TensorFlow's weights"),
        (["flax_model.msgpack"], "holds Flax weights"),
        (["pytorch_model.bin"], "only PyTorch pickles"),
        (["model.pt"], "only PyTorch pickles"),
        (["mp_rank_00_model_states.pt"], "a training checkpoint"),
        (["other.bin"], "has no weights"),
        (["model.safetensors.aria2"], "a download that was not finished"),
    ],
)
def test_weights_of_other_formats(tiny: Tiny, names: list[str], message: str) -> None:
    folder = tiny("llama")
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x" * 10)
    with pytest.raises(ModelError, match=message):
        prepare(str(folder))


def configured(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rename_tensors(folder: Path, ending: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace(".weight", ending): each for name, each in weights.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("engine", ["transformers", "packed", "ctranslate2"])
@pytest.mark.parametrize(
    ("method", "package"),
    [
        ("awq", "gptqmodel"),
        ("gptq", "gptqmodel"),
        ("compressed-tensors", "compressed-tensors"),
        ("bitsandbytes", "bitsandbytes"),
        ("hqq", "hqq"),
        ("eetq", "kernels"),
    ],
)
def test_quantized_checkpoints(
    tiny: Tiny, home: Path, method: str, package: str, engine: str
) -> None:
    folder = tiny("llama")
    configured(folder, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(ModelError) as caught:
        prepare(str(folder), engine=engine)
    assert f"is quantized ({method})" in str(caught.value)
    assert f"the package {package}, and that is not installed" in str(caught.value)
    assert "give the unquantized model" in caught.value.hint


@pytest.mark.parametrize("engine", ["packed", "ctranslate2"])
def test_a_quantized_checkpoint_that_transformers_computes_by_itself(
    tiny: Tiny, home: Path, engine: str
) -> None:
    folder = tiny("llama")
    configured(folder, quantization_config={"quant_method": "fp8"})
    with pytest.raises(ModelError, match=r"is quantized already \(fp8\)") as caught:
        prepare(str(folder), engine=engine)
    assert "use --engine transformers" in caught.value.hint


def test_quantized_weights_that_no_config_describes(tiny: Tiny) -> None:
    folder = tiny("llama")
    rename_tensors(folder, ".qweight")
    with pytest.raises(ModelError, match=r"quantized weights \(GPTQ or AWQ\), and its config"):
        prepare(str(folder))


def test_mlx(tiny: Tiny) -> None:
    import torch
    from safetensors.torch import save_file

    folder = tiny("llama")
    configured(folder, quantization={"group_size": 64, "bits": 4})
    packed = {"model.embed_tokens.weight": torch.zeros(300, 64, dtype=torch.uint32)}
    save_file(packed, folder / "model.safetensors", {"format": "mlx"})
    with pytest.raises(ModelError, match="quantized in MLX's format") as caught:
        prepare(str(folder))
    assert "the model it was made from" in caught.value.hint


@pytest.mark.parametrize(
    ("model_type", "architecture", "message"),
    [
        ("mistral3", "Mistral3ForConditionalGeneration", "a vision-language model"),
        ("llava", "LlavaForConditionalGeneration", "a vision-language model"),
        ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", "a vision-language model"),
        ("llama", "LlamaForSequenceClassification", "a LlamaForSequenceClassification"),
        ("bert", "BertModel", "a BertModel"),
    ],
)
def test_models_for_something_else(
    tiny: Tiny, model_type: str, architecture: str, message: str
) -> None:
    folder = tiny("llama")
    configured(folder, model_type=model_type, architectures=[architecture])
    with pytest.raises(ModelError, match=message):
        prepare(str(folder))


def test_pickles_are_looked_at_before_they_are_read(tiny: Tiny) -> None:
    folder = tiny("llama")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ModelError, match="a web page"):
        prepare(str(folder), allow_pickle=True)


def test_a_folder_of_a_copied_model_is_still_a_model(tiny: Tiny) -> None:
    """Other formats beside the weights do not matter."""
    folder = tiny("llama")
    (folder / "onnx").mkdir()
    (folder / "tf_model.h5").write_bytes(b"x")
    shutil.copyfile(folder / "config.json", folder / "params.json")
    assert prepare(str(folder)).kind == "huggingface"
