"""Which tasks exist: the entry points of the group ``nlptasks.heads``, read without importing any of them.

A built-in head is registered exactly as a plugin's is, by one line of its package's metadata. A package is imported when one of
its tasks is used, not before, and what is wrong with it harms this task alone.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlptasks.config import NAMES, is_name
from nlptasks.errors import PluginError, UsageError, did_you_mean, first_line, listing, quote

if TYPE_CHECKING:
    from nlptasks.heads.base import Head

_log = logging.getLogger("nlptasks")

GROUP = "nlptasks.heads"
PLUGINS = "NLPTASKS_PLUGINS"
"""The variable that lists the packages whose heads may be used, with commas between them; unset for all."""

_OWN = __name__.partition(".")[0]
_SETTINGS = Path("pyproject.toml")


@dataclass(frozen=True)
class Registration:
    """A task as a package's metadata register it.

    Attributes:
        task: its name.
        package: name and version of the package that registers it, such as ``nlptasks 0.1.0``.
        point: where its head class is.
        problem: why it cannot be used, as far as that can be known without importing it; empty if nothing is known.
        fix: what to do about this.
        enabled: whether the user allows the package.
    """

    task: str
    package: str
    point: EntryPoint
    problem: str = ""
    fix: str = ""
    enabled: bool = True

    @property
    def distribution(self) -> str:
        """The package's name alone."""
        return self.package.partition(" ")[0]

    @property
    def path(self) -> str:
        """The module that its class is in, as the metadata have it: of a stranger's, anything may stand there."""
        return self.point.value.partition(":")[0].strip()

    @property
    def is_own(self) -> bool:
        """Whether the library itself registers it."""
        return _normal(self.distribution) == _OWN

    def head_class(self) -> type[Head]:
        """The class of the head, imported.

        Raises:
            PluginError: it is broken, not enabled, or no head by this version's contract.
        """
        if self.problem:
            raise self.error(self.problem, self.fix)
        repair = f"repair or uninstall {self.distribution}"
        try:
            loaded: Any = self.point.load()
            check = getattr(loaded, "contract_problem", None)
            problem = check() if check else ("is no subclass of nlptasks.Head", repair)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a package may even end the process
            raise self.error(f"does not load ({first_line(error)})", repair) from error
        if problem:
            raise self.error(*problem)
        head: type[Head] = loaded
        return head

    def is_there(self) -> bool:
        """Whether its module can be found, as far as that can be known without importing anything."""
        top, *parts = self.path.split(".")
        try:
            spec = importlib.util.find_spec(top)
            for part in parts:
                if spec is None or spec.submodule_search_locations is None:
                    return False
                spec = PathFinder.find_spec(f"{spec.name}.{part}", list(spec.submodule_search_locations))
        except (ImportError, ValueError, AttributeError):  # what broken metadata lead to
            return False
        return spec is not None

    def error(self, problem: str, fix: str) -> PluginError:
        """What is wrong with it, with the name of its package."""
        return PluginError(self.where, problem, fix)

    @property
    def where(self) -> str:
        """Its name for messages, with its class and package."""
        return f"task {self.task} ({self.point.value} of {self.package})"


def registered() -> list[Registration]:
    """Everything that packages register, broken and not enabled ones too, by name and package.

    Raises:
        UsageError: the list of the packages that may be used cannot be read.
    """
    allowed = _allowed()
    found = [
        _registration(point, allowed) for point in sorted(_points(), key=lambda point: (point.name, _package(point)))
    ]
    by_task: dict[str, list[Registration]] = {}
    for one in found:
        by_task.setdefault(one.task, []).append(one)
    return [one for same in by_task.values() for one in _without_clash(same)]


def tasks() -> dict[str, Registration]:
    """The tasks that may be used, by name; what is known to be broken raises when it is used."""
    usable: dict[str, Registration] = {}
    for one in registered():
        if one.enabled and (one.is_own or one.task not in usable):
            usable[one.task] = one
    return usable


def find(task: str) -> Registration | None:
    """The registration of a task: the usable one, else one that is not enabled; None if there is neither."""
    same = [one for one in registered() if one.task == task]
    return next(iter(sorted(same, key=lambda one: (not one.enabled, not one.is_own))), None)


def package_of(task: str) -> str:
    """Name and version of the package that registers a task; empty if none does."""
    one = find(task)
    return one.package if one else ""


def place_of(task: str) -> str:
    """A task's name for messages, with its class and package if it is registered."""
    one = find(task)
    return one.where if one else f"task {task}"


def head_class(task: str) -> type[Head]:
    """The head class of a task.

    Raises:
        UsageError: no such task.
        PluginError: its package is broken or not enabled, or two packages register it.
    """
    one = find(task)
    if one is None:
        raise UsageError(f"task {task!r}", "is not registered", did_you_mean(task, tasks()))
    return one.head_class()


