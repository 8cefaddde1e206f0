"""Probabilities of the options of every question after every row.

Each question is asked once per order of its options, and the probabilities are averaged, so that
no option gains by its place. The prior that the model has for the options without a row is divided
out (`packhorse.evaluation.probabilities`), per order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from packhorse.data import Failure, Request, SamplingParams, Scores, Timing
from packhorse.decide.questions import Question, ask
from packhorse.evaluation.probabilities import (
    CONTENT_FREE,
    Floats,
    divide_out_prior,
    label_probabilities,
    mean_prior,
    with_temperature,
)
from packhorse.inference.model import Model
from packhorse.models import model_facts
from packhorse.profiling.run_metrics import Meter
from packhorse.tokenization import Tokenizer

_NOT_TEXT = "the row holds token ids; a question needs text or messages"
RowAnswers = dict[str, list[Floats]]
"""Name of a question -> probabilities [options] for each order, options in their own order."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is done to the probabilities that a model gives.

    Attributes:
        priors: Name of a question -> prior [options] for each order.
        temperatures: Name of a question -> temperature.
    """

    priors: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    temperatures: Mapping[str, float] = field(default_factory=dict)

    def apply(self, question: Question, answers: Sequence[Floats]) -> Floats:
        """Return the probabilities [options] of the answers to a question in all orders."""
        priors = self.priors.get(question.name)
        rows = np.array(answers)
        if priors is not None:
            pairs = zip(rows, priors, strict=True)
            rows = np.array([divide_out_prior(row[None], prior)[0] for row, prior in pairs])
        mean = rows.mean(axis=0)
        temperature = self.temperatures.get(question.name)
        return mean if temperature is None else with_temperature(mean, temperature)


class Asker:
    """Asks questions about rows with a loaded model.

    Args:
        model: The model; its engine must score.
        tokenizer: Makes the prompts.
        questions: The questions.
        most_orders: Most orders of the options of each.
        meter: Takes the numbers of tokens.
        window_rows: Most prompts that are planned together.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        questions: Sequence[Question],
        most_orders: int,
        window_rows: int,
    ) -> None:
        self._model, self._tokenizer, self._questions = model, tokenizer, questions
        self._asked = [
            (question, order) for question in questions for order in question.orders(most_orders)
        ]
        self._continuations, self._places = self._label_tokens()
        longest = max(map(len, self._continuations))
        self._decoding = SamplingParams(max_new_tokens=longest)
        self.rows_at_once = max(1, window_rows // len(self._asked))

    def _label_tokens(self) -> tuple[list[tuple[int, ...]], dict[str, list[int]]]:
        """Return the tokens of all options, each once, and the places of each question's."""
        codec = self._model.codec
        space = "" if codec.has_chat_template else " "
        ends = model_facts(self._model.prepared).eos_token_ids
        known: dict[tuple[int, ...], int] = {}
        places: dict[str, list[int]] = {}
        for question in self._questions:
            labels = [codec.encode_fragment(space + option) for option in question.options]
            begins = any(a != b and b[: len(a)] == a for a in labels for b in labels)
            if begins and ends:  # "good" and "good enough" differ by what follows "good"
                labels = [(*ids, ends[0]) for ids in labels]
            places[question.name] = [known.setdefault(tuple(ids), len(known)) for ids in labels]
        return list(known), places

    def answers(
        self, rows: Sequence[Request], stopping: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[Request, RowAnswers | Failure, Timing]]:
        """Yield each row with its answers or its failure, as they finish.

        Once `stopping` is true, rows of which a prompt has not been scored are left out.
        """
        number, submitted = len(self._asked), time.monotonic()
        is_chat = self._model.codec.has_chat_template
        requests: list[Request] = []
        for place, row in enumerate(rows):
            for order, (question, listed) in enumerate(self._asked):
                content = ask(row.content, question, listed, is_chat=is_chat)
                if content is None:
                    now = time.monotonic()
                    yield row, _failure(row, "not_text", _NOT_TEXT), Timing(submitted, now)
                    break
                index = place * number + order
                requests.append(replace(row, index=index, content=content, options={}))
        found: dict[int, dict[int, Scores]] = {}
        failed: set[int] = set()
        model, decoding = self._model, self._decoding
        passed = model.start_generation(
            self._tokenizer, decoding, model.budget(decoding), Meter(), stopping
        )
        for result in passed.scores(requests, self._continuations):
            place, order = divmod(result.index, number)
            row, timing = rows[place], Timing(submitted, time.monotonic())
            if place in failed:
                continue
            if isinstance(result, Failure):
                failed.add(place)
                found.pop(place, None)
                yield row, _failure(row, result.code, result.message), timing
                continue
            scores = found.setdefault(place, {})
            scores[order] = result
            if len(scores) == number:
                yield row, self._collected(found.pop(place)), timing

    def _collected(self, scores: Mapping[int, Scores]) -> RowAnswers:
        answers: RowAnswers = {question.name: [] for question in self._questions}
        for order, (question, _) in enumerate(self._asked):
            places = self._places[question.name]
            log_probs = np.array([[scores[order].log_probs[place] for place in places]])
            lengths = [len(self._continuations[place]) for place in places]
            answers[question.name].append(label_probabilities(log_probs, lengths)[0])
        return answers

    def priors(self) -> dict[str, list[list[float]]]:
        """Return the prior of each question's options for each order, from texts without content.

        Raises:
            EngineError: The engine does not score.
        """
        rows = [
            Request(place, place, 0, text, key=str(place))
            for place, text in enumerate(CONTENT_FREE)
        ]
        outcomes = (answers for _, answers, _ in self.answers(rows))
        found = [answers for answers in outcomes if not isinstance(answers, Failure)]
        priors: dict[str, list[list[float]]] = {}
        for question in self._questions:
            orders = zip(*(answers[question.name] for answers in found), strict=True)
            priors[question.name] = [list(mean_prior(np.array(order))) for order in orders]
        return {name: prior for name, prior in priors.items() if prior}


def _failure(row: Request, code: str, message: str) -> Failure:
    return Failure(row.index, code, message, row.id, row.line, row.key)
