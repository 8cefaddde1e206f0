"""Compute the speed of each trial over its repeats and its accuracy against the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packhorse.compare import document
from packhorse.compare.config import CompareConfig
from packhorse.compare.metric_definitions import QUALITY, SPEED
from packhorse.compare.sample import Sample
from packhorse.compare.trial import RepeatOutcome, RowResult, read_rows
from packhorse.data import SamplingParams, TokenIds
from packhorse.embeddings import SentenceEncoder
from packhorse.engine_protocol.registry import engine_entry
from packhorse.errors import PackhorseError
from packhorse.evaluation.quality import (
    Embed,
    Output,
    Pair,
    QualityReport,
    chrf_signature,
    compare_outputs,
    worst_rows,
)
from packhorse.evaluation.statistics import Estimate, median_interval
from packhorse.evaluation.teacher_forcing import (
    TeacherForcedModel,
    TeacherForcedScores,
    scorer,
    teacher_forced,
)
from packhorse.evaluation.ties import compare_repeats
from packhorse.inference.model import prepare_for
from packhorse.jobs.frame import date_of
from packhorse.jobs.manifest import compute_format
from packhorse.models import prepare_embedding_model
from packhorse.profiling.run_metrics import BUSY
from packhorse.reports.progress import StageReporter
from packhorse.storage.urls import public_name
from packhorse.techniques.grid import Combination, engine_config
from packhorse.tokenization import Refusal, Tokenizer

WORST_ROWS = 5
PROMPT_EXCERPT = 600
_NO_LIMIT = 1 << 40


@dataclass(slots=True)
class TrialRuns:
    """The outcome and the output path of every repeat of a combination."""

    combination: Combination
    outcomes: list[RepeatOutcome]
    outputs: list[Path]

    @property
    def repeats(self) -> list[document.Repeat]:
        return [outcome.repeat for outcome in self.outcomes if outcome.repeat is not None]

    def rows(self) -> list[RowResult]:
        """Return the rows of the first repeat that ended well."""
        return next(
            read_rows(output)
            for outcome, output in zip(self.outcomes, self.outputs, strict=True)
            if outcome.repeat is not None
        )


@dataclass(slots=True)
class TrialEvaluator:
    """Evaluate trials against one reference; expensive objects are created once.

    Attributes:
        date: the date that chat templates write in all runs, in ISO 8601.
    """

    config: CompareConfig
    sample: Sample
    reference: Combination
    reference_output: Path
    date: str
    observer: StageReporter
    _reference_rows: list[RowResult] = field(init=False)
    _embed: Embed | None = field(init=False)
    _prompt_ids: list[tuple[int, ...]] = field(init=False)
    _reference_scorer: TeacherForcedModel | None = None
    _forced: dict[tuple[str, str], TeacherForcedScores | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._reference_rows = read_rows(self.reference_output)
        self._prompt_ids = self._tokenized()
        self._embed = None
        if self.config.embeddings is not None:
            folder = prepare_embedding_model(self.config.embeddings, self.observer.stage)
            self._embed = _cached(SentenceEncoder(folder).embed)

    def evaluate_trial(self, runs: TrialRuns) -> document.Trial:
        """Return speed, accuracy and flags of one combination."""
        combination, repeats = runs.combination, runs.repeats
        failed = [outcome.reason for outcome in runs.outcomes if outcome.repeat is None]
        resolved: dict[str, Any] = next(
            (outcome.resolved for outcome in runs.outcomes if outcome.resolved), {}
        )
        report = self._quality(runs) if repeats else None
        forced = self._teacher_forced(combination) if repeats else None
        threads = f"{resolved['workers']} x {resolved['threads']}" if resolved else ""
        return document.Trial(
            name=combination.name,
            engine=combination.engine,
            quantization=combination.quantization,
            batching=combination.batching,
            status="ok" if repeats and not failed else "failed",
            reason=failed[0] if failed else "",
            compute_type=compute_format(resolved) if resolved else "",
            threads=threads,
            repeats=tuple(repeats),
            speed=_spreads(repeats),
            quality=_estimates(report, forced),
            quality_notes=_notes(report, forced),
            worst_rows=self._worst(report, runs) if report else (),
            flags=tuple(self._flags(runs, report)) if report else (),
            command=combination.command(
                self.config.model,
                public_name(self.config.input),
                SamplingParams(max_new_tokens=self.config.max_new_tokens),
                self.config.reading,
                allow_pickle=self.config.allow_pickle,
            ),
        )

    def measure_effects(self, trials: Sequence[TrialRuns]) -> tuple[document.Effect, ...]:
        """Measure the effect of each single change.

        Batching: each policy against `single` of the same engine and format. Quantization: each
        format against float32 of the same engine and policy.
        """
        ended = {
            (t.combination.engine, t.combination.quantization, t.combination.batching): t
            for t in trials
            if t.repeats
        }
        found = []
        for (engine, quantization, batching), runs in ended.items():
            alone = ended.get((engine, quantization, "single"))
            if alone is not None and batching != "single":
                found.append(self._effect("batching", alone, runs))
            plain = ended.get((engine, "float32", batching))
            if plain is not None and quantization != "float32":
                found.append(self._effect("quantization", plain, runs))
        return tuple(effect for effect in found if effect is not None)

    def reference_facts(self) -> dict[str, Any]:
        tokens = [len(row.token_ids) for row in self._reference_rows if row.token_ids is not None]
        return {
            "rows": len(self._reference_rows),
            "failed": len(self._reference_rows) - len(tokens),
            "generated_tokens": sum(tokens),
            "chrf_signature": chrf_signature(),
        }

    def prompt_facts(self) -> dict[str, Any]:
        lengths = [len(ids) for ids in self._prompt_ids]
        return {"prompt_tokens": sum(lengths), "longest_prompt": max(lengths, default=0)}

    def _tokenized(self) -> list[tuple[int, ...]]:
        """Return the prompt ids of the sample.

        The ids are () for a row that cannot be a prompt, and for the fake engine, whose tokenizer
        is not worth scoring with.
        """
        if not engine_entry(self.reference.engine).runs_model:
            return [() for _ in self.sample.requests]
        engine = engine_config(self.reference.engine, self.reference.quantization)
        codec = prepare_for(
            self.config.model, engine, allow_pickle=self.config.allow_pickle
        ).codec()
        reading = self.config.reading
        tokenizer = Tokenizer(
            codec, reading.system, now=date_of(self.date), prompts=reading.prompts
        )
        encoded = tokenizer.encode(self.sample.requests, [_NO_LIMIT] * len(self.sample.requests))
        return [() if isinstance(ids, Refusal) else ids for ids in encoded]

    def _quality(self, runs: TrialRuns) -> QualityReport:
        labels = self.sample.labels or [None] * len(self._reference_rows)
        rows = zip(self._reference_rows, runs.rows(), labels, strict=True)
        pairs = [
            Pair(ours.id, _output(ours), _output(theirs), label) for ours, theirs, label in rows
        ]
        return compare_outputs(pairs, embed=self._embed)

    def _teacher_forced(self, combination: Combination) -> TeacherForcedScores | None:
        """Score the reference's text, once per engine and format: batching does not matter."""
        key = (combination.engine, combination.quantization)
        if not self.config.teacher_forcing or key in self._forced:
            return self._forced.get(key)
        self.observer.stage(f"scoring the reference's text with {' '.join(key)}")
        try:
            if self._reference_scorer is None:
                reference = (self.reference.engine, self.reference.quantization)
                self._reference_scorer = self._scorer(*reference)
            ours, theirs = self._reference_scorer, self._scorer(*key)
            rows = [
                (ids, row.token_ids)
                for ids, row in zip(self._prompt_ids, self._reference_rows, strict=True)
                if ids and row.token_ids
            ]
            self._forced[key] = teacher_forced(ours, theirs, rows)
        except PackhorseError as error:
            self.observer.stage(f"{' '.join(key)} cannot be teacher-forced: {error}")
            self._forced[key] = None
        return self._forced[key]

    def _scorer(self, engine: str, quantization: str) -> TeacherForcedModel | None:
        chosen = engine_config(engine, quantization)
        prepared = prepare_for(self.config.model, chosen, allow_pickle=self.config.allow_pickle)
        return scorer(prepared, chosen.quantization)

    def _worst(self, report: QualityReport, runs: TrialRuns) -> tuple[document.WorstRow, ...]:
        prompts = {str(request.id): _shown(request.content) for request in self.sample.requests}
        ours = {row.id: row.text or "" for row in self._reference_rows}
        theirs = {row.id: row.text or "" for row in runs.rows()}
        return tuple(
            document.WorstRow(
                id=str(row.id),
                prompt=prompts[str(row.id)],
                reference_text=ours[str(row.id)],
                text=theirs[str(row.id)],
                matched_prefix=row.matched_prefix,
                cosine=row.cosine,
            )
            for row in worst_rows(report, WORST_ROWS)
        )

    def _flags(self, runs: TrialRuns, report: QualityReport) -> list[str]:
        """Return warnings about the figures of a trial."""
        flags = []
        ratio = report.length_ratio
        if report.length_flagged and ratio is not None:
            flags.append(
                f"generated {ratio.value:.0%} of the reference's tokens, so its speed is not for "
                "equal work"
            )
        if report.trial_failed:
            flags.append(f"{report.trial_failed} of {report.judged} rows failed")
        answers = [
            [row.token_ids for row in read_rows(output)]
            for outcome, output in zip(runs.outcomes, runs.outputs, strict=True)
            if outcome.repeat is not None
        ]
        if any(other != answers[0] for other in answers[1:]):
            flags.append("its repeats gave different answers; accuracy is that of the first")
        return flags + _disturbance([outcome.repeat for outcome in runs.outcomes])

    def _effect(self, kind: Any, before: TrialRuns, after: TrialRuns) -> document.Effect | None:
        rows = zip(before.rows(), after.rows(), strict=True)
        pairs = [Pair(old.id, _output(old), _output(new)) for old, new in rows]
        report = compare_outputs(pairs)
        if report.rows_identical is None or report.matched_prefix is None:
            return None
        ratio = compare_repeats(_rates(after), _rates(before))
        if ratio.ratio is None or ratio.low is None or ratio.high is None:
            return None
        return document.Effect(
            kind=kind,
            before=before.combination.name,
            after=after.combination.name,
            rows_identical=_estimate(report.rows_identical),
            matched_prefix=_estimate(report.matched_prefix),
            speed_ratio=document.Spread(ratio.ratio, ratio.low, ratio.high, ()),
        )


