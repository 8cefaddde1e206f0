"""How rows are put together: policies, planning, and the memory bound."""

from packhorse.batching.policies import POLICIES

__all__ = ["POLICIES"]
