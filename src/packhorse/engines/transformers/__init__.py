"""The engine `transformers`: padded batches on Hugging Face models."""
