"""The command line: one module per verb, each a thin layer over one library function.

Exit codes: 0 done; 2 the job cannot be done (one line and a hint on stderr); 3 done, but some rows
failed; 130 and 143 interrupted by SIGINT and SIGTERM.

Standard streams that are closed, broken or full do not change the exit code, with one exception: it
is 2 if standard output is the result of the verb and cannot be written. A reader that closes the
pipe early (`| head -1`) is not an error.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from packhorse.errors import (
    MEMORY_HINT,
    ConfigError,
    Interrupted,
    PackhorseError,
    first_line,
    is_out_of_memory,
)
from packhorse.jobs.signals import sigint_enabled
from packhorse.jobs.streams import GuardedStream, guarded_streams

EXIT_DONE = 0
EXIT_REFUSED = 2
EXIT_FAILED_ROWS = 3

VERBS = {
    "run": "run a model over a file of prompts, or continue an unfinished run",
    "serve": "serve a model over OpenAI's HTTP interface, with batching",
    "load-test": "send requests to a server at given rates and report its latencies",
    "compare": "measure speed, memory and accuracy of techniques on your prompts and recommend one",
    "assess": "compare a language model with classic classifiers on your labelled rows",
    "classify": "label a file with a classifier that assess has saved",
    "decide": "answer typed questions about the rows of a file, with probabilities",
    "plan": "estimate time and memory of a job and recommend a command",
    "calibrate": "measure the costs of a model on this machine",
    "status": "show the progress of a job",
    "export": "write the results of an unfinished job",
    "quantize": "find the int8 method that changes a model least, and convert the model with it",
    "prepare": "download, convert and verify a model",
    "models": "list model names and cached models",
}
PRINTING_VERBS = ("load-test", "plan", "calibrate", "status", "models")
"""Verbs whose result is their standard output; the others write a file or a folder."""
LIGHT_VERBS = ("load-test", "status", "export", "models")
"""Verbs that load no model library."""
LEAST_ADDRESS_SPACE = 1_200_000_000
"""Bytes; with less, torch, Numba and CTranslate2 crash or hang on Linux while they load."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code; print no traceback for an error of the user."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with guarded_streams() as stdout, sigint_enabled():
        try:
            parser = _parser(given[0] if given else None)
            options = parser.parse_args(given)
        except SystemExit as end:  # --help, --version, or a usage error
            if _is_incomplete(stdout):
                raise SystemExit(EXIT_REFUSED) from end
            raise
        if options.verb is None:
            parser.print_help()
            return EXIT_REFUSED
        code = _outcome(options)
        is_result = options.verb in PRINTING_VERBS or getattr(options, "json", False)
        is_done = code in (EXIT_DONE, EXIT_FAILED_ROWS)
        return EXIT_REFUSED if is_done and is_result and _is_incomplete(stdout) else code


def print_json(document: Any) -> None:
    """Print one JSON document on one line of standard output."""
    print(json.dumps(document))


def print_progress(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr, flush=True)


def print_message(text: str) -> None:
    """Print a line on standard error that names this program."""
    print_progress(f"packhorse: {text}")


def command_line() -> str:
    """Return the command that started this process, as a shell reads it."""
    return shlex.join(["packhorse", *sys.argv[1:]])


def _is_incomplete(stdout: GuardedStream) -> bool:
    """Report whether standard output lost text, other than by a reader that closed it."""
    stdout.close_out()
    if stdout.failure is None:
        return False
    print(
        f"packhorse: cannot write all of standard output: {stdout.failure.strerror}\n"
        "  hint: check where standard output goes, and run the same command again",
        file=sys.stderr,
    )
    return True


def _outcome(options: argparse.Namespace) -> int:
    """Run one verb and return its exit code; print one line and a hint for an error."""
    try:
        if options.verb not in LIGHT_VERBS:
            _check_address_space()
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
    except (MemoryError, ImportError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(
            f"packhorse: there is too little memory: {first_line(error)}\n"
            f"  hint: {MEMORY_HINT}; --max-batch-tokens and --cache-gb limit what an engine takes",
            file=sys.stderr,
        )
        return EXIT_REFUSED


def _check_address_space() -> None:
    """Raise ConfigError if model libraries cannot be loaded: some crash instead of failing."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        raise ConfigError(
            f"the address space is limited to {limit / 1e6:,.0f} MB, but the model libraries need "
            f"{LEAST_ADDRESS_SPACE / 1e6:,.0f} MB",
            "raise the limit: ulimit -v unlimited",
        )


def _parser(verb: str | None) -> argparse.ArgumentParser:
    """Return the parser; only the module of the given verb is imported."""
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
