from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from packhorse.errors import ConfigError, ModelError
from packhorse.models import cached_models, prepare, resolve_quantization

Tiny = Callable[[str], Path]
PROMPT = "The packhorse carries"


def greedy_transformers(folder: Path, token_ids: list[int], count: int) -> list[int]:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    prompt = torch.tensor([token_ids])
    output = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False
    )
    return [int(token) for token in output[0, len(token_ids) :]]


def greedy_ctranslate2(folder: Path, tokens: list[str], count: int, end: list[int]) -> list[int]:
    import ctranslate2

    generator = ctranslate2.Generator(str(folder), compute_type="default")
    (result,) = generator.generate_batch(
        [tokens],
        max_length=count,
        include_prompt_in_result=False,
        end_token=end,
        return_end_token=True,
    )
    return [int(token) for token in result.sequences_ids[0]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "tied", "gpt2"])
def test_a_converted_model_says_what_the_original_says(tiny: Tiny, home: Path, name: str) -> None:
    from transformers import AutoTokenizer

    folder = tiny(name)
    prepared = prepare(str(folder), engine="ctranslate2")
    assert (prepared.kind, prepared.quantization) == ("ctranslate2", "float32")
    original = AutoTokenizer.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_folder)
    assert type(tokenizer) is type(original)
    assert tokenizer.chat_template == original.chat_template
    token_ids = tokenizer(PROMPT).input_ids
    assert token_ids == original(PROMPT).input_ids
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(token_ids)]
    expected = greedy_transformers(folder, token_ids, 40)
    end = [tokenizer.eos_token_id]
    assert greedy_ctranslate2(prepared.folder, tokens, 40, end) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("quantization", ["int8", "int8_float32", "int16", "float16", "bfloat16"])
def test_quantized_weights_are_smaller_and_known(
    tiny: Tiny, home: Path, name: str, quantization: str
) -> None:
    folder = str(tiny(name))
    full = prepare(folder, engine="ctranslate2")
    small = prepare(folder, engine="ctranslate2", quantization=quantization)
    assert small.quantization == quantization
    weights = [(model.folder / "model.bin").stat().st_size for model in (full, small)]
    assert weights[1] < 0.65 * weights[0]
    assert small.fingerprint != full.fingerprint
    stored = prepare(str(small.folder))
    assert stored.quantization == ("int8_float32" if quantization == "int8" else quantization)
    assert stored.fingerprint == small.fingerprint


