"""The parts of report.html; `packhorse.compare.html.page` puts them together,
with what `packhorse.reports.html` has for all reports.

scatter      accuracy against throughput
strips       latencies of every row
cells        figures as cells of a table
texts        where two texts part
views        tiles, legends, tables of trials
details      effects, worst rows, raw values, definitions

report.html, parts.html   Jinja templates
"""
