"""Techniques side by side: what each one costs and buys on the user's own prompts.

statistics   intervals, tests, ties, the Pareto front and its knee: numbers in, numbers out
ties         whether one trial is faster than another, or it is noise
quality      a trial's rows against the reference's rows
labels       a model's answers against a label per row
embeddings   texts to sentence vectors
teacher      the same text scored by two models: Kullback-Leibler divergence, perplexity

What every measure means is in docs/measures.md.
"""
