"""Measures of two rows by hand, of many rows against sacrebleu and sklearn, and planted faults."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from sacrebleu.metrics.chrf import CHRF
from sklearn.metrics import accuracy_score
from sklearn.metrics.pairwise import cosine_similarity

from packhorse.evaluation.label_matching import is_right, normalise
from packhorse.evaluation.quality import (
    Output,
    Pair,
    chrf_signature,
    compare_outputs,
    derangement,
    first_divergence,
    matched_prefix_share,
    worst_rows,
)

TEXTS = (
    "The capital of France is Paris.",
    "Jupiter is the largest planet.",
    "Water boils at a hundred degrees.",
    "She wrote the letter in May.",
    "Three plus four makes seven.",
    "No packhorse lost its load.",
)


def output(text: str) -> Output:
    return Output(tuple(text.encode()), text)


def pair(
    reference: str | None, trial: str | None, label: str | None = None, row: str = "row"
) -> Pair:
    made = [None if text is None else output(text) for text in (reference, trial)]
    return Pair(row, made[0], made[1], label)


def letters(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """An embedding to count on: letter frequencies, scaled to length 1."""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    counts = np.array([[text.lower().count(c) for c in alphabet] for text in texts], np.float32)
    scale = np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)
    return np.asarray(counts / scale, np.float32)


@pytest.mark.parametrize(
    ("reference", "trial", "divergence", "share"),
    [
        ((), (), None, 1.0),
        ((), (1,), 0, 0.0),
        ((1, 2), (), 0, 0.0),
        ((1, 2, 3, 4), (1, 2, 3, 4), None, 1.0),
        ((1, 2, 3, 4), (1, 2, 9, 4), 2, 0.5),
        ((1, 2, 3, 4), (9, 2, 3, 4), 0, 0.0),
        ((1, 2, 3, 4), (1, 2, 3), 3, 0.75),  # ends early: differs at its end
        ((1, 2), (1, 2, 3), 2, 1.0),  # goes on: whole reference matched, not identical
    ],
)
def test_prefix(
    reference: tuple[int, ...], trial: tuple[int, ...], divergence: int | None, share: float
) -> None:
    assert first_divergence(reference, trial) == divergence
    assert matched_prefix_share(reference, trial) == share


def test_empty_sample() -> None:
    report = compare_outputs([], embed=letters)
    assert (report.judged, report.identical_count, report.rows) == (0, 0, ())
    assert report.rows_identical is None
    assert report.matched_prefix is None
    assert report.chrf is None
    assert report.cosine is None
    assert report.length_ratio is None
    assert report.labels is None
    assert not report.length_flagged


def test_one_row() -> None:
    report = compare_outputs([pair("abcd", "abXX")], embed=letters)
    assert report.matched_prefix is not None
    assert (report.matched_prefix.value, report.matched_prefix.low) == (0.5, None)
    assert report.first_divergence_median == 2
    assert report.cosine_floor is None
    assert report.rows_identical is not None
    assert report.rows_identical.high == pytest.approx(0.7935, abs=1e-4)


def test_all_identical() -> None:
    report = compare_outputs([pair(text, text) for text in TEXTS], embed=letters)
    for measure, value in [
        (report.rows_identical, 1.0),
        (report.first_token_equal, 1.0),
        (report.matched_prefix, 1.0),
        (report.chrf, 100.0),
        (report.cosine, 1.0),
        (report.length_ratio, 1.0),
    ]:
        assert measure is not None
        assert measure.value == pytest.approx(value)
    assert report.first_divergence_median is None
    assert report.chrf_corpus == pytest.approx(100.0)
    assert report.cosine_floor is not None
    assert report.cosine_floor.value < 0.95
    assert worst_rows(report, 3) == []


def test_all_different() -> None:
    report = compare_outputs([pair("aaaa", "bbbbb"), pair("cccc", "ddddd")], embed=letters)
    for measure in (report.rows_identical, report.matched_prefix, report.chrf, report.cosine):
        assert measure is not None
        assert measure.value == 0.0
    assert report.first_divergence_median == 0
    assert report.length_ratio is not None
    assert report.length_ratio.value == 1.25
    assert report.length_flagged


@pytest.mark.parametrize(
    ("reference", "trial", "identical", "chrf", "cosine"),
    [
        ("", "", True, 100.0, 1.0),
        ("", "text", False, 0.0, 0.0),
        ("text", "", False, 0.0, 0.0),
        ("", " \n", False, 100.0, 1.0),
        ("", None, False, 0.0, 0.0),  # failed is not the same as empty
        ("text", None, False, 0.0, 0.0),
    ],
)
def test_blank_texts_and_failed_rows(
    reference: str, trial: str | None, identical: bool, chrf: float, cosine: float
) -> None:
    (row,) = compare_outputs([pair(reference, trial)], embed=letters).rows
    assert (row.identical, row.chrf, row.cosine) == (identical, chrf, cosine)
    assert row.failed is (trial is None)


def test_failures_are_counted_on_both_sides() -> None:
    rows = [pair("a", "a"), pair("a", None), pair(None, "a"), pair(None, None)]
    report = compare_outputs(rows)
    assert (report.judged, report.trial_failed, report.reference_failed) == (2, 1, 2)
    assert report.rows_identical is not None
    assert report.rows_identical.value == 0.5


def test_chrf_is_sacrebleu() -> None:
    trials = [text.replace("e", "a")[::-1] if i % 2 else text[:20] for i, text in enumerate(TEXTS)]
    report = compare_outputs([pair(*texts) for texts in zip(TEXTS, trials, strict=True)])
    metric = CHRF()
    expected = [
        metric.sentence_score(trial, [text]).score
        for text, trial in zip(TEXTS, trials, strict=True)
    ]
    assert [row.chrf for row in report.rows] == pytest.approx(expected)
    assert report.chrf is not None
    assert report.chrf.value == pytest.approx(np.mean(expected))
    assert report.chrf_corpus == pytest.approx(metric.corpus_score(trials, [list(TEXTS)]).score)
    assert chrf_signature().startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no")


def test_chrf_by_hand() -> None:
    """abc for abd: 1-grams 2 of 3, 2-grams 1 of 2, 3-grams 0 of 1; precision = recall, so F is
    their mean, (2/3 + 1/2 + 0) / 3 with sacrebleu's rule of averaging over the orders there are."""
    (row,) = compare_outputs([pair("abd", "abc")]).rows
    assert row.chrf == pytest.approx(100 * (2 / 3 + 1 / 2) / 3)


