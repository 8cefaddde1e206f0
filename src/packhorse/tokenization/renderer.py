"""Script of the process that renders chat templates; a separate file, so that it starts in 50 ms.

A chat template is a program of unknown origin. Jinja's sandbox protects the system; this process
limits time and memory: the kernel ends the process at a limit of processor time per row, in Python
and in C code, and allocations beyond a limit of address space fail.

Frames on stdin and stdout are a length in 4 bytes, big-endian, and that many bytes of JSON. A
request holds `source`, `variables`, `now` (ISO 8601), `seconds` (per chat) and `chats`, the further
variables of each chat (`messages`, `tools`, ...); the reply has one frame per chat, `{"text": ...}`
or `{"error": ..., "kind": ...}`, written at once. For a chat that is null the text is a JSON list
of the variables that the template reads.
"""

from __future__ import annotations

import json
import resource
import signal
import struct
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any, BinaryIO

MEMORY_BYTES = 2 << 30
OUTPUT_CHARACTERS = 128 << 20


def main() -> None:
    """Answer requests until stdin ends."""
    sys.path.extend(json.loads(sys.argv[1]))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process; may be inherited as ignored
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory()
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while (request := _read(source)) is not None:
        for chat in request["chats"]:
            signal.setitimer(signal.ITIMER_PROF, request["seconds"])
            reply = _render(request, chat)
            signal.setitimer(signal.ITIMER_PROF, 0)
            target.write(struct.pack(">I", len(reply)) + reply)
            target.flush()


def _limit_memory() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [each for each in (MEMORY_BYTES, soft, hard) if each != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))


def _read(source: BinaryIO) -> Any:
    header = source.read(4)
    if len(header) < 4:
        return None
    return json.loads(source.read(struct.unpack(">I", header)[0]))


def _render(request: dict[str, Any], chat: dict[str, Any] | None) -> bytes:
    now = datetime.fromisoformat(request["now"])
    try:
        if chat is None:
            return json.dumps({"text": json.dumps(_variables(request["source"]))}).encode()
        text = _compiled(request["source"]).render(
            {
                "tools": None,
                "documents": None,
                "add_generation_prompt": True,
                "strftime_now": now.strftime,
                **request["variables"],
                **chat,
            }
        )
        if len(text) > OUTPUT_CHARACTERS:
            return _error(f"it writes {len(text):,} characters for this row", kind="limit")
        return json.dumps({"text": text}).encode()
    except MemoryError:
        return _error("it needs more memory than the limit per row", kind="limit")
    except RecursionError:
        return _error("it calls itself too deeply")
    except Exception as error:  # noqa: BLE001 (a template may raise anything)
        is_syntax = type(error).__name__ in ("TemplateSyntaxError", "TemplateAssertionError")
        return _error(str(error) or type(error).__name__, "syntax" if is_syntax else "")


def _error(message: str, kind: str = "") -> bytes:
    return json.dumps({"error": message[:4096], "kind": kind}).encode()


def _variables(source: str) -> list[str]:
    """Return the names of variables that a template reads from its context."""
    from jinja2 import meta

    return sorted(meta.find_undeclared_variables(_environment().parse(source)))


@lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    return _environment().from_string(source)


@lru_cache(maxsize=1)
def _environment() -> Any:
    """Jinja as transformers sets it up for chat templates (`_cached_compile_jinja_template`)."""
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks the assistant's text for training; only its body is rendered."""

        tags = {"generation"}  # noqa: RUF012 (declared by Jinja as an instance attribute)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    class Namespace(jinja2.utils.Namespace):
        """A namespace that rejects names with a leading underscore."""

        def __init__(*arguments: Any, **attributes: Any) -> None:
            self, *rest = arguments
            _refuse_private(values := dict(*rest, **attributes))
            jinja2.utils.Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_private((name,))
            jinja2.utils.Namespace.__setitem__(self, name, value)

    def _refuse_private(names: Any) -> None:
        if any(isinstance(name, str) and name.startswith("_") for name in names):
            raise jinja2.exceptions.SecurityError("a namespace takes no names that begin with _")

    class Dict:
        """Creates dicts without exposing the type."""

        def __call__(self, *arguments: Any, **items: Any) -> dict[Any, Any]:
            return dict(*arguments, **items)

        def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
            return dict.fromkeys(*arguments)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    globals_: dict[str, Callable[..., Any] | Dict] = {
        "raise_exception": raise_exception,
        "dict": Dict(),
        "namespace": Namespace,
    }
    environment.globals.update(globals_)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


if __name__ == "__main__":
    main()
