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


def first_line(error: BaseException) -> str:
    """What an exception says, as one line; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


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
