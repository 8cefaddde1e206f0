"""The life of a row, on one page: read -> tokenize -> plan -> run -> record -> export.

`run` is what the command `packhorse run` calls. `GenerationRun` does the inner steps; the steps of
every job (`packhorse.jobs.frame`) surround them: the journal, which makes a run resumable, and the
export, which writes each input row once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from packhorse.batching.policies import AUTO
from packhorse.config import JobConfig
from packhorse.data import Completion, Failure, Request, SamplingParams
from packhorse.engine_protocol.registry import model_engines
from packhorse.inference.log_probs import log_probs_note
from packhorse.inference.model import (
    check_batching,
    check_decoding,
    check_engine,
    check_least,
    load_prepared,
    prepare_for,
    result_settings,
)
from packhorse.inference.output_reader import output_note
from packhorse.inputs import detect_format, for_model, quoting_settings
from packhorse.jobs.frame import JobContext, Pending, ProgressReporter, input_identity, run_job
from packhorse.jobs.journal import Journal
from packhorse.jobs.manifest import RunReport, model_identity, plan_line, resolved_settings
from packhorse.models import PreparedModel, resolve_quantization
from packhorse.outputs import check_openai_output
from packhorse.profiling.run_metrics import Meter
from packhorse.prompt_options import PromptOptions, prompt_settings
from packhorse.tokenization import Codec, SpecialTextNotice, Tokenizer


def run(config: JobConfig, reporter: ProgressReporter | None = None) -> RunReport:
    """Run or resume a job until every input row has an outcome in the output.

    Finished rows are in the journal in any case; calling `run` again with the same config continues
    from there.

    Raises:
        PackhorseError: The job cannot be done; raised before any long work if possible.
        Interrupted: A signal ended the run.
    """
    check_engine(config.engine)
    check_batching(config.batching)
    check_decoding(config.decoding)
    check_least({"warmup_rows": config.warmup_rows}, 0)
    config = replace(config, reading=for_model(config.reading, config.model))
    return run_job(config, Generation(config), reporter)


class Generation:
    """The handler of `packhorse run`: a model answers every row."""

    def __init__(self, config: JobConfig) -> None:
        self._config = config
        self._prepared: PreparedModel | None = None
        self._started_with = ""

    def settings(self) -> dict[str, Any]:
        return settings(self._config)

    def on_rows_registered(self, source: Path, journal: Journal) -> None:
        is_openai = detect_format(source) == "openai-batch"
        if is_openai:
            check_openai_output(self._config.output)
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
            allow_pickle=config.allow_pickle,
            prompts=config.reading.prompts,
            report=report,
        )
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
        columns = OutputColumns(journal)
        if tokenizer.splits_reasoning:
            columns.add("reasoning", "reasoning_tokens")
        reporter.stage(f"loading {config.model}")
        with meter.stage("load"), context.loading():
            model = load_prepared(
                self._prepared, config.engine, config.batching, reporter.stage, codec=codec
            )
        with model:
            check_decoding(config.decoding, model.capabilities.max_context)
            budget = model.budget(config.decoding)
            resolved = resolved_settings(config, model, budget)
            reporter.stage(plan_line(resolved))
            notes = LogProbNotes(model.codec, config.decoding)

            def answers(rows: Iterable[Request], meter: Meter) -> Iterator[Completion | Failure]:
                return model.start_generation(
                    tokenizer, config.decoding, budget, meter, context.stopping
                ).outcomes(notes.watch(columns.watch(rows, config.reading.prompts)))

            if config.warmup_rows:
                with meter.stage("warm up"):
                    for _ in answers(pending(config.warmup_rows), Meter()):
                        pass
            reporter.begin(journal.counts(), meter)
            try:
                with meter.stage("generate"):
                    for outcome in answers(pending(), meter):
                        note = {**(notes.take(outcome) or {}), **output_note(outcome)}
                        journal.record(outcome, note or None)
                        reporter.advance()
            finally:
                reporter.end()
                journal.commit()
                journal.add_session({"resolved": resolved, **meter.to_json()})
        return resolved


@dataclass(frozen=True, slots=True)
class LogProbNotes:
    """Stores log-probabilities in the journal for rows that request them.

    Attributes:
        decoding: Sampling parameters of the job.
    """

    codec: Codec
    decoding: SamplingParams
    _requesting: dict[str, Request] = field(default_factory=dict)

    def watch(self, rows: Iterable[Request]) -> Iterator[Request]:
        """Yield the rows, and keep those that request log-probabilities until they are answered."""
        for row in rows:
            if row.options.get("top_log_probs") is not None:
                self._requesting[row.key] = row
            yield row

    def take(self, outcome: Completion | Failure) -> dict[str, Any] | None:
        """Return the note of a completed row, None if it requested no log-probabilities."""
        row = self._requesting.pop(outcome.key, None)
        if row is None or not isinstance(outcome, Completion):
            return None
        return log_probs_note(self.codec, row, outcome, self.decoding)


class OutputColumns:
    """Columns of the output beside the usual ones, kept in the journal.

    Columns for reasoning are in it if the model has tags of reasoning, `tool_calls` if a row has
    tools.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._known: list[str] = journal.meta("columns") or []

    def add(self, *names: str) -> None:
        """Add columns that are not there yet."""
        new = [name for name in names if name not in self._known]
        if new:
            self._known += new
            self._journal.set_meta("columns", self._known)

    def watch(self, rows: Iterable[Request], prompts: PromptOptions) -> Iterator[Request]:
        """Yield the rows, and add the column for tool calls at the first row with tools."""
        for row in rows:
            if row.prompt_options.get("tools", prompts.tools):
                self.add("tool_calls")
            yield row


def settings(config: JobConfig) -> dict[str, Any]:
    """Return what determines the results of a job besides its model, flat, for the journal.

    Batching is not part of it: in float32 it changes nothing but speed.
    """
    engine, messages_format = config.engine, config.reading.messages_format
    quantization = resolve_quantization(engine.quantization, engine.device, engine.engine)
    return {
        "input": input_identity(config.input),
        "system": config.reading.system,
        "template": config.reading.template,
        "prompt_column": config.reading.prompt_column,
        "on_too_long": config.reading.on_too_long,
        "messages_format": None if messages_format == "auto" else messages_format,
        **prompt_settings(config.reading.prompts),
        **quoting_settings(config.input, config.reading),
        **result_settings(quantization, config.decoding),
    }