def _rates(runs: TrialRuns) -> list[float | None]:
    """Return rows per second of each repeat; None for one that failed."""
    return [
        None if outcome.repeat is None else outcome.repeat.figures["rows_per_second"]
        for outcome in runs.outcomes
    ]


def _estimate(value: Estimate) -> document.Estimate:
    return document.Estimate(value.value, *_ends(value))


def _ends(value: Estimate) -> tuple[float, float]:
    """Return the interval, or the value twice if there is none."""
    low = value.value if value.low is None else value.low
    return low, value.value if value.high is None else value.high


def _spreads(repeats: Sequence[document.Repeat]) -> dict[str, document.Spread]:
    """Return the median and interval over the repeats of every figure that all of them have."""
    found = {}
    for metric in SPEED:
        values = [metric.value(repeat) for repeat in repeats]
        known = [float(value) for value in values if value is not None]
        interval = median_interval(known)
        if interval is not None and len(known) == len(values):
            low, high = _ends(interval)
            found[metric.name] = document.Spread(interval.value, low, high, tuple(known))
    return found


def _estimates(
    report: QualityReport | None, forced: TeacherForcedScores | None
) -> dict[str, document.Estimate]:
    """Return the figures that were measured by name."""
    if report is None:
        return {}
    found = {metric.name: metric.value(report, forced) for metric in QUALITY}
    return {name: _estimate(value) for name, value in found.items() if value is not None}


