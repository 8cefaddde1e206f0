"""What the engines share: rows in flight, sampling, log-probabilities, memory allocation."""
