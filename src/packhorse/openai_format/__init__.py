"""OpenAI's request format: fields and their ranges, messages, lines of batch files."""
