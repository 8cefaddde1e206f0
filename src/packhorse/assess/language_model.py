"""Classify with a language model: by constrained choice or by free text.

Constrained choice: the probability of each label as the answer (`Scorer` of the engine), averaged
over its tokens, with the model's prior divided out. Free text: a label is extracted from the
generated text.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from packhorse.assess.metrics import Predictions
from packhorse.assess.prompting import PromptTemplate
from packhorse.data import Completion, Failure, SamplingParams
from packhorse.evaluation.label_matching import is_right, normalise
from packhorse.evaluation.probabilities import divide_out_prior, label_probabilities
from packhorse.inference.model import Model
from packhorse.inference.prompts import requests_of
from packhorse.models import model_facts
from packhorse.profiling.run_metrics import Meter
from packhorse.tokenization import Tokenizer

Floats = npt.NDArray[np.float64]

FREE_TEXT_TOKENS = 12
"""New tokens beyond the longest label."""
ShouldStop = Callable[[], bool]


def never_stop() -> bool:
    """Never stop; the default of a pass that runs to its end."""
    return False


@dataclass(frozen=True, slots=True)
class TimeSpent:
    """Wall seconds of rows, and core-seconds of this process."""

    rows: int
    seconds: float
    core_seconds: float


@dataclass(frozen=True, slots=True)
class LabelScores:
    """Constrained choice before a prior is divided out; probabilities: [rows, classes], nan for a
    failed row.
    """

    probabilities: Floats
    spent: TimeSpent

    @property
    def known(self) -> Floats:
        """The probabilities of the rows that did not fail."""
        return self.probabilities[~np.isnan(self.probabilities[:, 0])]

    def predictions(self, classes: Sequence[str], prior: Sequence[float] | None) -> Predictions:
        """Return the most probable labels, with a prior divided out if there is one.

        A failed row has no label and equal probabilities.
        """
        failed = np.isnan(self.probabilities[:, 0])
        known = np.where(failed[:, None], 1.0 / len(classes), self.probabilities)
        probabilities = known if prior is None else divide_out_prior(known, prior)
        probabilities[failed] = 1.0 / len(classes)
        best = probabilities.argmax(axis=1)
        rows = zip(best.tolist(), failed.tolist(), strict=True)
        labels = tuple(None if bad else classes[index] for index, bad in rows)
        return Predictions(labels, probabilities, int(failed.sum()))


def score_labels(model: Model, prompting: PromptTemplate, texts: Sequence[str]) -> LabelScores:
    """Score every label after every text; raises EngineError if the engine cannot score."""
    found = np.full((len(texts), len(prompting.names)), np.nan)
    started, cores = time.perf_counter(), time.process_time()
    for index, result in iter_label_scores(model, prompting, texts):
        if not isinstance(result, Failure):
            found[index] = result
    return LabelScores(found, _spent(len(texts), started, cores))


def iter_label_scores(
    model: Model, prompting: PromptTemplate, texts: Sequence[str], stopping: ShouldStop = never_stop
) -> Iterator[tuple[int, Floats | Failure]]:
    """Yield the index of each text with its probabilities [classes] or its failure, as they finish.

    Once `stopping` is true, no further texts are begun.
    """
    codec = model.codec
    labels = [codec.encode_fragment(each) for each in prompting.continuations(codec)]
    labels = _prefix_free(labels, model)
    decoding = SamplingParams(max_new_tokens=max(map(len, labels)))
    budget = model.budget(decoding)
    tokenizer = Tokenizer(codec, now=model.now())
    generation_run = model.start_generation(tokenizer, decoding, budget, Meter(), stopping)
    lengths = [len(ids) for ids in labels]
    for result in generation_run.scores(requests_of(prompting.prompts(texts, codec)), labels):
        if isinstance(result, Failure):
            yield result.index, result
        else:
            yield result.index, label_probabilities(np.array([result.log_probs]), lengths)[0]


def _prefix_free(labels: list[tuple[int, ...]], model: Model) -> list[tuple[int, ...]]:
    """Append the end token to labels if one is a prefix of another ("good", "good enough")."""
    begins = any(one != other and other[: len(one)] == one for one in labels for other in labels)
    ends = model_facts(model.prepared).eos_token_ids
    return [(*ids, ends[0]) for ids in labels] if begins and ends else labels


@dataclass(frozen=True, slots=True)
class GeneratedLabels:
    """Labels extracted from free text."""

    predictions: Predictions
    spent: TimeSpent


def generate_labels(
    model: Model, prompting: PromptTemplate, texts: Sequence[str]
) -> GeneratedLabels:
    """Generate an answer after every text and extract a label with `extract_label`."""
    labels: list[str | None] = [None] * len(texts)
    failed = 0
    started, cores = time.perf_counter(), time.process_time()
    for index, result in iter_generated_texts(model, prompting, texts):
        if isinstance(result, Failure):
            failed += 1
        else:
            labels[index] = extract_label(result, prompting.names)
    return GeneratedLabels(
        Predictions(tuple(labels), None, failed), _spent(len(texts), started, cores)
    )


def iter_generated_texts(
    model: Model, prompting: PromptTemplate, texts: Sequence[str], stopping: ShouldStop = never_stop
) -> Iterator[tuple[int, str | Failure]]:
    """Yield the index of each text with the generated text or its failure."""
    codec = model.codec
    longest = max(len(codec.encode_fragment(each)) for each in prompting.continuations(codec))
    decoding = SamplingParams(max_new_tokens=longest + FREE_TEXT_TOKENS)
    budget = model.budget(decoding)
    tokenizer = Tokenizer(codec, now=model.now())
    generation_run = model.start_generation(tokenizer, decoding, budget, Meter(), stopping)
    for outcome in generation_run.outcomes(requests_of(prompting.prompts(texts, codec))):
        yield outcome.index, outcome.text if isinstance(outcome, Completion) else outcome


def extract_label(text: str, names: Sequence[tuple[str, str]]) -> str | None:
    """Return the label that an answer contains, or None.

    The label that equals the answer's first line or first clause; else the only label that occurs
    in it as whole words. Longer names are matched before those they contain.
    """
    for label, words in names:
        if is_right(text, words):
            return label
    left, found = normalise(text), []
    for label, words in sorted(names, key=lambda name: -len(name[1])):
        pattern = rf"(?<!\w){re.escape(normalise(words))}(?!\w)"
        if normalise(words) and re.search(pattern, left):
            found.append(label)
            left = re.sub(pattern, " ", left)
    return found[0] if len(found) == 1 else None


def _spent(rows: int, started: float, cores: float) -> TimeSpent:
    return TimeSpent(rows, time.perf_counter() - started, time.process_time() - cores)