def blamed(error: BaseException) -> PluginError | None:
    """The error as that of a plugin whose code raised it, or called what raised it; None if no plugin had a part in it."""
    others = [one for one in tasks().values() if not one.is_own]
    for frame, line in _frames(error):
        for one in others:
            if _is_inside(frame, one):
                code = frame.f_code
                problem = f"failed in {code.co_name}, {code.co_filename}:{line} ({first_line(error)})"
                fix = f"tell its authors (--debug shows the traceback), or do without {one.distribution}"
                return one.error(problem, fix)
    return None


def line_in(error: BaseException, task: str) -> str:
    """File and line of a task's package that an error arose in, or came from; empty if it had no part in it."""
    one = find(task)
    for frame, line in _frames(error):
        if one and _is_inside(frame, one):
            return f"{frame.f_code.co_filename}:{line}"
    return ""


def _is_inside(frame: Any, one: Registration) -> bool:
    """Whether this is code of a task's package: that which its module is in, but nothing of the library's."""
    name, package = str(frame.f_globals.get("__name__", "")), one.path.rpartition(".")[0] or one.path
    is_ours = not one.is_own and package.partition(".")[0] == _OWN
    return not is_ours and f"{name}.".startswith(f"{package}.")


def _frames(error: BaseException) -> list[tuple[Any, int]]:
    """The frames that an error came through, and the lines in them, from where it arose."""
    found, at = [], error.__traceback__
    while at is not None:
        found.append((at.tb_frame, at.tb_lineno))
        at = at.tb_next
    return found[::-1]


def _points() -> Iterable[EntryPoint]:
    """The entry points of the group; where a package's metadata cannot be read, those of all others."""
    try:
        return entry_points(group=GROUP)
    except Exception:  # whatever parsing what a stranger wrote leads to
        return _readable_points()


def _readable_points() -> list[EntryPoint]:
    found: list[EntryPoint] = []
    for package in distributions():
        try:
            found += package.entry_points.select(group=GROUP)
        except Exception as error:
            _log.warning("the metadata of an installed package cannot be read (%s)", first_line(error))
    return found


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def _registration(point: EntryPoint, allowed: frozenset[str] | None) -> Registration:
    one = Registration(point.name, _package(point), point)
    if allowed is not None and not one.is_own and _normal(one.distribution) not in allowed:
        problem, fix = "is not enabled", f"add {one.distribution} to {PLUGINS}, or to plugins in {_SETTINGS}"
        return replace(one, problem=problem, fix=fix, enabled=False)
    if not is_name(one.task):
        problem = f"has the name {quote(one.task)}, expected {NAMES}"
        return replace(one, problem=problem, fix=f"repair or uninstall {one.distribution}")
    return one


def _without_clash(same: Sequence[Registration]) -> Iterator[Registration]:
    """Registrations of one task; where several are enabled, the library's own counts, and of others none."""
    enabled = [one for one in same if one.enabled]
    own = [one for one in enabled if one.is_own]
    for one in same:
        others = own or [other for other in enabled if other is not one]
        if not others or not one.enabled or one.is_own:
            yield one
        else:
            what = "is the library's own" if own else "is registered twice"
            problem = f"clashes with {others[0].point.value} of {others[0].package}: the task {what}"
            fix = f"uninstall {one.distribution if own else 'one of the two'}, or leave it out of {PLUGINS}"
            yield replace(one, problem=problem, fix=fix)


def _normal(name: str) -> str:
    """A package's name as names are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _allowed() -> frozenset[str] | None:
    """The packages whose heads may be used: by the environment, else by ``pyproject.toml`` here; None for all.

    Raises:
        UsageError: the list is none.
    """
    listed: Any = os.environ.get(PLUGINS)
    if listed is not None:
        return frozenset(_normal(name.strip()) for name in listed.split(",") if name.strip())
    if not _SETTINGS.is_file():
        return None
    content = _SETTINGS.read_bytes()
    if _OWN.encode() not in content:
        return None
    try:
        settings = tomllib.loads(content.decode("utf-8")).get("tool", {}).get(_OWN, {})
        listed, unknown = settings.get("plugins"), sorted(set(settings) - {"plugins"})
    except (ValueError, AttributeError) as error:
        raise UsageError(str(_SETTINGS), f"cannot be read ({first_line(error)})", "correct it") from error
    if unknown:
        raise UsageError(str(_SETTINGS), f"has {listing(unknown)} in tool.{_OWN}", "take plugins, or remove it")
    if listed is None:
        return None
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise UsageError(str(_SETTINGS), f"has plugins={quote(listed)}", 'write a list: plugins = ["nlptasks-srl"]')
    return frozenset(map(_normal, listed))