def test_cosine_and_its_floor_are_sklearns() -> None:
    trials = [text.upper().replace("THE", "A") for text in TEXTS]
    rows = [pair(*texts) for texts in zip(TEXTS, trials, strict=True)]
    report = compare_outputs(rows, embed=letters, seed=4)
    matrix = cosine_similarity(letters(TEXTS), letters(trials))
    assert [row.cosine for row in report.rows] == pytest.approx(np.diag(matrix).tolist())
    shuffled = matrix[range(len(TEXTS)), derangement(len(TEXTS), 4)]
    assert report.cosine_floor is not None
    assert report.cosine_floor.value == pytest.approx(shuffled.mean())
    assert report.cosine is not None
    assert report.cosine.value > report.cosine_floor.value


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 1000])
@pytest.mark.parametrize("seed", [0, 1])
def test_derangement_moves_everything(count: int, seed: int) -> None:
    shuffled = derangement(count, seed)
    assert sorted(shuffled) == (list(range(count)) if count > 1 else [])
    assert all(index != target for index, target in enumerate(shuffled))
    assert shuffled == derangement(count, seed)


def test_planted_wrong_rows_are_found() -> None:
    rows = [
        pair(f"{text} {index} and so on.", f"{text} {index} and so on!", row=str(index))
        for index, text in enumerate(TEXTS * 5)
    ]
    rows[7] = pair(TEXTS[0], "qqqq zzzz xxxx", row="planted")
    rows[21] = pair(TEXTS[1], None, row="crashed")
    report = compare_outputs(rows)
    assert [row.id for row in worst_rows(report, 2)] == ["crashed", "planted"]
    assert len(worst_rows(report, 100)) == 30


@pytest.mark.parametrize(
    ("answer", "label", "right"),
    [
        ("spam", "spam", True),
        ("  **Spam**.\n\nIt asks for money.", "spam", True),
        ("\n\nSpam. It asks for money.", "spam", True),
        ("Spam, because it asks.", "SPAM", True),
        ("[B]", "B", True),
        ("3.5", "3.5", True),
        ("3.5", "3", False),
        ("-5", "5", False),
        ("No, thanks", "no, thanks", True),
        ("No, maybe", "no, thanks", False),
        ("straße", "STRASSE", True),
        ("spam filter", "spam", False),
        ("The answer is spam", "spam", False),
        ("ham\nspam", "spam", False),
        ("", "spam", False),
        ("", "", False),
    ],
)
def test_is_right(answer: str, label: str, right: bool) -> None:
    assert is_right(answer, label) is right


def test_normalise() -> None:
    assert normalise(" “Ｓｐａｍ   Mail”!\n") == "spam mail"


def test_labels() -> None:
    rows = [
        *[pair("spam", "spam", "spam")] * 5,
        *[pair("spam", "ham", "spam")] * 6,  # right to wrong
        *[pair("ham", "spam", "spam")] * 1,  # wrong to right
        *[pair("ham", "ham", "spam")] * 2,
        pair("spam", None, "spam"),  # right to failed
        pair("spam", "ham"),  # no label
        pair("spam", "ham", "  "),
    ]
    labels = compare_outputs(rows).labels
    assert labels is not None
    assert labels.labelled == 15
    assert (labels.right_to_wrong, labels.wrong_to_right) == (7, 1)
    assert labels.mcnemar_p == pytest.approx(0.0703125)  # 2 (1 + 8) / 2^8
    truth = ["spam"] * 15
    answers = ["spam"] * 5 + ["ham"] * 6 + ["spam"] + ["ham"] * 3
    assert labels.label_accuracy.value == pytest.approx(accuracy_score(truth, answers))
    assert labels.reference_accuracy.value == pytest.approx(12 / 15)
    assert labels.accuracy_difference.value == pytest.approx(-6 / 15)
    assert labels.accuracy_difference.high is not None
    assert labels.accuracy_difference.high < 0


def test_report_is_plain_json() -> None:
    report = compare_outputs(
        [pair("spam", "ham", "spam"), pair("", None)], embed=letters, seed=3
    ).to_json()
    parsed = json.loads(json.dumps(report, allow_nan=False))
    assert parsed["rows"][1]["failed"] is True
    assert parsed["rows_identical"]["count"] == 2
    assert parsed["labels"]["right_to_wrong"] == 1
    assert (
        report
        == compare_outputs(
            [pair("spam", "ham", "spam"), pair("", None)], embed=letters, seed=3
        ).to_json()
    )
