"""OpenAI's formats: request fields and their ranges, messages, batch lines, response documents.

request_fields.py  options of a request: names, types, ranges; `top_logprobs` and all others
field_types.py     types of options
prompt_fields.py   options of chats: tools, reasoning, variables of the template
tool_calls.py      calls of tools in the text of a completion
row_options.py     which fields of a plain row are options
messages.py        chat messages
batch_lines.py     lines of batch files
responses.py       response documents
log_probs.py       log-probabilities in response documents
row_errors.py      the error of one row
"""