def _disturbance(repeats: Sequence[document.Repeat | None]) -> list[str]:
    """Return a flag if other processes slowed repeats down."""
    shares = [each.figures.get("other_work_share", 0.0) for each in repeats if each is not None]
    disturbed = [share for share in shares if share > BUSY]
    if not disturbed:
        return []
    return [
        f"other work took up to {max(disturbed):.0%} of the usable cores "
        f"in {len(disturbed)} of {len(shares)} repeats"
    ]


def _notes(
    report: QualityReport | None, forced: TeacherForcedScores | None
) -> dict[str, float | int | None]:
    notes: dict[str, float | int | None] = {}
    if report is not None:
        notes |= {
            "rows": report.judged,
            "trial_failed": report.trial_failed,
            "reference_failed": report.reference_failed,
            "rows_identical_count": report.identical_count,
            "first_divergence_median": report.first_divergence_median,
            "chrf_corpus": report.chrf_corpus,
            "cosine_floor": report.cosine_floor.value if report.cosine_floor else None,
            **_with_interval("length_ratio", report.length_ratio),
        }
        if report.labels is not None:
            notes |= {
                "labelled": report.labels.labelled,
                **_with_interval("reference_accuracy", report.labels.reference_accuracy),
                **_with_interval("accuracy_difference", report.labels.accuracy_difference),
                "right_to_wrong": report.labels.right_to_wrong,
                "wrong_to_right": report.labels.wrong_to_right,
                "mcnemar_p": report.labels.mcnemar_p,
            }
    if forced is not None:
        notes |= _with_interval("perplexity_ratio", forced.perplexity_ratio)
    return notes


def _with_interval(name: str, value: Estimate | None) -> dict[str, float | None]:
    """Return NAME, NAME_low and NAME_high."""
    if value is None:
        return {name: None}
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}


def _output(row: RowResult) -> Output | None:
    return None if row.token_ids is None else Output(row.token_ids, row.text or "")


def _shown(content: Any) -> str:
    """Return the end of a prompt's last message, where its question usually is."""
    if isinstance(content, TokenIds):
        return f"{len(content)} token ids"
    text = content if isinstance(content, str) else str(content[-1].get("content", ""))
    return text if len(text) <= PROMPT_EXCERPT else f"…{text[-PROMPT_EXCERPT:]}"


def _cached(embed: Embed) -> Embed:
    """Return an embedder that computes each text once, as every trial repeats the reference's."""
    import numpy as np

    known: dict[str, Any] = {}

    def embed_new(texts: Sequence[str]) -> Any:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, embed(new), strict=True))
        return np.stack([known[text] for text in texts]) if texts else np.empty((0, 0), np.float32)

    return embed_new
