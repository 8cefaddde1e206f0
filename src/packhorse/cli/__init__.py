"""The command line: one verb, one module, each a skin over one library function.

Exit codes: 0 done; 2 the job cannot be done (one line and a hint on stderr); 3 done, but some rows
failed; 130 and 143 interrupted by SIGINT and SIGTERM.

Streams that are closed, broken or full change none of this, with one exception: where standard
output *is* the result and the disk behind it refuses it, the code is 2. A reader that has enough
(`| head -1`) is no error.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Sequence
from importlib import import_module

from packhorse.errors import ConfigError, Interrupted, PackhorseError, first_line, is_out_of_memory
from packhorse.jobs.signals import hearing_interrupts
from packhorse.jobs.streams import GuardedStream, guarded_streams

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
PRINTING_VERBS = ("load-test", "plan", "calibrate", "status", "models")
"""Verbs whose result is what they print; the result of the others is a file or a folder."""
LIGHT_VERBS = ("load-test", "status", "export", "models")
"""Verbs that load no model library."""
LEAST_ADDRESS_SPACE = 1_200_000_000
"""Bytes; with less, torch, Numba and CTranslate2 crash or hang on Linux while they are loaded."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the process's exit code; prints no traceback for a user's error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with guarded_streams() as stdout, hearing_interrupts():
        try:
            parser = _parser(given[0] if given else None)
            options = parser.parse_args(given)
        except SystemExit as end:  # --help, --version, or a usage error
            if _is_lost(stdout):
                raise SystemExit(EXIT_REFUSED) from end
            raise
        if options.verb is None:
            parser.print_help()
            return EXIT_REFUSED
        code = _outcome(options)
        is_result = options.verb in PRINTING_VERBS or getattr(options, "json", False)
        is_done = code in (EXIT_DONE, EXIT_FAILED_ROWS)
        return EXIT_REFUSED if is_done and is_result and _is_lost(stdout) else code


def _is_lost(stdout: GuardedStream) -> bool:
    """Whether standard output is incomplete, other than by its reader's will; says so."""
    stdout.close_out()
    if stdout.failure is None:
        return False
    print(
        f"packhorse: what was printed is incomplete: {stdout.failure.strerror}\n"
        "  hint: check where standard output goes, and run the same command again",
        file=sys.stderr,
    )
    return True


def _outcome(options: argparse.Namespace) -> int:
    """Runs one verb; the exit code of its work."""
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
            "  hint: free some or raise its limit (ulimit -v, that of a container), take a smaller "
            "model, or give the engine less: --max-batch-tokens, --cache-gb",
            file=sys.stderr,
        )
        return EXIT_REFUSED


def _check_address_space() -> None:
    """ConfigError where model libraries cannot be loaded: some crash where they should fail."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        raise ConfigError(
            f"the address space is limited to {limit / 1e6:,.0f} MB, and loading the model "
            f"libraries takes {LEAST_ADDRESS_SPACE / 1e6:,.0f} MB",
            "raise the limit: ulimit -v",
        )


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
