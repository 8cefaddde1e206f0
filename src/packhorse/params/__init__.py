"""What a job or a row asks for: how prompts are made, how tokens are chosen, what answers match."""
