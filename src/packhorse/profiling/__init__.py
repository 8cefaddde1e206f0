"""What a run measures, and the hardware it runs on."""
