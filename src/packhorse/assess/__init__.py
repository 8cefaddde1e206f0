"""Compare classic text classifiers with a language model on labelled rows.

    labelled rows -> distinct rows -> split -> contest -> evaluation -> verdict -> winner, reports

config, document                     the configuration; the result as data
runner                               the whole assessment
rows, duplicates, splits, profile    labelled rows, duplicates, train/test split, summary
features, families, tuning, classic_contest      the classic contestants
prompting, priors, language_model, budget, model_contest     the language model
contestants, metrics, paired_comparison, learning_curve, cascade, evaluate     evaluation
costs, probe, economy                cost per answer and break-even volume
verdict                              which classifier to use
saved_classifier, saving, classifiers, classify      classifiers on disk and in use
metric_definitions                   every column of the reports
narrative, report, markdown, terminal, html/     the reports
"""
