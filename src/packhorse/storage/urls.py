"""Names of files that may be URLs: tell them from paths, and leave their secrets out."""

from __future__ import annotations

import re
from hashlib import blake2b
from pathlib import Path

from packhorse.errors import ConfigError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_MERGED = re.compile(r"(s3a?|gs|gcs|az|abfss?|hf|https?|file|memory|sftp):/[^/]")
_SECRETS = (
    (re.compile(r"(https?://[^\s'\"<>?#]*)[?#][^\s'\"<>)]*", re.IGNORECASE), r"\1"),
    (re.compile(r"(://[^\s'\"<>?#]*)[?#][^\s'\"<>)]*=[^\s'\"<>)]*"), r"\1"),
    (re.compile(r"(https?://)[^\s'\"<>/@]*@", re.IGNORECASE), r"\1"),
    (re.compile(r"(://[^\s'\"<>/@:]*):[^\s'\"<>/@]*@"), r"\1@"),
)
"""Queries, fragments, tokens in place of users, and passwords."""


def is_url(name: str | Path) -> bool:
    """Return whether a name is a URL, not a path.

    Raises:
        ConfigError: For a URL that was made a Path, which merges its slashes.
    """
    if isinstance(name, Path):
        reject_merged_url(name)
        return False
    return _SCHEME.match(name) is not None


def reject_merged_url(path: Path) -> None:
    """Raise ConfigError for a URL that was made a Path."""
    if _MERGED.match(str(path)) and not path.exists():
        raise ConfigError(
            f"{without_secrets(str(path))} is a URL that was read as the path of a file",
            "run, classify, plan and compare read URLs, given as a str in Python; for other "
            "commands download the file first",
        )


def file_or_url(text: str) -> Path | str:
    """Return a URL as it is, and anything else as a path."""
    return text if _SCHEME.match(text) else Path(text)


def public_name(name: str | Path) -> str:
    """Return a name as messages, journals and manifests have it: a URL without its secrets.

    Password, query and fragment are left out: a signed URL gives access.
    """
    return without_secrets(str(name)) if _SCHEME.match(str(name)) else str(name)


def without_secrets(text: str) -> str:
    """Return a text with password, query and fragment left out of every URL in it."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def base_name(url: str) -> str:
    """Return the last part of the path of a URL; "" if it ends in a slash."""
    return public_name(url).rpartition("/")[2]


def digest_of_url(url: str) -> str:
    """Return eight characters that stand for a URL, whatever its secrets."""
    return blake2b(public_name(url).encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()


def scheme_of(url: str) -> str:
    """Return the scheme of a URL, in lower case."""
    return url.partition("://")[0].lower()
