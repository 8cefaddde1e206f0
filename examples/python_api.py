"""Generate from Python: completions as they finish, and one error per bad prompt.

python examples/python_api.py [MODEL]
"""

import sys

import packhorse

PROMPTS = [
    "Name three uses of a brick.",
    "word " * 20_000,  # longer than the model's context: this row fails, the others run
    [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "What is the capital of France?"},
    ],
]


def main(model_name: str) -> None:
    with packhorse.load(model_name) as model:
        for outcome in model.generate(PROMPTS, max_new_tokens=24):
            if isinstance(outcome, packhorse.Failure):
                print(outcome.index, outcome.code, outcome.message)
            else:
                print(outcome.index, outcome.finish_reason, repr(outcome.text))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")
