"""Typed questions over rows: the probability of each answer, nothing generated.

questions.py  questions, their checks, and the prompts that ask them
answers.py    probabilities of the options of each question, over all orders of the options
job.py        `packhorse decide` as a job: calibration, rows, resuming
"""
