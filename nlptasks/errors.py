"""Errors for the user, each with its exit code.

NlptasksError
├── UsageError     2   wrong command line, option or argument
├── DataError      3   a file or row that cannot be used; DataErrors: several of them
├── ModelError     4   a model folder or backbone that cannot be used
├── TrainingError  5   training that cannot continue
├── BackendError   6   a device or runtime that cannot do what was asked; OutOfMemoryError: a batch is too large
└── PluginError    7   a head that cannot be found or loaded
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, TypeVar

MAX_DATA_ERRORS = 20
"""Reading stops after this number of errors in the data."""

_MAX_QUOTED_CHARS = 80

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class NlptasksError(Exception):
    """An error that says where the problem is, what it is, and what to do.

    Args:
        where: file and line (``train.tsv:17``), argument or folder.
        problem: what was found and what was expected.
        fix: what the user can do about it, with Python arguments in backticks: the command line shows them as its options.
        argument: the Python argument that `where` begins with; empty if it names none.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, where: str, problem: str, fix: str, *, argument: str = "") -> None:
        super().__init__(where, problem, fix)
        self.where = where
        self.problem = problem
        self.fix = fix
        self.argument = argument

    def __str__(self) -> str:
        return " ".join(f"{self.where}: {self.problem}; {self.fix}".splitlines())

    def lines(self) -> list[str]:
        """Return one line per problem."""
        return [str(self)]


class UsageError(NlptasksError):
    """A wrong command line, option or argument."""

    exit_code = 2


class DataError(NlptasksError):
    """A file or row that cannot be used."""

    exit_code = 3


class DataErrors(DataError):  # noqa: N818 (it contains several)
    """Several errors in the data.

    Args:
        errors: at least one; `where`, `problem` and `fix` are those of the first.
    """

    def __init__(self, errors: Sequence[DataError]) -> None:
        super().__init__(errors[0].where, errors[0].problem, errors[0].fix)
        self.args = (errors,)
        self.errors = tuple(errors)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Return one line per error; errors that differ only in their place share one, with the first place."""
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
        """True if reading stopped because there were too many errors."""
        return len(self.errors) >= MAX_DATA_ERRORS


class ErrorCollector:
    """Collects errors in data, and raises all of them at the 20th.

    Attributes:
        found: the errors so far.
    """

    def __init__(self) -> None:
        self.found: list[DataError] = []

    def __call__(self, error: DataError) -> None:
        self.found.append(error)
        if len(self.found) >= MAX_DATA_ERRORS:
            self.check()

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Collect an error that the block raises."""
        try:
            yield
        except DataErrors:
            raise  # these were collected before
        except DataError as error:
            self(error)

    def check(self) -> None:
        """Raise the collected errors.

        Raises:
            DataError: if there was one error; several are raised as `DataErrors`.
        """
        if self.found:
            raise self.found[0] if len(self.found) == 1 else DataErrors(self.found)


def each(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Apply a function to each item, and collect its errors.

    Raises:
        DataError: if there was one error; several are raised as `DataErrors`.
    """
    errors = ErrorCollector()
    results = []
    for item in items:
        with errors.collecting():
            results.append(function(item))
    errors.check()
    return results


class ModelError(NlptasksError):
    """A model folder or backbone that cannot be used."""

    exit_code = 4


class TrainingError(NlptasksError):
    """Training that cannot continue."""

    exit_code = 5


class BackendError(NlptasksError):
    """A device or runtime that cannot do what was asked."""

    exit_code = 6


class OutOfMemoryError(BackendError):
    """A batch that does not fit in the memory of the device."""


class PluginError(NlptasksError):
    """A head or a backend of a package that cannot be used."""

    exit_code = 7


def quote(value: object) -> str:
    """Quote a value of the user in a message: escaped, and at most 80 characters."""
    text = repr(value)
    return text if len(text) <= _MAX_QUOTED_CHARS else text[: _MAX_QUOTED_CHARS - 3] + "..."


def listing(names: Iterable[object], *, limit: int = 12) -> str:
    """Join names for a message: ``a, b, c and 5 more``."""
    all_names = [str(name) for name in names]
    more = f" and {len(all_names) - limit} more" if len(all_names) > limit else ""
    return (", ".join(all_names[:limit]) or "none") + more


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'ner'?`` if a known name is similar, otherwise the list of known names."""
    names = {name.lower(): name for name in sorted(known)}
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return f"did you mean {names[near[0]]!r}?" if near else f"known are: {listing(names.values())}"


def first_line(error: BaseException) -> str:
    """Return the class and the first line of another library's error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


@contextmanager
def refusing(where: str, problem: str, fix: str) -> Iterator[None]:
    """Turn any error that a broken file causes in a library, panics of Rust code included, into a ModelError."""
    try:
        yield
    except NlptasksError:
        raise
    except BaseException as error:
        # A Rust panic is not an Exception, and its class cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(where, f"{problem} ({first_line(error)})", fix) from error