@pytest.mark.slow
def test_an_entry_needs_nothing_beside_it(tiny: Tiny, home: Path, messages: list[str]) -> None:
    folder = tiny("llama")
    prepared = prepare(str(folder), engine="ctranslate2", report=messages.append)
    names = {path.relative_to(prepared.folder).as_posix() for path in prepared.folder.rglob("*.*")}
    assert names == {
        "model.bin",
        "config.json",
        "vocabulary.json",
        "reference_logits.npz",
        "packhorse-manifest.json",
        "tokenizer/chat_template.jinja",
        "tokenizer/config.json",
        "tokenizer/generation_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    }
    assert messages == ["converting llama to CTranslate2 float32"]
    again = prepare(str(folder), engine="ctranslate2", report=messages.append)
    assert again == prepared
    assert len(messages) == 1


@pytest.mark.slow
def test_a_model_that_changed_is_converted_anew(tiny: Tiny, home: Path) -> None:
    import tiny_models

    folder = tiny("llama")
    before = prepare(str(folder), engine="ctranslate2")
    tiny_models.tiny_llama(folder, seed=7)
    after = prepare(str(folder), engine="ctranslate2")
    assert after.folder != before.folder
    assert after.fingerprint != before.fingerprint
    assert len(cached_models(verify=True)) == 2


@pytest.mark.slow
def test_a_conversion_gives_the_same_bytes_again(tiny: Tiny, home: Path) -> None:
    folder = str(tiny("llama"))
    first = prepare(folder, engine="ctranslate2", quantization="int8")
    (first.folder / "model.bin").unlink()
    said: list[str] = []
    second = prepare(folder, engine="ctranslate2", quantization="int8", report=said.append)
    assert second == first
    assert "model.bin is missing" in said[0]


PREPARE = """
import sys
from packhorse.models import prepare
prepare(sys.argv[1], engine="ctranslate2", report=print)
"""


@pytest.mark.slow
def test_two_processes_convert_once(tiny: Tiny, home: Path) -> None:
    command = [sys.executable, "-c", PREPARE, str(tiny("llama"))]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = "".join(process.communicate()[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert said.count("converting") == 1
    (model,) = cached_models(verify=True)
    assert model.verified


SMALL_DISK = """
import resource, sys
from packhorse.errors import ModelError
from packhorse.models import prepare
import torch, transformers, ctranslate2.converters
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    prepare(sys.argv[1], engine="ctranslate2", report=print)
except ModelError as error:
    print(error, "|", error.hint)
"""


@pytest.mark.slow
def test_no_room_for_the_converted_weights(tiny: Tiny, home: Path) -> None:
    command = [sys.executable, "-c", SMALL_DISK, str(tiny("llama"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot be written: File too large | set PACKHORSE_HOME" in done.stdout
    assert cached_models() == []
    assert {path.name for path in home.iterdir()} <= {".locks", "configs"}


def test_a_family_without_a_converter(tiny: Tiny, home: Path) -> None:
    folder = tiny("gpt2")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no converter for olmo2 models") as caught:
        prepare(str(folder), engine="ctranslate2")
    assert "--engine transformers" in caught.value.hint
    assert cached_models() == []


@pytest.mark.parametrize(
    ("engine", "quantization"),
    [("ctranslate2", "auto"), ("ctranslate2", "int8"), ("packed", "int8")],
)
def test_a_quantized_checkpoint_is_not_converted(
    tiny: Tiny, home: Path, engine: str, quantization: str
) -> None:
    folder = tiny("llama")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    assert prepare(str(folder)).quantization == "fp8"
    with pytest.raises(ModelError, match=r"is quantized already \(fp8\)") as refused:
        prepare(str(folder), engine=engine, quantization=quantization)
    assert "--engine transformers" in refused.value.hint
    assert cached_models() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"engine": "transformers", "quantization": "int8"},
            "transformers engine does not run int8",
        ),
        ({"quantization": "int3"}, "no quantization 'int3'"),
        ({"device": "tpu"}, "no device 'tpu'"),
        ({"engine": "vllm"}, "engine 'vllm'"),
    ],
)
def test_options_that_make_no_sense(tiny: Tiny, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(str(tiny("llama")), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("quantization", "device", "resolved"),
    [
        ("auto", "cpu", "float32"),
        ("auto", "cuda", "float16"),
        ("int8", "cpu", "int8"),
        ("bfloat16", "cuda", "bfloat16"),
    ],
)
def test_quantization_auto_costs_no_accuracy(quantization: str, device: str, resolved: str) -> None:
    assert resolve_quantization(quantization, device) == resolved


@pytest.mark.parametrize("engine", ["fake", "packed"])
def test_engines_of_the_cpu_do_not_look_for_a_gpu(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking for one loads torch, which takes longer than a whole run of the fake engine."""
    module = sys.modules["packhorse.models.prepare"]
    monkeypatch.setattr(module, "torch_device", lambda _: "cuda")
    assert resolve_quantization("auto", "auto", engine) == "float32"
    assert resolve_quantization("auto", "auto", "transformers") == "float16"


def test_the_fake_engine_prepares_nothing(home: Path) -> None:
    prepared = prepare("whatever", engine="fake")
    assert (prepared.kind, prepared.engine, prepared.bytes_on_disk) == ("none", "fake", 0)
    assert not home.exists()


READY_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@pytest.fixture
def ready(tiny: Tiny, tmp_path: Path) -> Path:
    """A CTranslate2 folder as its own converter leaves it, with tokenizer files copied."""
    from ctranslate2.converters import TransformersConverter

    folder = tmp_path / "ready"
    converter = TransformersConverter(str(tiny("llama")), copy_files=list(READY_FILES))
    converter.convert(str(folder), quantization="int8")
    return folder


@pytest.mark.slow
def test_a_ready_folder(ready: Path, home: Path) -> None:
    prepared = prepare(str(ready))
    assert (prepared.engine, prepared.quantization) == ("ctranslate2", "int8_float32")
    assert prepared.folder == prepared.tokenizer_folder == ready
    assert not home.exists()


@pytest.mark.slow
def test_a_ready_folder_without_tokenizer(ready: Path) -> None:
    (ready / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer") as caught:
        prepare(str(ready))
    assert "copy tokenizer.json" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("kept", [3, 20, 200, 20_000, -1])
def test_a_truncated_ready_folder(ready: Path, kept: int) -> None:
    weights = ready / "model.bin"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(ModelError, match="truncated or damaged"):
        prepare(str(ready))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "value", "message"),
    [(0, b"\x09", "has format 9"), (6, b"X", "holds a XransformerDecoderSpec")],
)
def test_model_bin_of_another_kind(ready: Path, at: int, value: bytes, message: str) -> None:
    weights = ready / "model.bin"
    content = bytearray(weights.read_bytes())
    content[at : at + 1] = value
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        prepare(str(ready))


def test_a_missing_weight_is_not_replaced_by_random_numbers(tiny: Tiny, home: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny("llama")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing .*model.layers.1.mlp.up_proj"):
        prepare(str(folder), engine="ctranslate2")
