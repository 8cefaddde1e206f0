"""Compare engines, number formats and batching policies on the user's own prompts.

config, document      the configuration; the result as data
runner                the whole comparison
sample, trial, energy     rows drawn once; one measured run in its own process
evaluate              speed and accuracy of each trial
verdict               from trials to one recommendation
metric_definitions    every column of the reports
report_values, narrative      values and sentences that reports share
report, csv_table, markdown, terminal, html/      the reports

docs/measures.md defines every metric.
"""
