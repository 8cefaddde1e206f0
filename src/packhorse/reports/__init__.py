"""What all reports share.

columns               columns of a table: name, unit, meaning, where shown
formats, text         numbers; text from data, times, plain facts
documents             JSON that can be read back, atomic files
markdown, terminal    the line-based reports
html/                 the report that is one offline page
"""
