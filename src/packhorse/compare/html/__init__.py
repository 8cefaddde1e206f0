"""The parts of report.html; `packhorse.compare.page` puts them together.

axes         values to positions, round ticks
labelling    names beside points, none over another
scatter      accuracy against throughput
strips       latencies of every row
cells        values with intervals as small bars
texts        where two texts part
views        tiles, legends, tables of trials
details      effects, worst rows, raw values, definitions

report.html, parts.html   Jinja templates
report.css, report.js     written into the page
"""
