"""The parts of an assessment's page; `packhorse.assess.html.page` puts them together.

charts       curves and points over two axes: learning, cost, cascade
forest       accuracies with their intervals, one below the other
views        tiles and tables

report.html, parts.html   Jinja templates
"""
