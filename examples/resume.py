"""Run a file as a job: interrupt it at any time, run it again, and it continues.

python examples/resume.py INPUT OUTPUT [--model MODEL] [--engine ENGINE]
"""

import argparse
import sys
from pathlib import Path

import packhorse


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("input")
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--engine", default="auto")
    arguments = parser.parse_args()
    job = packhorse.JobConfig(
        model=arguments.model,
        input=arguments.input,
        output=arguments.output,
        engine=packhorse.EngineConfig(engine=arguments.engine),
    )
    try:
        counts = packhorse.run(job).counts
    except packhorse.Interrupted:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        return 130
    except packhorse.PackhorseError as error:
        print(f"{error}: {error.hint}", file=sys.stderr)
        return 2
    print(f"{counts.completed} completed, {counts.failed} failed: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
