"""Quality of a trial's outputs against the reference: tokens, characters, embeddings and labels.

Each row has the same weight in every measure except the length ratio and corpus chrF, which weigh
by length. A row that the trial failed counts as entirely different, so failing hard rows is never
an advantage. A row that the reference failed is left out. Both are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from packhorse.data import RowId
from packhorse.evaluation.label_matching import is_right, normalise
from packhorse.evaluation.labels import LabelReport, judge_labels
from packhorse.evaluation.statistics import (
    Estimate,
    bootstrap_mean,
    bootstrap_ratio,
    quantile,
    wilson_interval,
)

Embed = Callable[[Sequence[str]], npt.NDArray[np.float32]]
LENGTH_RATIO_LIMITS = (0.9, 1.1)


@dataclass(frozen=True, slots=True)
class Output:
    """Output of one system for one row: token ids without the end token, and their text."""

    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Outputs of both systems for a row, None if it failed; label: the right answer, if known."""

    id: RowId
    reference: Output | None
    trial: Output | None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class RowQuality:
    """The measures of one row; see the functions of the same names and `QualityReport`.

    cosine: None without sentence embeddings. reference_right, trial_right: None for a
    row without a label.
    """

    id: RowId
    failed: bool
    identical: bool
    first_token_equal: bool
    first_divergence: int | None
    matched_prefix: float
    chrf: float
    cosine: float | None
    reference_tokens: int
    trial_tokens: int
    reference_right: bool | None
    trial_right: bool | None


