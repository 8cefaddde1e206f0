"""Parts of a comparison's report.html; `page` assembles them.

scatter      accuracy against throughput
strips       latencies of every row
cells        figures as cells of a table
text_diff    the first difference between two texts
views        tiles, legends, tables of trials
details      effects, worst rows, raw values, definitions

report.html, parts.html   Jinja templates
"""
