"""The command line: one verb, one module, each a skin over one library function.

Exit codes: 0 done; 2 the job cannot be done (one line and a hint on stderr); 3 done, but some rows
failed; 130 and 143 interrupted by SIGINT and SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from packhorse.errors import Interrupted, PackhorseError

EXIT_DONE = 0
EXIT_REFUSED = 2
EXIT_FAILED_ROWS = 3

VERBS = {
    "run": "run a model over a file of prompts; run again to go on where it stopped",
    "serve": "answer requests as they come, batched, over OpenAI's HTTP interface",
    "load-test": "send a server requests at given rates and report how it answers",
    "compare": "what each technique costs and buys on your own prompts, and which to use",
    "assess": "whether a classic classifier would do, on your labelled rows, at what cost",
    "classify": "label a file with what assess has saved",
    "plan": "what a job would take in time and memory, before it runs, and which command to use",
    "calibrate": "measure again what a model costs on this machine",
    "status": "how far the job of an output is",
    "export": "write what an unfinished job has so far",
    "quantize": "find the way into int8 that changes a model least, and keep it",
    "prepare": "fetch, convert and verify a model",
    "models": "list the model names and what is cached",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the process's exit code; prints no traceback for a user's error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(given[0] if given else None)
    options = parser.parse_args(given)
    if options.verb is None:
        parser.print_help()
        return EXIT_REFUSED
    try:
        return int(options.run(options))
    except PackhorseError as error:
        print(f"packhorse: {error}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        return EXIT_REFUSED
    except Interrupted as interruption:
        print(f"packhorse: {interruption}", file=sys.stderr)
        return 128 + interruption.signal_number
    except KeyboardInterrupt:
        print("packhorse: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE


def _parser(verb: str | None) -> argparse.ArgumentParser:
    """The parser; only the module of the verb that was asked for is imported."""
    from packhorse import __version__

    parser = argparse.ArgumentParser(
        prog="packhorse",
        description="Run a language model over many inputs, as fast as this machine allows.",
        epilog="exit codes: 0 done, 2 cannot be done, 3 done with failed rows, "
        "130 and 143 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"packhorse {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, help_text in VERBS.items():
        sub = verbs.add_parser(name, help=help_text, description=_sentence(help_text))
        if name == verb:
            module = import_module(f"packhorse.cli.{name.replace('-', '_')}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
