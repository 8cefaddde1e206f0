"""Run a language model over many inputs, as fast as the machine allows.

    import packhorse

    with packhorse.load("smollm2-135m-instruct") as model:
        for completion in model.generate(["What is the capital of France?"], max_new_tokens=32):
            print(completion.index, completion.text)

    report = packhorse.run(packhorse.JobConfig(
        model="smollm2-135m-instruct", input="prompts.jsonl", output=Path("answers.jsonl")))

Importing packhorse loads no model library; `load` and `run` do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packhorse.config import BatchingConfig, EngineConfig, InputConfig, JobConfig, OutputConfig
from packhorse.data import Completion, Failure, SamplingParams
from packhorse.errors import Interrupted, PackhorseError
from packhorse.params.prompt_options import PromptOptions
from packhorse.params.structured_output import StructuredOutput, structured_output

if TYPE_CHECKING:
    from packhorse.inference.model import Model, load
    from packhorse.jobs.manifest import RunReport
    from packhorse.jobs.mapping import map as map  # noqa: A004 (not in __all__: it hides the builtin)
    from packhorse.jobs.run_rows import run

__all__ = [
    "BatchingConfig",
    "Completion",
    "EngineConfig",
    "Failure",
    "InputConfig",
    "Interrupted",
    "JobConfig",
    "Model",
    "OutputConfig",
    "PackhorseError",
    "PromptOptions",
    "RunReport",
    "SamplingParams",
    "StructuredOutput",
    "__version__",
    "load",
    "run",
    "structured_output",
]

__version__ = "0.1.0"

_ON_DEMAND = {
    "Model": "packhorse.inference.model",
    "load": "packhorse.inference.model",
    "map": "packhorse.jobs.mapping",
    "RunReport": "packhorse.jobs.manifest",
    "run": "packhorse.jobs.run_rows",
}


def __getattr__(name: str) -> Any:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_ON_DEMAND[name]), name)
