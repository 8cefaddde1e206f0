"""The life of a row, on one page: read -> tokenize -> plan -> run -> record -> export.

`run` is what the command `packhorse run` calls. `GenerationRun` does the inner steps; the steps of
every job (`packhorse.jobs.frame`) surround them: the journal, which makes a run resumable, and the
export, which writes each input row once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from packhorse.batching.policies import AUTO
from packhorse.config import JobConfig
from packhorse.data import Completion, Failure, Request
from packhorse.engine_protocol.registry import engine_entry, model_engines
from packhorse.errors import ConfigError, InputError
from packhorse.inference.job_settings import check_sampling_support, result_settings
from packhorse.inference.log_probs import completion_note
from packhorse.inference.model import (
    Model,
    check_batching,
    check_decoding,
    check_engine,
    check_least,
    load_prepared,
    prepare_for,
)
from packhorse.inference.output_reader import output_note
from packhorse.inputs import (
    Source,
    detect_format,
    files_of,
    find_files,
    for_model,
    list_files,
    quoting_settings,
)
from packhorse.jobs.frame import (
    JobContext,
    Pending,
    ProgressReporter,
    input_identity,
    input_names,
    run_job,
)
from packhorse.jobs.journal import Journal
from packhorse.jobs.manifest import RunReport, model_identity, plan_line, resolved_settings
from packhorse.jobs.workspace import Workspace
from packhorse.models import PreparedModel, resolve_quantization
from packhorse.outputs import check_openai_output
from packhorse.params.prompt_options import prompt_settings
from packhorse.params.structured_output import property_types
from packhorse.profiling.run_metrics import Meter
from packhorse.storage.compressed_files import compression_named
from packhorse.storage.urls import is_url
from packhorse.tokenization import Codec, SpecialTextNotice, Tokenizer

_NOTED_OPTIONS = frozenset({"top_log_probs", "prompt_log_probs", "n"})
"""Options of rows of whose completions `completion_note` stores more than `output_note`."""


def run(config: JobConfig, reporter: ProgressReporter | None = None) -> RunReport:
    """Run or resume a job until every input row has an outcome in the output.

    Finished rows are in the journal in any case; calling `run` again with the same config continues
    from there.

    Raises:
        PackhorseError: The job cannot be done; raised before any long work if possible.
        Interrupted: A signal ended the run.
    """
    config = _checked(config)
    return run_job(config, Generation(config), reporter)


def _checked(config: JobConfig) -> JobConfig:
    """Return the job with the names of its model; raise ConfigError for values out of range."""
    check_engine(config.engine)
    check_batching(config.batching)
    check_decoding(config.decoding)
    check_least({"warmup_rows": config.warmup_rows}, 0)
    return replace(config, reading=for_model(config.reading, config.model))


def run_each(
    config: JobConfig, folder: Path, suffix: str, reporter: ProgressReporter | None = None
) -> Iterator[tuple[Path, RunReport | InputError]]:
    """Run one job per input file, each with an output in `folder`; the model is loaded once.

    The output of data/2024/a.csv.gz is 2024/a.jsonl, if data is the folder of all files. Files
    whose rows cannot be read cost no other.

    Args:
        config: The job; its output is not used.
        folder: Folder of the outputs; it is made.
        suffix: Suffix of the outputs, such as ".jsonl".
        reporter: Takes the progress of each job.

    Yields:
        Each output, and the report of its job or why its input cannot be read.

    Raises:
        ConfigError: Two inputs have one output.
        PackhorseError: As `run`.
    """
    config = _checked(config)
    files = list_files(input_names(config))
    outputs = _outputs(files, folder, suffix)
    shelf = ModelShelf()
    try:
        for path, output in zip(files, outputs, strict=True):
            output.parent.mkdir(parents=True, exist_ok=True)
            job = replace(config, input=str(path), more_inputs=(), output=output)
            try:
                yield output, run_job(job, Generation(job, shelf), reporter)
            except InputError as error:
                yield output, error
    finally:
        shelf.close()


def _outputs(files: Sequence[Path], folder: Path, suffix: str) -> list[Path]:
    common = Path(os.path.commonpath([path.absolute().parent for path in files]))
    found: dict[Path, Path] = {}
    for path in files:
        name = path.absolute().relative_to(common)
        stem = Path(name.stem) if compression_named(name) else name
        output = folder / name.with_name(stem.stem + suffix)
        if output in found:
            raise ConfigError(
                f"{found[output]} and {path} have the same output {output}",
                "rename one of them, or run them in two jobs",
            )
        found[output] = path
    return list(found)


class ModelShelf:
    """Keeps the model of one job loaded for the next one of the same model and settings."""

    def __init__(self) -> None:
        self._fingerprint = ""
        self._model: Model | None = None

    def take(self, fingerprint: str) -> Model | None:
        """Return the loaded model of this fingerprint, if there is one."""
        return self._model if self._fingerprint == fingerprint else None

    @contextmanager
    def kept(self, fingerprint: str, model: Model) -> Iterator[None]:
        """Keep `model` loaded after this context, unless it ends with an error."""
        try:
            yield
        except BaseException:
            self._fingerprint, self._model = "", None
            model.close()
            raise
        self._fingerprint, self._model = fingerprint, model

    def close(self) -> None:
        if self._model is not None:
            self._model.close()


class Generation:
    """The handler of `packhorse run`: a model answers every row."""

    def __init__(self, config: JobConfig, shelf: ModelShelf | None = None) -> None:
        self._config = config
        self._shelf = shelf
        self._prepared: PreparedModel | None = None
        self._started_with = ""

    def settings(self) -> dict[str, Any]:
        return settings(self._config)

    def on_rows_registered(self, source: Source, journal: Journal) -> None:
        is_openai = detect_format(source) == "openai-batch"
        if is_openai:
            check_openai_output(Workspace.of(self._config.output).output)
        journal.set_meta("openai", {"model": self._config.model} if is_openai else None)
        self._started_with = (journal.meta("settings") or {}).get("engine", "")

    def prepare(self, report: Callable[[str], None]) -> dict[str, Any]:
        config = self._config
        engine = config.engine
        if engine.engine == AUTO and self._started_with in model_engines():
            engine = replace(engine, engine=self._started_with)
            report(f"engine {engine.engine}: this output was started with it")
        self._prepared = prepare_for(
            config.model,
            engine,
            policy=config.batching.policy,
            sampling=config.decoding.engine_fields,
            allow_pickle=config.allow_pickle,
            prompts=config.reading.prompts,
            report=report,
        )
        check_sampling_support(config.decoding, engine_entry(self._prepared.engine))
        return {"model": self._prepared.fingerprint, "engine": self._prepared.engine}

    def identity(self) -> dict[str, Any]:
        assert self._prepared is not None
        return model_identity(self._prepared)

    def run(self, pending: Pending, journal: Journal, context: JobContext) -> dict[str, Any]:
        assert self._prepared is not None
        config, meter, reporter = self._config, context.meter, context.reporter
        codec = self._prepared.codec()
        tokenizer = Tokenizer(
            codec,
            config.reading.system,
            config.reading.on_too_long,
            context.date,
            SpecialTextNotice(reporter.stage),
            config.reading.prompts,
        )
        if journal.has_only_chats() and not config.reading.prompts.raw_prompts:
            tokenizer.check()
        tokenizer.check_options(reporter.stage)
        if tokenizer.splits_reasoning:
            journal.add_columns(["reasoning", "reasoning_tokens"])
        if (structured := config.decoding.structured_outputs) is not None:
            journal.set_meta("properties", property_types(structured))
        reporter.stage(f"loading {config.model}")
        with meter.stage("load"), context.loading():
            model = self._shelf.take(self._prepared.fingerprint) if self._shelf else None
            model = model or load_prepared(
                self._prepared, config.engine, config.batching, reporter.stage, codec=codec
            )
        with self._shelf.kept(self._prepared.fingerprint, model) if self._shelf else model:
            check_decoding(config.decoding, model.capabilities.max_context)
            budget = model.budget(config.decoding)
            resolved = resolved_settings(config.batching, model, budget)
            reporter.stage(plan_line(resolved))
            notes = Notes(model.codec, config, journal)

            def answers(rows: Iterable[Request], meter: Meter) -> Iterator[Completion | Failure]:
                return model.start_generation(
                    tokenizer, config.decoding, budget, meter, context.stopping
                ).outcomes(notes.watch(rows))

            if config.warmup_rows:
                with meter.stage("warm up"):
                    for _ in answers(pending(config.warmup_rows), Meter()):
                        pass
            reporter.begin(journal.counts(), meter)
            try:
                with meter.stage("generate"):
                    for outcome in answers(pending(), meter):
                        journal.record(outcome, notes.take(outcome))
                        reporter.advance()
            finally:
                reporter.end()
                journal.commit()
                journal.add_session({"resolved": resolved, **meter.to_json()})
        return resolved


@dataclass(frozen=True, slots=True)
class Notes:
    """Makes the notes of rows in the journal: what completions hold beside their text.

    Attributes:
        codec: Tokenizer of the model.
        config: The job.
        journal: Gets a column for tool calls at the first row with tools.
    """

    codec: Codec
    config: JobConfig
    journal: Journal
    _requesting: dict[str, Request] = field(default_factory=dict)

    def watch(self, rows: Iterable[Request]) -> Iterator[Request]:
        """Yield the rows, and keep those that may get a note until they are answered."""
        decoding, tools = self.config.decoding, self.config.reading.prompts.tools
        every = decoding.n > 1 or decoding.prompt_log_probs is not None
        for row in rows:
            if row.prompt_options.get("tools", tools):
                self.journal.add_columns(["tool_calls"])
            if every or not _NOTED_OPTIONS.isdisjoint(row.options):
                self._requesting[row.key] = row
            yield row

    def take(self, outcome: Completion | Failure) -> dict[str, Any] | None:
        """Return the note of a row, None if it has nothing beside its text."""
        row = self._requesting.pop(outcome.key, None)
        if isinstance(outcome, Failure):
            return None
        if row is None:
            return output_note(outcome) or None
        return completion_note(self.codec, row, outcome, self.config.decoding)


def settings(config: JobConfig) -> dict[str, Any]:
    """Return what determines the results of a job besides its model, flat, for the journal.

    Batching is not part of it: in float32 it changes nothing but speed.
    """
    engine, messages_format = config.engine, config.reading.messages_format
    quantization = resolve_quantization(engine.quantization, engine.device, engine.engine)
    names = input_names(config)
    is_alone = config.input == "-" or is_url(config.input)
    first = names[0] if is_alone else str(files_of(find_files(names))[0])
    more = {"more_inputs": [input_identity(name) for name in names[1:]]} if names[1:] else {}
    return {
        "input": input_identity(config.input),
        **more,
        "system": config.reading.system,
        "template": config.reading.template,
        "prompt_column": config.reading.prompt_column,
        "id_column": config.reading.id_column,
        "on_too_long": config.reading.on_too_long,
        "messages_format": None if messages_format == "auto" else messages_format,
        **prompt_settings(config.reading.prompts),
        **quoting_settings(first, config.reading),
        **result_settings(quantization, config.decoding),
    }
