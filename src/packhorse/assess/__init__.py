"""Do you need a language model at all? A fair contest with classic text classifiers.

    labelled rows -> distinct rows -> split -> contest -> figures -> verdict -> winner, reports

config, document                     what an assessment is; the whole of it as data
rows, duplicates, splits, profile    labelled rows, which say the same, who may see which
features, families, tuning, classic_contest     the classic side
prompting, priors, language_model, budget, model_contest     the language model's side
entries, scoring, pairs, curve, cascade, judging     what was said, and what it comes to
costs, probe, economy                what an answer costs, and from which volume on it pays
verdict                              which to use
saved, saving, classifiers, classify a classifier on disk, and at work
runner                               the whole of it
columns, words, terminal, tables, page, html/, report     the reports
"""
