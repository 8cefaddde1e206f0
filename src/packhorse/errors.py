"""Exceptions that end a job. A bad row raises nothing: it becomes a `Failure`.

PackhorseError            one line and a hint; the command line exits with 2
├── ConfigError           an option or a combination of options is invalid
├── InputError            the input cannot be read as what it should be
├── OutputError           the output cannot be written, or belongs to another job
│   └── JobChangedError   the journal was made with other settings; shows the difference
├── BusyError             another run holds the output or the cache entry
├── ModelError            a model cannot be found, fetched, converted, verified or loaded
└── EngineError           the engine does not support what was requested
Interrupted               a signal ended the run; finished rows are kept
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST_REASON = 300


_REFUSED_PICKLE = "Weights only load failed"
"""What torch says of a pickle that it would have to run code for."""


def first_line(error: BaseException) -> str:
    """Return the message of an exception as one printable line, or its type if it is empty."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith(_REFUSED_PICKLE):
        return "the pickle holds objects that are no tensors, which may run code"
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    if isinstance(error, KeyError):
        line = f"{line} is not known (KeyError)"
    line = "".join(each if each.isprintable() else "?" for each in line)
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}..."


@contextmanager
def model_errors(what: str, hint: str) -> Iterator[None]:
    """Turn every exception that a library raises while it reads a model's files into a ModelError.

    Args:
        what: What cannot be done, to which the reason is added: "/models/a cannot be loaded".
        hint: What to do about it.

    Raises:
        ModelError: For every exception but those of packhorse and of a signal, panics of Rust
            libraries included, which are not an `Exception`. Its hint names memory if that is
            what was missing.
    """
    try:
        yield
    except (PackhorseError, Interrupted):
        raise
    except BaseException as error:
        is_panic = type(error).__module__ == "pyo3_runtime"
        if not isinstance(error, Exception) and not is_panic:
            raise
        if is_out_of_memory(error):
            reason = "" if isinstance(error, MemoryError) else f" ({first_line(error)})"
            raise ModelError(f"{what}: it does not fit into memory{reason}", MEMORY_HINT) from error
        raise ModelError(f"{what}: {first_line(error)}", hint) from error


MEMORY_HINT = (
    "free memory or raise its limit (ulimit -v, or that of the container), or use a smaller model "
    "or --quantization int8"
)
_OUT_OF_MEMORY = (
    "failed to map segment",
    "cannot allocate memory",
    "can't allocate memory",
    "can't start new thread",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Report whether an exception was caused by too little memory.

    Libraries that cannot be loaded and threads that cannot be started count as well; each reports
    it in its own words.
    """
    found: BaseException | None = error
    while found is not None:
        text = str(found).lower()
        if isinstance(found, MemoryError) or any(words in text for words in _OUT_OF_MEMORY):
            return True
        found = found.__cause__ or found.__context__
    return False


class PackhorseError(Exception):
    """A job cannot continue.

    Attributes:
        hint: What to do about it; "" if there is nothing to say.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(PackhorseError):
    """An option or a combination of options is invalid."""


class InputError(PackhorseError):
    """The input cannot be read as what it should be."""


class OutputError(PackhorseError):
    """The output cannot be written, or belongs to another job."""


class JobChangedError(OutputError):
    """The journal beside the output was made with other settings or another model."""


class BusyError(PackhorseError):
    """Another process holds the output or the cache entry."""


class ModelError(PackhorseError):
    """A model cannot be found, fetched, converted, verified or loaded."""


class EngineError(PackhorseError):
    """The engine does not support what was requested."""


class Interrupted(Exception):  # noqa: N818 (not an error: the user requested it)
    """A signal ended the run; rows finished so far are in the journal.

    Attributes:
        signal_number: SIGINT or SIGTERM; the command exits with 128 + this number.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by signal {signal_number}")
        self.signal_number = signal_number
