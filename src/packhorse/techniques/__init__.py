"""The grid of engine, number format and batching policy, and the command that runs each."""
