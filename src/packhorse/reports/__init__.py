"""What all reports share: how numbers and words are written, and the pages they are written on.

formats, words        numbers; text of others, moments, plain facts
documents             JSON that can be read back, files that are whole or not there
markdown, terminal    the two reports made of lines
page, html/           the report that is one offline page
"""
