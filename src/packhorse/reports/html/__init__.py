"""The parts of a page that no report has to itself.

axes         values to positions, round ticks
labelling    names beside points, none over another
cells        values with intervals as small bars

base.html, common.html    Jinja templates
report.css, report.js     written into the page
"""
