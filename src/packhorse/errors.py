"""Everything that ends a job. A bad *row* is no exception but a `Failure`.

PackhorseError            one clear line and a hint; the command line exits with 2
├── ConfigError           an option or a combination of options makes no sense
├── InputError            the input cannot be read as what it should be
├── OutputError           the output cannot be written, or belongs to another job
│   └── JobChangedError   the journal was made with other settings; shows the difference
├── BusyError             another run holds the output or the cache entry
├── ModelError            a model cannot be found, fetched, converted, verified or loaded
└── EngineError           the engine cannot do what was asked of it
Interrupted               a signal ended the run; what was finished is kept
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST_REASON = 300


def first_line(error: BaseException) -> str:
    """What an exception says, as one printable line; its type where it says nothing."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    if isinstance(error, KeyError):
        line = f"{line} is not known (KeyError)"
    line = "".join(each if each.isprintable() else "?" for each in line)
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}..."


@contextmanager
def model_errors(what: str, hint: str) -> Iterator[None]:
    """Turn whatever a library raises while it reads a model's files into one ModelError.

    Args:
        what: What cannot be done, to which the reason is added: "/models/a cannot be loaded".
        hint: What to do about it.

    Raises:
        ModelError: For every exception but those of packhorse and of a signal, panics of Rust
            libraries included, which are no `Exception`.
    """
    try:
        yield
    except (PackhorseError, Interrupted):
        raise
    except MemoryError as error:
        raise ModelError(
            f"{what}: it does not fit into memory", "free memory, or use a smaller model"
        ) from error
    except BaseException as error:
        is_panic = type(error).__module__ == "pyo3_runtime"
        if not isinstance(error, Exception) and not is_panic:
            raise
        raise ModelError(f"{what}: {first_line(error)}", hint) from error


_OUT_OF_MEMORY = (
    "failed to map segment",
    "cannot allocate memory",
    "can't allocate memory",
    "can't start new thread",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether too little memory is behind an exception: also libraries that cannot be loaded and
    threads that cannot be started say so, each in its own words."""
    found: BaseException | None = error
    while found is not None:
        text = str(found).lower()
        if isinstance(found, MemoryError) or any(words in text for words in _OUT_OF_MEMORY):
            return True
        found = found.__cause__ or found.__context__
    return False


class PackhorseError(Exception):
    """A job that cannot go on. `hint` says what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(PackhorseError):
    """An option or a combination of options makes no sense."""


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
    """The engine cannot do what was asked of it."""


class Interrupted(Exception):  # noqa: N818 (no error: the user asked for it)
    """A signal ended the run; rows finished so far are in the journal.

    signal_number: SIGINT or SIGTERM; the command exits with 128 + this number.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by signal {signal_number}")
        self.signal_number = signal_number
