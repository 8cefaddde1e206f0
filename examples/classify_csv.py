"""Label the rows of a CSV file: the most probable of a few labels, without generating text.

python examples/classify_csv.py [MODEL]
"""

import csv
import sys
from pathlib import Path

import packhorse

LABELS = ("billing", "delivery", "damage")
INSTRUCTION = "Which topic is this support ticket about: billing, delivery or damage?\n\n"


TICKETS = Path(__file__).with_name("tickets.csv")


def main(model_name: str) -> None:
    with TICKETS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with packhorse.load(model_name) as model:
        prompts = [INSTRUCTION + row["ticket"] for row in rows]
        scored = {}
        for outcome in model.score(prompts, LABELS):
            if isinstance(outcome, packhorse.Failure):
                print(rows[outcome.index]["id"], outcome.message, file=sys.stderr)
            else:
                scored[outcome.index] = outcome.log_probs
    writer = csv.writer(sys.stdout)
    writer.writerow(("id", "label"))
    for index, log_probs in sorted(scored.items()):
        writer.writerow((rows[index]["id"], LABELS[log_probs.index(max(log_probs))]))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")
