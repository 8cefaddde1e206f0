"""Chat templates in the shapes that published models have, in words of our own."""

from __future__ import annotations

OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    + OPENING
)

KNOWN_ROLES_ONLY = (  # unknown roles fall through every branch (Phi-3, Qwen 1)
    "{% for m in messages %}{% if m.role == 'system' %}<|im_start|>system\n{{ m.content }}"
    "<|im_end|>\n{% elif m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant\n{{ m.content }}<|im_end|>\n"
    "{% endif %}{% endfor %}" + OPENING
)

KNOWS_DEVELOPER = KNOWN_ROLES_ONLY.replace("m.role == 'user'", "m.role in ['developer', 'user']")

NO_SYSTEM = (  # Gemma 1 and 2
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}</turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)

SYSTEM_IN_FIRST_TURN = (  # Llama 2
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = messages[0].content %}{% else %}{% set rest = messages %}{% set system = '' %}"
    "{% endif %}{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if loop.first and system %}"
    "{% set text = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content %}"
    "{% else %}{% set text = m.content %}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ text.strip() }} [/INST]"
    "{% else %} {{ text.strip() }} </s>{% endif %}{% endfor %}"
)

SYSTEM_IN_LAST_TURN = (  # Mistral 7B 0.3
    "{% set ns = namespace(system='', n=0) %}"
    "{% for m in messages %}{% if m.role == 'system' %}{% set ns.system = m.content %}{% endif %}"
    "{% endfor %}{% for m in messages %}{% if m.role == 'user' %}[INST]"
    "{% if loop.last and ns.system %}{{ ns.system + '\n\n' }}{% endif %}{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content }}</s>"
    "{% elif m.role != 'system' %}{{ raise_exception('Only user and assistant roles') }}{% endif %}"
    "{% endfor %}"
)

LLAMA_3_TOOLS = (
    "{% for m in messages %}"
    "{% if m.role == 'tool' or m.role == 'ipython' %}<h>ipython</h>\n"
    "{% if m.content is mapping or m.content is iterable %}{{ m.content | tojson }}"
    "{% else %}{{ m.content }}{% endif %}<eot>"
    "{% elif 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('Only one tool call at once') }}{% endif %}"
    "{% set f = m.tool_calls[0].function %}<h>assistant</h>\n"
    '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}<eot>'
    "{% else %}<h>{{ m.role }}</h>\n{{ m.content | trim }}<eot>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<h>assistant</h>\n{% endif %}"
)

HERMES_TOOLS = (
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>tool\n<tool_response>\n"
    "{{ m.content }}\n</tool_response><|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": '
    "{% if c.function.arguments is string %}{{ c.function.arguments }}"
    "{% else %}{{ c.function.arguments | tojson }}{% endif %}}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}" + OPENING
)

TEXT_ARGUMENTS = (  # DeepSeek V3 joins arguments with text
    "{% for m in messages %}{{ m.role + ': ' + m.content }}{% for c in m.tool_calls or [] %}"
    "{{ '<call>' + c.function.name + '\n' + c.function.arguments + '</call>' }}{% endfor %}\n"
    "{% endfor %}"
)

PLAIN_ARGUMENTS = TEXT_ARGUMENTS.replace(
    "'\n' + c.function.arguments + '</call>' }}", "'\n' }}{{ c.function.arguments }}{{ '</call>' }}"
)

ARGUMENT_BY_ARGUMENT = (  # Qwen3-Coder, GLM 4.5
    "{% for m in messages %}<t>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<function={{ c.function.name }}>{% for k, v in c.function.arguments.items() %}"
    "<parameter={{ k }}>{{ v | tojson if v is mapping else v }}</parameter>{% endfor %}</function>"
    "{% endfor %}</t>\n{% endfor %}"
)

QWEN_3 = (
    "{% set ns = namespace(last=messages | length - 1) %}"
    "{% for m in messages[::-1] %}{% if m.role == 'user' and ns.last == messages | length - 1 %}"
    "{% set ns.last = messages | length - 1 - loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set content = m.content %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\n') %}"
    "{% endif %}<|im_start|>assistant\n{% if loop.index0 > ns.last %}<think>\n"
    "{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ content }}<|im_end|>\n"
    "{% elif m.role in ('system', 'user') %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n"
    "</tool_response><|im_end|>\n{% endif %}{% endfor %}" + OPENING
)

PARTS_ONLY = (  # Llama Guard 3, many vision models
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}"
    "{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}" + OPENING
)

FIRST_PART_ONLY = (  # raises for text
    "{% for m in messages %}{{ m.role + ': ' + m.content[0].text }}\n{% endfor %}"
)

PARTS_OF_USERS = (  # system as text, the others as parts
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content.strip() }}\n{% else %}"
    "<t>{{ m.role }}\n{% for p in m.content %}{{ p.text }}{% endfor %}</t>\n{% endif %}{% endfor %}"
)

TEXT_OR_PARTS = (
    "{% for m in messages %}<t>{{ m.role }}\n{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}</t>\n{% endfor %}"
)

ESCAPING = "{% for m in messages %}{{ m.role }}: {{ m.content | e }}\n{% endfor %}"
IMAGES = (
    "{% for m in messages %}{{ m.role }}: {{ m.content | replace('<image>', '[IMG]') }}\n"
    "{% endfor %}"
)
SWITCHES = (  # SmolLM3
    "{% for m in messages %}{{ m.role }}: {{ m.content.replace('/no_think', '').rstrip() }}\n"
    "{% endfor %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
