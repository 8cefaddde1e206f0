"""`packhorse serve`: an OpenAI-compatible server with dynamic batching.

    HTTP -> middleware -> routes -> tokenize -> queue -> batch -> engine (a child process)
                                                                        |
    HTTP <- text as it is final <- tokens as they are generated +

`routes.py` is the life of a request, `request_queue.py` (pure) decides which rows wait and which
batch goes next, `supervisor.py` runs the child process and restarts it.
"""
