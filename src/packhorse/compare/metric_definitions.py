"""The measures of a comparison: what each is called, counted in and means."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.reports.formats import Format, count, gigabytes, number, one_decimal, percent, score


@dataclass(frozen=True, slots=True)
class Metric:
    """A key of `Trial.speed` or `Trial.quality` for people.

    unit: goes into headings; "" where the format says it. more: True where more is better, None
    where neither is. meaning: the definition, one sentence.
    """

    name: str
    label: str
    unit: str
    form: Format
    more: bool | None
    meaning: str

    @property
    def heading(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label


# fmt: off
_LATENCY = "from the moment the engine takes the row's batch to the row's last token"
SPEED = (
    Metric("generate_seconds", "Generate", "s", number, False,
            "wall seconds of the generation stage; loading and warming up are not part of it"),
    Metric("wall_seconds", "Wall", "s", number, False,
            "wall seconds of the whole process, from its start to its end"),
    Metric("load_seconds", "Load", "s", number, False,
            "wall seconds until the model could take its first row"),
    Metric("rows_per_second", "Rows", "rows/s", number, True,
            "rows answered / generate seconds"),
    Metric("total_tokens_per_second", "All tokens", "tokens/s", number, True,
            "(prompt tokens + generated tokens) / generate seconds"),
    Metric("prompt_tokens_per_second", "Prompt tokens", "tokens/s", number, True,
            "prompt tokens / generate seconds"),
    Metric("generated_tokens_per_second", "New tokens", "tokens/s", number, True,
            "generated tokens / generate seconds"),
    Metric("latency_p50", "Latency p50", "s", number, False,
            f"median over rows of the seconds {_LATENCY}"),
    Metric("latency_p95", "Latency p95", "s", number, False,
            f"19 of 20 rows took at most this long {_LATENCY}"),
    Metric("latency_p99", "Latency p99", "s", number, False,
            "99 of 100 rows took at most this long; not given for fewer than 100 rows"),
    Metric("first_token_p50", "First token p50", "s", number, False,
            "median seconds to the row's first token, where the engine can tell"),
    Metric("first_token_p95", "First token p95", "s", number, False,
            "19 of 20 rows had their first token within this time"),
    Metric("seconds_per_token_p50", "Per token p50", "s", number, False,
            "median over rows of the seconds between two tokens after the first"),
    Metric("peak_memory_bytes", "Peak memory", "GB", gigabytes, False,
            "largest resident memory of the trial's process tree (1 GB = 10⁹ bytes)"),
    Metric("processor_seconds", "CPU", "s", number, False,
            "user and system time of the trial's processes"),
    Metric("energy_joules", "Energy", "J", number, False,
            "energy of the processor package, measured by RAPL; absent where it cannot be read"),
    Metric("padding_share", "Padding", "", percent, False,
            "padding / all prompt positions computed"),
    Metric("token_by_token_prefill_share", "Forced", "", percent, False,
            "prompt tokens computed one step at a time, because the engine computes only the "
            "shortest prompt's length of a batch at once / all prompt tokens"),
    Metric("batches", "Batches", "", count, None, "batches the rows were cut into"),
    Metric("generated_tokens", "Generated", "tokens", count, None, "tokens generated in all"),
)
QUALITY = (
    Metric("rows_identical", "Rows identical", "", percent, True,
            "rows with exactly the reference's tokens / rows; a row the trial failed counts as "
            "different"),
    Metric("first_token_equal", "First token equal", "", percent, True,
            "rows whose first token is the reference's / rows"),
    Metric("matched_prefix", "Matched prefix", "", score, True,
            "mean over rows of (tokens before the first difference / tokens of the reference)"),
    Metric("chrf", "chrF", "", one_decimal, True,
            "mean over rows of the F-score of character n-grams against the reference's text, 0 to "
            "100 (sacrebleu)"),
    Metric("cosine", "Cosine", "", score, True,
            "mean cosine similarity of sentence embeddings of the two texts; its floor is what "
            "shuffled, unrelated pairs reach"),
    Metric("kl_divergence", "KL", "nats", number, False,
            "mean Kullback-Leibler divergence of the next-token distributions, both models reading "
            "the reference's text"),
    Metric("top1_agreement", "Top-1 agreement", "", percent, True,
            "positions of the reference's text where both models find the same token most likely"),
    Metric("label_accuracy", "Label accuracy", "", percent, True,
            "rows whose answer is the row's label / rows"),
)
# fmt: on
GENERAL_NOTES = (
    "Every trial runs in a process of its own, after a warm-up, the repeats of all trials "
    "interleaved, so that a minute in which the machine is slow is slow for all of them.",
    "Speed figures are medians over the repeats. The interval beside one holds the middle of what "
    "would be measured again; with fewer than 6 repeats it is the smallest and the largest value.",
    "Accuracy figures are means over rows with 95% intervals: what other rows of the same kind "
    "would have given. They say how close a trial stays to the reference, not how good it is.",
    "Two trials are tied when their difference is inside the noise of the repeats.",
    "The Pareto front holds the trials that no other beats in throughput and matched prefix at "
    "once; its knee is where more speed starts to cost much accuracy.",
)
_BY_NAME = {measure.name: measure for measure in SPEED + QUALITY}


def measure(name: str) -> Metric:
    """The measure of a documented key."""
    return _BY_NAME[name]
