"""Token budget of a batch, derived from the memory that is actually free.

available       = min(MemAvailable, cgroup limit - cgroup use, RLIMIT_AS - address space in use)
                  on a CPU, free device memory on a GPU
tokens          = share x available / workers / bytes per token
bytes per token = cache bytes x copies at the peak + step bytes per row / minimum tokens per row
"""

from __future__ import annotations

import math
import resource
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from packhorse.batching.sizes import Limits
from packhorse.cgroups import memory_headrooms
from packhorse.config import BatchingConfig
from packhorse.engine_protocol import EngineCapabilities

if TYPE_CHECKING:
    from packhorse.batching.cost import Costs

SHARE_OF_FREE_MEMORY = 0.5
SMALLEST_BUDGET = 256


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """Token budget of a batch and how it was determined.

    Attributes:
        tokens: `max_batch_tokens`.
        memory_tokens: Budget that memory alone would allow.
        decided_by: "asked", "memory" or "engine" (larger batches gain nothing on this engine).
        available_bytes: Free memory that the budget was derived from.
        bytes_per_token: See the module.
    """

    tokens: int
    memory_tokens: int
    decided_by: str
    available_bytes: int
    bytes_per_token: int

    @property
    def batch_bytes(self) -> float:
        """Memory for a batch (bytes); unlimited if a token budget was requested."""
        return (
            math.inf
            if self.decided_by == "asked"
            else float(self.memory_tokens * self.bytes_per_token)
        )

    def limits(self, batching: BatchingConfig, costs: Costs | None) -> Limits:
        """Return every bound of a batch: rows, tokens and, with measured costs, prefill memory.

        Library, estimator and server all build their limits here, so that none omits a bound.
        """
        return Limits(batching.batch_size, self.tokens, costs, self.batch_bytes)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def token_budget(
    capabilities: EngineCapabilities,
    available: int,
    max_new_tokens: int,
    asked: int | None,
    *,
    has_costs: bool = False,
) -> TokenBudget:
    """Return the token budget of a batch.

    Args:
        capabilities: Of the loaded engine.
        available: Free memory after the model was loaded (bytes).
        max_new_tokens: Maximum number of generated tokens per row.
        asked: Requested budget, used unchanged; None to derive it.
        has_costs: Whether the policy uses measured costs, so that only memory bounds the batch.
    """
    per_row = capabilities.step_bytes_per_row / (1 + max_new_tokens)
    per_token = max(
        1, round(capabilities.cache_bytes_per_token * capabilities.cache_copies + per_row)
    )
    by_memory = int(available * SHARE_OF_FREE_MEMORY / capabilities.workers / per_token)
    if asked is not None:
        return TokenBudget(asked, by_memory, "asked", available, per_token)
    preferred = by_memory + 1 if has_costs else capabilities.preferred_batch_tokens
    tokens = max(SMALLEST_BUDGET, min(by_memory, preferred))
    decided_by = "engine" if by_memory >= preferred else "memory"
    return TokenBudget(tokens, by_memory, decided_by, available, per_token)


def available_bytes(device: str = "cpu") -> int:
    """Return the bytes a process can allocate on `device` before it is swapped or killed."""
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info()
        return int(free)
    import psutil

    free = int(psutil.virtual_memory().available)
    return max(0, min([free, *memory_headrooms(), *_address_space_left()]))


def _address_space_left() -> list[int]:
    """Return the bytes this process may still map (`ulimit -v`); empty if unlimited."""
    import psutil

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return []
    return [limit - int(psutil.Process().memory_info().vms)]
