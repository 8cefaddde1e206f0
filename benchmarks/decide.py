"""Answers of `packhorse decide` against generated ones, on labelled rows of your own.

    python benchmarks/decide.py mails.csv --text-column text --label-column label \
        --question "Is this mail spam or ham?" --options spam,ham

Half of the rows fit the temperature, the other half are judged. Both ways run on the same engine,
one after the other, in this process; the times are those of the rows alone, without loading.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import packhorse
from packhorse import EngineConfig, InputConfig
from packhorse.data import Completion
from packhorse.decide.job import DecideConfig, decide
from packhorse.inputs import read_fields


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--engine", default="packed")
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--question", required=True)
    parser.add_argument("--options", required=True, help="the labels, with commas between them")
    parser.add_argument("--number", type=int, default=200, help="rows: half fit, half are judged")
    parser.add_argument("--characters", type=int, default=1500, help="of each text")
    given = parser.parse_args()
    names = [given.text_column, given.label_column]
    rows = [row.values for row in read_fields(given.rows, names) if len(row.values) == len(names)]
    random.Random(1).shuffle(rows)  # noqa: S311 - a sample
    chosen = [
        {"prompt": row[given.text_column][: given.characters], "answer": row[given.label_column]}
        for row in rows[: given.number]
    ]
    options = given.options.split(",")
    engine = EngineConfig(engine=given.engine, quantization=given.quantization)
    half = len(chosen) // 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, part in (("fit.jsonl", chosen[:half]), ("test.jsonl", chosen[half:])):
            text = "".join(json.dumps(row) + "\n" for row in part)
            (folder / file).write_text(text)
        question = {"name": "answer", "question": given.question, "options": options}
        (folder / "questions.jsonl").write_text(json.dumps(question) + "\n")
        report = decide(
            DecideConfig(
                model=given.model,
                input=str(folder / "test.jsonl"),
                output=folder / "out.jsonl",
                questions=folder / "questions.jsonl",
                labels=folder / "fit.jsonl",
                engine=engine,
                reading=InputConfig(prompt_column="prompt"),
            )
        )
        assert report.session is not None
        assert report.resolved is not None
        decided = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    truth = [row["answer"] for row in chosen[half:]]
    known = [(row, label) for row, label in zip(decided, truth, strict=True) if "error" not in row]
    brier = sum(
        sum((p - (option == label)) ** 2 for option, p in row["answer_probabilities"].items())
        for row, label in known
    ) / len(known)
    right = sum(row["answer"] == label for row, label in known)
    seconds = report.session["seconds"]["generate"]
    print(json.dumps(report.resolved["questions"], indent=1))
    print(f"decide     {len(truth) / seconds:7.2f} rows/s  accuracy {right / len(known):.3f}  "
          f"Brier {brier:.3f}  ({len(known)} of {len(truth)} rows)")  # fmt: skip
    listed = ", ".join(options)
    prompts = [
        f"{row['prompt']}\n\n{given.question}\nAnswer with exactly one of: {listed}."
        for row in chosen[half:]
    ]
    with packhorse.load(given.model, engine=engine) as model:
        started = time.perf_counter()
        found = {each.index: each for each in model.generate(prompts, max_new_tokens=16)}
        seconds = time.perf_counter() - started
    texts = [each.text if isinstance(each := found[n], Completion) else "" for n in sorted(found)]
    guessed = [next((o for o in options if o.lower() in text.lower()), None) for text in texts]
    right = sum(one == other for one, other in zip(guessed, truth, strict=True))
    unread = guessed.count(None)
    print(f"generate   {len(truth) / seconds:7.2f} rows/s  accuracy {right / len(truth):.3f}  "
          f"({unread} answers name no option)")  # fmt: skip


if __name__ == "__main__":
    main()
