"""One pass of requests through a loaded model: tokenize, plan, run, detokenize."""
