"""Batching: policies, planner, cost model and memory bounds."""

from packhorse.batching.policies import AUTO, POLICIES

__all__ = ["AUTO", "POLICIES"]