@dataclass(frozen=True, slots=True)
class QualityReport:
    """Measures over all rows, and of each row. A measure is None if it could not be computed.

    judged: rows with a reference output. trial_failed: those among them the trial failed.
    reference_failed: rows left out.
    rows_identical, first_token_equal: shares of judged rows, Wilson intervals; identical_count.
    first_divergence_median: token position, from 0, over the rows that differ at all.
    matched_prefix, chrf, cosine: means over rows, bootstrap intervals. cosine_floor: the same for
    pairs of unrelated rows. chrf_corpus: one score from the n-gram counts of all rows.
    length_ratio: generated tokens of the trial / of the reference; length_flagged: outside
    LENGTH_RATIO_LIMITS, speeds then compare unequal work.
    """

    judged: int
    trial_failed: int
    reference_failed: int
    identical_count: int
    rows_identical: Estimate | None
    first_token_equal: Estimate | None
    first_divergence_median: float | None
    matched_prefix: Estimate | None
    chrf: Estimate | None
    chrf_corpus: float | None
    cosine: Estimate | None
    cosine_floor: Estimate | None
    length_ratio: Estimate | None
    length_flagged: bool
    labels: LabelReport | None
    rows: tuple[RowQuality, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings, dicts and tuples; None where a measure is absent, never NaN."""
        return asdict(self)


def compare_outputs(
    pairs: Sequence[Pair], *, embed: Embed | None = None, seed: int = 0
) -> QualityReport:
    """Compare the trial's rows with the reference's.

    embed: texts to unit vectors (n, d), e.g. `SentenceEncoder.embed`; None leaves cosines out.
    seed: of bootstrap resamples and of the shuffled pairs.
    """
    judged = [pair for pair in pairs if pair.reference is not None]
    references = [pair.reference for pair in pairs if pair.reference is not None]
    trials = [pair.trial or Output((), "") for pair in judged]
    failed = [pair.trial is None for pair in judged]
    texts = [output.text for output in references], [output.text for output in trials]
    chrf, corpus = chrf_scores(*texts, failed)
    cosine, floor = cosines(*texts, failed, embed, seed) if embed and judged else (None, None)
    rows = tuple(
        _row(pair, reference, trial, chrf[index], None if cosine is None else cosine[index])
        for index, (pair, reference, trial) in enumerate(
            zip(judged, references, trials, strict=True)
        )
    )
    identical = sum(row.identical for row in rows)
    divergences = [row.first_divergence for row in rows if row.first_divergence is not None]
    ratio = bootstrap_ratio(
        [row.trial_tokens for row in rows], [row.reference_tokens for row in rows], seed=seed
    )
    low, high = LENGTH_RATIO_LIMITS
    return QualityReport(
        judged=len(rows),
        trial_failed=sum(failed),
        reference_failed=len(pairs) - len(judged),
        identical_count=identical,
        rows_identical=wilson_interval(identical, len(rows)),
        first_token_equal=wilson_interval(sum(row.first_token_equal for row in rows), len(rows)),
        first_divergence_median=quantile(divergences, 0.5),
        matched_prefix=bootstrap_mean([row.matched_prefix for row in rows], seed=seed),
        chrf=bootstrap_mean(chrf, seed=seed),
        chrf_corpus=corpus,
        cosine=None if cosine is None else bootstrap_mean(cosine, seed=seed),
        cosine_floor=None if floor is None else bootstrap_mean(floor, seed=seed),
        length_ratio=ratio,
        length_flagged=ratio is not None and not low <= ratio.value <= high,
        labels=_labels(rows, seed),
        rows=rows,
    )


def worst_rows(report: QualityReport, count: int) -> list[RowQuality]:
    """Return the `count` rows that differ most: failed rows, then by chrF, then by matched prefix,
    then in input order. Identical rows are left out."""
    differing = [row for row in report.rows if not row.identical]
    return sorted(differing, key=lambda row: (not row.failed, row.chrf, row.matched_prefix))[:count]


def matched_tokens(reference: Sequence[int], trial: Sequence[int]) -> int:
    """Return the length of the common prefix (tokens)."""
    pairs = zip(reference, trial, strict=False)
    return next(
        (index for index, (left, right) in enumerate(pairs) if left != right),
        min(len(reference), len(trial)),
    )


def first_divergence(reference: Sequence[int], trial: Sequence[int]) -> int | None:
    """Return the index of the first token that differs; a shorter output diverges at its end.

    Returns None for identical outputs.
    """
    return None if tuple(reference) == tuple(trial) else matched_tokens(reference, trial)


def matched_prefix_share(reference: Sequence[int], trial: Sequence[int]) -> float:
    """Return common prefix / reference tokens.

    For an empty reference it is 1 if the trial is empty, else 0.
    A trial that starts with the whole reference and continues has 1.0 and is not identical.
    """
    if not reference:
        return float(not trial)
    return matched_tokens(reference, trial) / len(reference)


def chrf_scores(
    references: Sequence[str], trials: Sequence[str], failed: Sequence[bool]
) -> tuple[list[float], float | None]:
    """Return chrF2 of each row and of the corpus, 0 to 100.

    F score, beta = 2, of character 1- to 6-grams without white space, averaged over the orders
    the texts are long enough for. Two blank texts score 100, a failed row 0. The corpus score
    sums the counts of all rows; None where every text is blank. Source: Popovic 2015 and 2016,
    computed by sacrebleu (Post 2018).
    """
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    rows = list(zip(references, trials, failed, strict=True))
    scores = [_chrf_row(metric, *row) for row in rows]
    written = [(reference, trial) for reference, trial, _ in rows if (reference + trial).strip()]
    if not written:
        return scores, None
    total = metric.corpus_score([trial for _, trial in written], [[ref for ref, _ in written]])
    return scores, float(total.score)


def chrf_signature() -> str:
    """Return sacrebleu's signature of the variant that `chrf_scores` computes."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    metric.corpus_score([""], [[""]])  # the signature names the number of references
    return str(metric.get_signature())


def cosines(
    references: Sequence[str],
    trials: Sequence[str],
    failed: Sequence[bool],
    embed: Embed,
    seed: int = 0,
) -> tuple[list[float], list[float]]:
    """Return cosines of the sentence vectors of each row's two texts, and of unrelated texts.

    The second list pairs reference i with trial d(i), d a fixed derangement: the similarity of
    texts of this job that answer different rows. It is empty below two rows. Two
    blank texts have cosine 1, one blank text or a failed row 0.
    """
    distinct = sorted({*references, *trials})
    vectors = embed(distinct).astype(np.float64)
    index_of = {text: index for index, text in enumerate(distinct)}

    def cosine(left: int, right: int) -> float:
        reference, trial = references[left], trials[right]
        if not reference.strip() or not trial.strip():
            return float(not failed[right] and reference.strip() == trial.strip())
        return float(vectors[index_of[reference]] @ vectors[index_of[trial]])

    own = [cosine(row, row) for row in range(len(references))]
    return own, [cosine(row, other) for row, other in enumerate(derangement(len(references), seed))]


def derangement(count: int, seed: int) -> list[int]:
    """Return a seeded permutation without fixed points: one random cycle. Empty below two."""
    if count < 2:
        return []
    cycle = np.random.default_rng(seed).permutation(count)
    shuffled = np.empty(count, dtype=np.int64)
    shuffled[cycle] = np.roll(cycle, -1)
    return [int(index) for index in shuffled]


def _chrf_row(metric: Any, reference: str, trial: str, failed: bool) -> float:
    if failed:
        return 0.0
    if not (reference + trial).strip():
        return 100.0
    return float(metric.sentence_score(trial, [reference]).score)


def _row(
    pair: Pair, reference: Output, trial: Output, chrf: float, cosine: float | None
) -> RowQuality:
    ours, theirs, failed = trial.token_ids, reference.token_ids, pair.trial is None
    labelled = pair.label is not None and bool(normalise(pair.label))
    label = pair.label or ""
    return RowQuality(
        id=pair.id,
        failed=failed,
        identical=not failed and ours == theirs,
        first_token_equal=not failed and ours[:1] == theirs[:1],
        first_divergence=0 if failed else first_divergence(theirs, ours),
        matched_prefix=0.0 if failed else matched_prefix_share(theirs, ours),
        chrf=chrf,
        cosine=cosine,
        reference_tokens=len(theirs),
        trial_tokens=len(ours),
        reference_right=is_right(reference.text, label) if labelled else None,
        trial_right=not failed and is_right(trial.text, label) if labelled else None,
    )


def _labels(rows: Sequence[RowQuality], seed: int) -> LabelReport | None:
    reference = [row.reference_right for row in rows if row.reference_right is not None]
    trial = [row.trial_right for row in rows if row.trial_right is not None]
    return judge_labels(reference, trial, seed=seed)
