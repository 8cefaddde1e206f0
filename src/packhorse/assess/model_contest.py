"""The model's side of the contest: zero-shot and few-shot, by constrained choice and free text.

Everything that is chosen is chosen on validation rows, which are of the training part and are no
examples: which prior is divided out of a choice, and later which way of asking is the finalist.
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
from packhorse.assess.priors import CONTENT_FREE, mean_prior
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
from packhorse.inference.model import Model

PILOT_ROWS = 6
StageCallback = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ModelResults:
    """entries: one a way of asking. validation: places of the training part they were asked too.
    test: places of the test part. notes: what was left out, and why."""

    entries: tuple[ContestantResult, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    notes: tuple[str, ...] = ()


def run_model_contestants(
    model: Model, config: AssessConfig, parts: Split, report: StageCallback
) -> ModelResults:
    """Asks the model; how many rows follows from what a few of them take."""
    classes = sorted({row.label for row in parts.train})
    ways, used, notes = _prompt_variants(model, config, parts, classes)
    free = [place for place in range(len(parts.train)) if place not in used]
    spread = _stratified_sample([parts.train[place] for place in free], len(free), config.seed)
    order = [free[place] for place in spread]
    pilot = [parts.train[place].text for place in order[:PILOT_ROWS]]
    seconds = _seconds_per_row(model, ways.values(), pilot)
    count = plan_model_rows(
        seconds, config.max_minutes, len(parts.test), len(order), config.model_rows
    )
    report(
        f"asking the model {count.test:,} test and {count.validation:,} validation rows in "
        f"{2 * len(ways)} ways, about {count.minutes:.0f} min at {seconds:.2g} s a row"
    )
    validation = tuple(sorted(order[: count.validation]))
    test = tuple(_stratified_sample(parts.test, count.test, config.seed))
    contest = _ModelContest(
        model,
        config,
        tuple(classes),
        [parts.train[place] for place in validation],
        [parts.test[place] for place in test],
        test,
        report,
    )
    entries = [contest.by_choice(way, prompting) for way, prompting in ways.items()]
    entries += [contest.by_free_text(way, prompting) for way, prompting in ways.items()]
    return ModelResults(tuple(entries), validation, test, notes)


def _prompt_variants(
    model: Model, config: AssessConfig, parts: Split, classes: Sequence[str]
) -> tuple[dict[str, PromptTemplate], frozenset[int], tuple[str, ...]]:
    """Promptings by name, the places of training rows that are examples, and what must be said.

    Examples may take half of the model's context; where those of all classes do not fit into it,
    there are fewer of each, and at last none.
    """
    zero = zero_shot_template(
        config.instruction, config.label_names, classes, config.max_text_tokens
    )
    context = model.capabilities.max_context
    for shots in range(config.shots, 0, -1):
        examples, used = draw_examples(parts.train, shots, model.codec, config.seed)
        few = replace(zero, examples=examples)
        if count_prompt_tokens(few, model.codec) <= context / 2:
            ways = {"zero-shot": zero, "few-shot": few}
            return (
                {name: fit_to_context(way, model.codec, context) for name, way in ways.items()},
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
    places: tuple[int, ...]
    report: StageCallback

    def by_choice(self, way: str, prompting: PromptTemplate) -> ContestantResult:
        """Constrained choice, with the prior that serves the validation rows best."""
        self.report(f"{way}, constrained choice")
        known = score_labels(self.model, prompting, _texts(self.validation))
        nothing = score_labels(self.model, prompting, CONTENT_FREE)
        priors: dict[str, tuple[float, ...] | None] = {
            "texts": mean_prior(known.known),
            "content-free": mean_prior(nothing.known),
            "none": None,
        }
        tried = {name: known.predictions(self.classes, prior) for name, prior in priors.items()}
        accuracies = {name: self._accuracy(said) for name, said in tried.items()}
        best = max(accuracies, key=lambda name: accuracies[name])
        asked = score_labels(self.model, prompting, _texts(self.test))
        said = asked.predictions(self.classes, priors[best])
        return ContestantResult(
            name=f"{way}-choice",
            title=f"{MODEL_TITLE}, {way}, constrained choice",
            kind="model",
            predictions=said,
            places=self.places,
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

    def by_free_text(self, way: str, prompting: PromptTemplate) -> ContestantResult:
        """Free text."""
        self.report(f"{way}, free text")
        known = generate_labels(self.model, prompting, _texts(self.validation))
        asked = generate_labels(self.model, prompting, _texts(self.test))
        return ContestantResult(
            name=f"{way}-text",
            title=f"{MODEL_TITLE}, {way}, free text",
            kind="model",
            predictions=asked.predictions,
            places=self.places,
            validated=self._accuracy(known.predictions),
            validated_on=f"{len(self.validation)} validation rows",
            settings={"examples": str(len(prompting.examples))},
            part=self._part(prompting, "text", None),
            spent=asked.spent,
            validation=known.predictions,
        )

    def _accuracy(self, said: Predictions) -> float:
        return float(said.is_correct([row.label for row in self.validation]).mean())

    def _part(
        self, prompting: PromptTemplate, answers: str, prior: tuple[float, ...] | None
    ) -> ModelPart:
        return ModelPart(
            model=self.config.model,
            fingerprint=self.model.prepared.fingerprint,
            engine=self.config.engine,
            answers="choice" if answers == "choice" else "text",
            prompting=prompting,
            prior=prior,
        )


def _seconds_per_row(model: Model, ways: Collection[PromptTemplate], texts: Sequence[str]) -> float:
    """Mean seconds of a constrained choice over the ways, the first pass of each not counted."""
    seconds = []
    for prompting in ways:
        score_labels(model, prompting, texts[:1])
        started = time.perf_counter()
        score_labels(model, prompting, texts)
        seconds.append((time.perf_counter() - started) / len(texts))
    return sum(seconds) / len(seconds)


def _stratified_sample(rows: Sequence[LabelledRow], count: int, seed: int) -> list[int]:
    """`count` places in random order, each class in proportion: classes are dealt out evenly."""
    chance = random.Random(seed)  # noqa: S311 - a sample, no secret
    by_class: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        by_class.setdefault(row.label, []).append(place)
    dealt = []
    for _, places in sorted(by_class.items()):
        chance.shuffle(places)
        turns = [(turn + chance.random()) / len(places) for turn in range(len(places))]
        dealt += list(zip(turns, places, strict=True))
    return [place for _, place in sorted(dealt)][:count]


def _texts(rows: Sequence[LabelledRow]) -> list[str]:
    return [row.text for row in rows]
