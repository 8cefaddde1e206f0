"""How good outputs are: statistics, agreement with a reference, teacher forcing, labels, ties."""
