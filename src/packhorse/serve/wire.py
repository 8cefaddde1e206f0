"""What the server and its engine's process say to each other, as JSON.

to the engine      batch (rows to run), cancel (rows nobody waits for), stop
from the engine    ready (loaded), refused (cannot be loaded), report (a line for people),
                   room (send a batch), token, done, failed (one row each)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from packhorse.batching.memory import TokenBudget
from packhorse.calibration import Calibration
from packhorse.config import BatchingConfig
from packhorse.data import Batch, Prompt, ReasoningTokens, SamplingParams, Timing, TokenLogProbs
from packhorse.engine_protocol import EngineCapabilities
from packhorse.inference.model import Model
from packhorse.serve.channel import Message
from packhorse.serve.request_queue import Batching


def batch_message(batch: Batch) -> Message:
    rows = [
        [
            prompt.index,
            prompt.token_ids,
            asdict(prompt.decoding),
            None if prompt.reasoning is None else asdict(prompt.reasoning),
        ]
        for prompt in batch.prompts
    ]
    return {"kind": "batch", "shared_prefix": batch.shared_prefix, "rows": rows}


def read_batch(message: Message) -> Batch:
    prompts = tuple(
        Prompt(
            index,
            tuple(ids),
            SamplingParams(**decoding),
            None if reasoning is None else _reasoning_tokens(reasoning),
        )
        for index, ids, decoding, reasoning in message["rows"]
    )
    return Batch(prompts, message["shared_prefix"])


def _reasoning_tokens(values: dict[str, Any]) -> ReasoningTokens:
    lists = {name: tuple(values[name]) for name in ("token_ids", "end", "start")}
    return ReasoningTokens(limit=values["limit"], **lists)


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """What a loaded engine says of itself. description: the line `packhorse run` prints."""

    batching: Batching
    description: str


def ready_message(model: Model, budget: TokenBudget, description: str) -> Message:
    return {
        "kind": "ready",
        "capabilities": asdict(model.capabilities),
        "batching": asdict(model.batching),
        "budget": budget.to_json(),
        "calibration": model.calibration.to_json() if model.calibration else None,
        "description": description,
    }


def read_ready(message: Message) -> LoadedEngine:
    known = message["calibration"]
    costs = Calibration.from_json(known).costs() if known else None
    chosen = BatchingConfig(**message["batching"])
    limits = TokenBudget(**message["budget"]).limits(chosen, costs)
    values = message["capabilities"]
    fields = tuple(values["sampling_fields"])
    capabilities = EngineCapabilities(**{**values, "sampling_fields": fields})
    batching = Batching(capabilities, chosen.policy, limits, chosen.share_prefixes)
    return LoadedEngine(batching, message["description"])


def log_probs_values(token: TokenLogProbs) -> list[Any]:
    return [token.log_prob, token.alternatives]


def read_log_probs(token_id: int, values: list[Any]) -> TokenLogProbs:
    log_prob, alternatives = values
    return TokenLogProbs(token_id, log_prob, tuple((each, value) for each, value in alternatives))


def prompt_values(tokens: Sequence[TokenLogProbs]) -> list[list[Any]]:
    return [[each.token_id, *log_probs_values(each), each.rank] for each in tokens]


def read_prompt(values: list[list[Any]]) -> tuple[TokenLogProbs, ...]:
    return tuple(
        TokenLogProbs(token, log_prob, tuple(map(tuple, alternatives)), rank)
        for token, log_prob, alternatives, rank in values
    )


def timing_values(timing: Timing) -> list[float | None]:
    return [timing.submitted, timing.finished, timing.first_token]


def read_timing(values: list[Any]) -> Timing:
    return Timing(*values)
