"""How rows are put together: policies, planning, and the memory bound."""

from packhorse.batching.policies import AUTO, POLICIES

__all__ = ["AUTO", "POLICIES"]
