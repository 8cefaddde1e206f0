"""Try again what a network lost, and say what a server refused; each library has its own errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from packhorse.errors import InputError, PackhorseError, first_line
from packhorse.storage.urls import without_secrets

RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Waits before the attempts after the first."""
_PROGRESS_BYTES = 2**16
"""Bytes received between two failures after which the attempts are counted anew."""
_FOR_GOOD = (
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError,
    TypeError, ValueError,
)  # fmt: skip
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
_MAY_PASS = (408, 425, 429)
_Result = TypeVar("_Result")
Report = Callable[[str], None]


def retried(
    what: str,
    action: Callable[[], _Result],
    report: Report,
    kind: type[PackhorseError] = InputError,
    progress: Callable[[], int] = lambda: 0,
) -> _Result:
    """Return what `action` returns, tried again after errors that may pass.

    Args:
        what: What cannot be done, to which the reason is added.
        action: What is tried.
        report: Takes a line about each failed attempt.
        kind: Class of the error that is raised.
        progress: Bytes that were transferred; attempts are counted anew when there are more.

    Raises:
        InputError: The last error, or one that will not pass; as `kind` if that is given.
    """
    failures, done = 0, progress()
    while True:
        try:
            return action()
        except PackhorseError as error:
            error.args = (f"{what}: {error}",) if isinstance(error, InputError) else error.args
            raise
        except Exception as error:  # noqa: BLE001 (each library has errors of its own)
            cause = _cause(error)
            reason, is_final = _reason(cause), _is_final(cause)
            if progress() >= done + _PROGRESS_BYTES:
                failures, done = 0, progress()
            if is_final or failures == len(RETRY_SECONDS):
                raise kind(f"{what}: {reason}", _hint(cause, is_final)) from cause
            wait = RETRY_SECONDS[failures]
            failures += 1
            report(f"{what}: {reason}; trying again in {wait:g} s")
            time.sleep(wait)


def _cause(error: Exception) -> Exception:
    """Return the error that fsspec's HTTP files hide behind FileNotFoundError."""
    is_hiding = isinstance(error, FileNotFoundError) and not is_not_found(error)
    return error.__cause__ if is_hiding and isinstance(error.__cause__, Exception) else error


def is_not_found(error: FileNotFoundError) -> bool:
    """Return whether an error says that a server answered and has no such file."""
    cause = error.__cause__
    if cause is None or isinstance(cause, FileNotFoundError):
        return True
    if (status := _status(cause)) is not None:
        return status in (404, 410)
    is_lost = isinstance(cause, OSError | TimeoutError)
    return not is_lost and not type(cause).__module__.startswith("aiohttp")


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error stands for."""
    response = getattr(error, "response", None)
    for owner in (error, response):
        for name in ("status", "status_code", "code"):
            value = getattr(owner, name, None)
            if isinstance(value, int) and 100 <= value < 600:
                return value
    return None


def _is_final(error: Exception) -> bool:
    """Return whether the same request would fail again."""
    is_certificate = "Certificate" in type(error).__name__
    if isinstance(error, _FOR_GOOD) or is_certificate or type(error).__name__ in _NO_CREDENTIALS:
        return True
    status = _status(error)
    return status is not None and 400 <= status < 500 and status not in _MAY_PASS


def _reason(error: Exception) -> str:
    status = _status(error)
    if isinstance(error, FileNotFoundError):
        return "there is no such file, bucket or folder"
    if status is not None:
        message = getattr(error, "message", None)
        words = f" ({message})" if isinstance(message, str) and message else ""
        return without_secrets(f"the server answered {status}{words}")
    return without_secrets(first_line(error))


def _hint(error: Exception, is_final: bool) -> str:
    is_refused = isinstance(error, PermissionError) or _status(error) in (401, 403)
    if is_refused or type(error).__name__ in _NO_CREDENTIALS:
        return "check the credentials, which the library of this scheme takes as it always does"
    if is_final:
        return "check the URL"
    return "check the network and run the same command again: finished rows are kept"
