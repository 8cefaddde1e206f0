"""Find the sentences most like a question, by vectors from a local server.

packhorse serve smollm2-135m-instruct --embeddings all-minilm-l6-v2 &
python examples/embeddings.py [URL]
"""

import sys

from openai import OpenAI

SENTENCES = [
    "The parcel should have been here on Tuesday.",
    "One leg of the table is broken.",
    "I was charged twice for the same order.",
]
QUESTION = "Where is my delivery?"


def main(url: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.list().data[-1].id  # the sentence encoder is listed after the generator
    answer = client.embeddings.create(model=model, input=[QUESTION, *SENTENCES])
    question, *others = [item.embedding for item in answer.data]
    scores = [sum(a * b for a, b in zip(question, other, strict=True)) for other in others]
    for score, sentence in sorted(zip(scores, SENTENCES, strict=True), reverse=True):
        print(f"{score:.3f}  {sentence}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
