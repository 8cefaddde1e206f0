"""Run the language model's contestants: zero-shot and few-shot, by constrained choice and free
text.

All choices are made on validation rows, which belong to the training part and are not examples: the
prior that is divided out, and later the prompt variant of the finalist.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from packhorse.assess.budget import plan_model_rows
from packhorse.assess.config import AssessConfig
from packhorse.assess.contestants import MODEL_TITLE, ContestantResult
from packhorse.assess.language_model import generate_labels, score_labels
from packhorse.assess.metrics import Predictions
from packhorse.assess.prompting import (
    PromptTemplate,
    count_prompt_tokens,
    draw_examples,
    fit_to_context,
    zero_shot_template,
)
from packhorse.assess.rows import LabelledRow
from packhorse.assess.saved_classifier import ModelPart
from packhorse.assess.splits import Split
from packhorse.evaluation.probabilities import CONTENT_FREE, mean_prior
from packhorse.inference.model import Model

PILOT_ROWS = 6
StageCallback = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ModelResults:
    """Results of the language model.

    Attributes:
        entries: one per prompt variant and way to answer.
        validation: indices of its validation rows in the training part.
        test: indices of its test rows in the test part.
        notes: what was left out, with reasons.
    """

    entries: tuple[ContestantResult, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    notes: tuple[str, ...] = ()


def run_model_contestants(
    model: Model, config: AssessConfig, parts: Split, report: StageCallback
) -> ModelResults:
    """Classify test and validation rows; their number follows from a timed pilot."""
    classes = sorted({row.label for row in parts.train})
    variants, used, notes = _prompt_variants(model, config, parts, classes)
    free = [index for index in range(len(parts.train)) if index not in used]
    spread = _stratified_sample([parts.train[index] for index in free], len(free), config.seed)
    order = [free[index] for index in spread]
    pilot = [parts.train[index].text for index in order[:PILOT_ROWS]]
    seconds = _seconds_per_row(model, variants.values(), pilot)
    count = plan_model_rows(
        seconds, config.max_minutes, len(parts.test), len(order), config.model_rows
    )
    report(
        f"classifying {count.test:,} test and {count.validation:,} validation rows in "
        f"{2 * len(variants)} variants, about {count.minutes:.0f} min at {seconds:.2g} s per row"
    )
    validation = tuple(sorted(order[: count.validation]))
    test = tuple(_stratified_sample(parts.test, count.test, config.seed))
    contest = _ModelContest(
        model,
        config,
        tuple(classes),
        [parts.train[index] for index in validation],
        [parts.test[index] for index in test],
        test,
        report,
    )
    entries = [contest.by_choice(variant, prompting) for variant, prompting in variants.items()]
    entries += [contest.by_free_text(variant, prompting) for variant, prompting in variants.items()]
    return ModelResults(tuple(entries), validation, test, notes)


def _prompt_variants(
    model: Model, config: AssessConfig, parts: Split, classes: Sequence[str]
) -> tuple[dict[str, PromptTemplate], frozenset[int], tuple[str, ...]]:
    """Return prompts by name, the indices of training rows used as examples, and notes.

    Examples may take half of the model's context; if those of all classes do not fit, there are
    fewer per class, down to none.
    """
    zero = zero_shot_template(
        config.instruction, config.label_names, classes, config.max_text_tokens
    )
    context = model.capabilities.max_context
    for shots in range(config.shots, 0, -1):
        examples, used = draw_examples(parts.train, shots, model.codec, config.seed)
        few = replace(zero, examples=examples)
        if count_prompt_tokens(few, model.codec) <= context / 2:
            variants = {"zero-shot": zero, "few-shot": few}
            return (
                {
                    name: fit_to_context(variant, model.codec, context)
                    for name, variant in variants.items()
                },
                used,
                (),
            )
    notes: tuple[str, ...] = ()
    if config.shots:
        notes = (
            f"There is no few-shot prompt: one example of each of {len(classes)} labels takes more "
            f"than half of the model's context of {context:,} tokens.",
        )
    return {"zero-shot": fit_to_context(zero, model.codec, context)}, frozenset(), notes


@dataclass(frozen=True, slots=True)
class _ModelContest:
    model: Model
    config: AssessConfig
    classes: tuple[str, ...]
    validation: Sequence[LabelledRow]
    test: Sequence[LabelledRow]
    indices: tuple[int, ...]
    report: StageCallback

    def by_choice(self, variant: str, prompting: PromptTemplate) -> ContestantResult:
        """Classify by constrained choice with the prior that is best on the validation rows."""
        self.report(f"{variant}, constrained choice")
        known = score_labels(self.model, prompting, _texts(self.validation))
        nothing = score_labels(self.model, prompting, CONTENT_FREE)
        priors: dict[str, tuple[float, ...] | None] = {
            "texts": mean_prior(known.known),
            "content-free": mean_prior(nothing.known),
            "none": None,
        }
        tried = {name: known.predictions(self.classes, prior) for name, prior in priors.items()}
        accuracies = {name: self._accuracy(predicted) for name, predicted in tried.items()}
        best = max(accuracies, key=lambda name: accuracies[name])
        asked = score_labels(self.model, prompting, _texts(self.test))
        predicted = asked.predictions(self.classes, priors[best])
        return ContestantResult(
            name=f"{variant}-choice",
            title=f"{MODEL_TITLE}, {variant}, constrained choice",
            kind="model",
            predictions=predicted,
            indices=self.indices,
            validated=accuracies[best],
            validated_on=f"{len(self.validation)} validation rows",
            settings={
                "prior divided out": best,
                "accuracy by prior": ", ".join(
                    f"{name}: {value:.3f}" for name, value in accuracies.items()
                ),
                "examples": str(len(prompting.examples)),
            },
            part=self._part(prompting, "choice", priors[best]),
            spent=asked.spent,
            validation=tried[best],
        )

    def by_free_text(self, variant: str, prompting: PromptTemplate) -> ContestantResult:
        """Classify by free text."""
        self.report(f"{variant}, free text")
        known = generate_labels(self.model, prompting, _texts(self.validation))
        asked = generate_labels(self.model, prompting, _texts(self.test))
        return ContestantResult(
            name=f"{variant}-text",
            title=f"{MODEL_TITLE}, {variant}, free text",
            kind="model",
            predictions=asked.predictions,
            indices=self.indices,
            validated=self._accuracy(known.predictions),
            validated_on=f"{len(self.validation)} validation rows",
            settings={"examples": str(len(prompting.examples))},
            part=self._part(prompting, "text", None),
            spent=asked.spent,
            validation=known.predictions,
        )

    def _accuracy(self, predicted: Predictions) -> float:
        return float(predicted.is_correct([row.label for row in self.validation]).mean())

    def _part(
        self, prompting: PromptTemplate, answers: str, prior: tuple[float, ...] | None
    ) -> ModelPart:
        return ModelPart(
            model=self.config.model,
            fingerprint=self.model.prepared.fingerprint,
            engine=replace(self.config.engine, engine=self.model.prepared.engine),
            answers="choice" if answers == "choice" else "text",
            prompting=prompting,
            prior=prior,
        )


def _seconds_per_row(
    model: Model, variants: Collection[PromptTemplate], texts: Sequence[str]
) -> float:
    """Return mean seconds of a constrained choice over the prompts, without a first pass each."""
    seconds = []
    for prompting in variants:
        score_labels(model, prompting, texts[:1])
        started = time.perf_counter()
        score_labels(model, prompting, texts)
        seconds.append((time.perf_counter() - started) / len(texts))
    return sum(seconds) / len(seconds)


def _stratified_sample(rows: Sequence[LabelledRow], count: int, seed: int) -> list[int]:
    """Return `count` indices in random order with the classes in proportion."""
    rng = random.Random(seed)  # noqa: S311 - a sample, no secret
    by_class: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_class.setdefault(row.label, []).append(index)
    dealt = []
    for _, indices in sorted(by_class.items()):
        rng.shuffle(indices)
        turns = [(turn + rng.random()) / len(indices) for turn in range(len(indices))]
        dealt += list(zip(turns, indices, strict=True))
    return [index for _, index in sorted(dealt)][:count]


def _texts(rows: Sequence[LabelledRow]) -> list[str]:
    return [row.text for row in rows]
