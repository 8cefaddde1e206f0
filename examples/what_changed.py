"""Show what a faster run of the same rows changed in their answers.

python examples/what_changed.py REFERENCE OUTPUT [--embeddings MODEL]

REFERENCE and OUTPUT are outputs of two finished `packhorse run` commands over one input.
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

import packhorse
from packhorse.compare.trial import read_rows
from packhorse.evaluation.quality import Output, Pair, compare_outputs

EXAMPLES = 2
SHOWN = 240


def answers(path):
    """Return the answer of each row by id, None for a row that failed."""
    return {
        row.id: None if row.token_ids is None else Output(row.token_ids, row.text or "")
        for row in read_rows(path)
    }


def figures(path):
    """Return a name and the measurements of a run, from the manifest beside its output."""
    manifest = json.loads(path.with_name(f"{path.name}.manifest.json").read_text())
    resolved, session = manifest["resolved"], manifest["session"]
    if session is None:
        sys.exit(f"{path} was finished earlier: run it again into another file to measure it")
    return f"{resolved['engine']} {resolved['compute_type']}", session


def differing(texts):
    """Return two texts, with what follows their common beginning in bold."""
    pairs = zip(*texts, strict=False)
    same = next((at for at, (one, other) in enumerate(pairs) if one != other), len(texts[0]))
    return [
        Text.assemble((text[max(0, same - SHOWN) : same], "dim"), (text[same:][:SHOWN], "bold"))
        for text in texts
    ]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("reference", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--embeddings", help="sentence encoder, to compare meanings as well")
    arguments = parser.parse_args()
    embed = None
    if arguments.embeddings:
        from packhorse.embeddings import SentenceEncoder
        from packhorse.models import prepare_embedding_model

        embed = SentenceEncoder(prepare_embedding_model(arguments.embeddings)).embed
    paths = (arguments.reference, arguments.output)
    reference, other = map(answers, paths)
    pairs = [Pair(row, reference[row], other[row]) for row in reference if row in other]
    report = compare_outputs(pairs, embed=embed)
    names, sessions = zip(*map(figures, paths), strict=True)

    table = Table("", *names, title=f"the same {len(pairs)} rows", title_justify="left")
    generating = [each["seconds"]["generate"] for each in sessions]
    table.add_row("seconds to generate", *(f"{each:.1f}" for each in generating))
    table.add_row("times as fast", "1", f"{generating[0] / generating[1]:.1f}")
    table.add_row(
        "generated tokens per second",
        *(f"{each['generated_tokens_per_second']:,.0f}" for each in sessions),
    )
    peaks = [each["peak_memory_bytes"] / 1e9 for each in sessions]
    table.add_row("peak memory", *(f"{each:.2f} GB" for each in peaks))
    table.add_row("identical rows", "", f"{report.identical_count} of {report.judged}")
    if report.judged:
        table.add_row("matched prefix of a row", "", f"{report.matched_prefix.value:.0%}")
        table.add_row("chrF (100 is equal)", "", f"{report.chrf.value:.0f}")
    if report.cosine and report.cosine_floor:
        floor = f"unrelated answers: {report.cosine_floor.value:.2f}"
        table.add_row("cosine similarity", floor, f"{report.cosine.value:.2f}")
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    changed = [row.id for row in report.rows if not row.identical and not row.failed]
    for row in changed[:: max(1, len(changed) // EXAMPLES)][:EXAMPLES]:
        example = Table(title=f"row {row}", title_justify="left", show_header=False)
        for name, text in zip(
            names, differing([reference[row].text, other[row].text]), strict=True
        ):
            example.add_row(name, text)
        console.print(example)


if __name__ == "__main__":
    try:
        main()
    except packhorse.PackhorseError as error:
        sys.exit(f"{error}: {error.hint}")
