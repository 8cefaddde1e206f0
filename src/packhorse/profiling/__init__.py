"""Metrics of a run, and the hardware it runs on."""
