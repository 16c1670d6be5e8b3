"""The errors a user can meet, each with its exit code.

NlptasksError
├── UsageError     2   wrong command line, option or argument
├── DataError      3   a file or row that cannot be used; DataErrors: several of them
├── ModelError     4   a model folder or backbone that cannot be used
├── TrainingError  5   training that cannot go on
├── BackendError   6   a device or runtime that cannot do what was asked; OutOfMemoryError: not so much at a time
└── PluginError    7   a head that cannot be found or loaded
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, TypeVar

MAX_DATA_ERRORS = 20
"""Errors of the data after which no more are looked for."""

_MAX_QUOTED_CHARS = 80

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


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

    def lines(self) -> list[str]:
        """What is wrong, a line for each thing."""
        return [str(self)]


class UsageError(NlptasksError):
    """A wrong command line, option or argument."""

    exit_code = 2


class DataError(NlptasksError):
    """A file or row that cannot be used."""

    exit_code = 3


class DataErrors(DataError):  # noqa: N818 (it holds several)
    """Several errors of the data.

    Args:
        errors: at least one; where, problem and fix are those of the first.
    """

    def __init__(self, errors: Sequence[DataError]) -> None:
        super().__init__(errors[0].where, errors[0].problem, errors[0].fix)
        self.args = (errors,)
        self.errors = tuple(errors)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """A line for each error; those that differ in their place alone share one, with the place of the first."""
        alike: dict[tuple[str, str], list[DataError]] = {}
        for error in self.errors:
            alike.setdefault((error.problem, error.fix), []).append(error)
        lines = []
        for first, *others in alike.values():
            where = first.where + (f" and {len(others)} more" if others else "")
            lines.append(str(DataError(where, first.problem, first.fix)))
        return lines

    @property
    def stopped(self) -> bool:
        """Whether these are so many that no more were looked for."""
        return len(self.errors) >= MAX_DATA_ERRORS


class ErrorCollector:
    """What to do with a bad row: note its error and go on; at the 20th, raise them all.

    Attributes:
        found: what was noted.
    """

    def __init__(self) -> None:
        self.found: list[DataError] = []

    def __call__(self, error: DataError) -> None:
        self.found.append(error)
        if len(self.found) >= MAX_DATA_ERRORS:
            self.check()

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note the error that what is done here raises."""
        try:
            yield
        except DataErrors:
            raise  # these are noted already
        except DataError as error:
            self(error)

    def check(self) -> None:
        """Raise what was noted, if anything.

        Raises:
            DataError: a single error itself, several as `DataErrors`.
        """
        if self.found:
            raise self.found[0] if len(self.found) == 1 else DataErrors(self.found)


def each(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """What a function gives for each item; its errors are collected.

    Raises:
        DataError: there was one, or several (`DataErrors`).
    """
    errors = ErrorCollector()
    results = []
    for item in items:
        with errors.noting():
            results.append(function(item))
    errors.check()
    return results


class ModelError(NlptasksError):
    """A model folder or backbone that cannot be used."""

    exit_code = 4


class TrainingError(NlptasksError):
    """Training that cannot go on."""

    exit_code = 5


class BackendError(NlptasksError):
    """A device or runtime that cannot do what was asked."""

    exit_code = 6


class OutOfMemoryError(BackendError):
    """More at a time than the device has memory for."""


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
