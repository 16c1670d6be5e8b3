"""The errors a user can meet, each with its exit code.

NlptasksError
├── UsageError     2   wrong command line, option or argument
├── DataError      3   a file or row that cannot be used
├── ModelError     4   a model folder or backbone that cannot be used
├── TrainingError  5   training that cannot go on
├── BackendError   6   a device or runtime that cannot do what was asked
└── PluginError    7   a head that cannot be found or loaded
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar

_MAX_QUOTED_CHARS = 80


class NlptasksError(Exception):
    """An error that says where it is, what was found and what to do.

    Args:
        where: file and line (``train.tsv:17``), option or folder.
        problem: what was, and what should have been.
        fix: what the user can do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, where: str, problem: str, fix: str) -> None:
        super().__init__(where, problem, fix)
        self.where = where
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return " ".join(f"{self.where}: {self.problem}; {self.fix}".splitlines())


class UsageError(NlptasksError):
    """A wrong command line, option or argument."""

    exit_code = 2


class DataError(NlptasksError):
    """A file or row that cannot be used."""

    exit_code = 3


class ModelError(NlptasksError):
    """A model folder or backbone that cannot be used."""

    exit_code = 4


class TrainingError(NlptasksError):
    """Training that cannot go on."""

    exit_code = 5


class BackendError(NlptasksError):
    """A device or runtime that cannot do what was asked."""

    exit_code = 6


class PluginError(NlptasksError):
    """A head that cannot be found or loaded."""

    exit_code = 7


def quote(value: object) -> str:
    """The user's own value inside a message: escaped, and at most 80 characters of it."""
    text = repr(value)
    return text if len(text) <= _MAX_QUOTED_CHARS else text[: _MAX_QUOTED_CHARS - 3] + "..."


def listing(names: Iterable[object], *, limit: int = 12) -> str:
    """Names for a message, ``a, b, c`` and how many more."""
    known = [str(name) for name in names]
    more = f" and {len(known) - limit} more" if len(known) > limit else ""
    return (", ".join(known[:limit]) or "none") + more


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``did you mean 'ner'?`` where a known name is near, else the list of known names."""
    names = {name.lower(): name for name in sorted(known)}
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return f"did you mean {names[near[0]]!r}?" if near else f"known are: {listing(names.values())}"


def first_line(error: BaseException) -> str:
    """Class and first line of somebody else's error, for a message of ours."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
