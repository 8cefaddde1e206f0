"""Parts that all report pages share.

page              the page itself: templates, style, security policy
axes              values to positions, round ticks
label_placement   names beside points without overlap
cells             values with intervals as small bars

base.html, common.html    Jinja templates
report.css, report.js     embedded in the page
"""
