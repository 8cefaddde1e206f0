"""`packhorse serve`: requests that arrive one by one, batched like the rows of a file.

    HTTP -> guard -> routes -> tokenize -> waiting rows -> batch -> engine (a child process)
                                                                        |
    HTTP <- text, as it becomes certain <- tokens as they are generated +

The way of a request is `routes.py`; who waits and what goes next is `waiting.py`, pure; the child
process and what happens when it dies is `supervisor.py`.
"""
