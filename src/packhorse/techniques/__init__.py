"""Combinations of engine, number format and batching policy, and the command of each."""
