"""Parts of an assessment's report.html; `page` assembles them.

charts       curves and points over two axes: learning, cost, cascade
forest       accuracies with their intervals, one below the other
views        tiles and tables

report.html, parts.html   Jinja templates
"""
