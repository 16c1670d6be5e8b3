"""Which tasks exist: the entry points of the group ``nlptasks.heads``, read without importing any of them.

A built-in head is registered exactly as a plugin's is, by one line of its package's metadata. A package is imported when one of
its tasks is used, not before, and what is wrong with it harms this task alone.
"""

from __future__ import annotations

import importlib.util
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from nlptasks.errors import PluginError, UsageError, did_you_mean, first_line, quote

if TYPE_CHECKING:
    from nlptasks.heads.base import Head

GROUP = "nlptasks.heads"
PLUGINS = "NLPTASKS_PLUGINS"
"""The variable that lists the packages whose heads may be used, with commas between them; unset for all."""

_OWN = __name__.partition(".")[0]
_SETTINGS = Path("pyproject.toml")
_TABLE = f"tool.{_OWN}"
_NAME = re.compile("[a-z][a-z0-9_-]{0,39}")


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
    def module(self) -> str:
        """The top-level module that is imported for it."""
        return self.point.value.partition(":")[0].strip().partition(".")[0]

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
        try:
            loaded: Any = self.point.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a package may even end the process
            raise self.error(
                f"does not load ({first_line(error)})", f"repair or uninstall {self.distribution}"
            ) from error
        check = getattr(loaded, "contract_problem", None)
        if check is None:
            raise self.error("is no subclass of nlptasks.Head", f"repair or uninstall {self.distribution}")
        if problem := check():
            raise self.error(*problem)
        head: type[Head] = loaded
        return head

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
        _registration(point, allowed)
        for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, _package(point)))
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


def package_of(task: str) -> str:
    """Name and version of the package that registers a task; empty if none does."""
    one = tasks().get(task)
    return one.package if one else ""


def place_of(task: str) -> str:
    """A task's name for messages, with its class and package if it is registered."""
    one = tasks().get(task)
    return one.where if one else f"task {task}"


def head_class(task: str) -> type[Head]:
    """The head class of a task.

    Raises:
        UsageError: no such task.
        PluginError: its package is broken or not enabled, or two packages register it.
    """
    known = tasks()
    if task in known:
        return known[task].head_class()
    for one in registered():
        if one.task == task:
            raise one.error(one.problem, one.fix)
    raise UsageError(f"task {task!r}", "is not registered", did_you_mean(task, known))


def blamed(error: BaseException) -> PluginError | None:
    """The error as that of a plugin whose code raised it, or called what raised it; None if no plugin had a part in it."""
    by_module = {one.module: one for one in tasks().values() if not one.is_own}
    for frame, line in reversed(list(_frames(error.__traceback__))):
        one = by_module.get(str(frame.f_globals.get("__name__", "")).partition(".")[0])
        if one:
            code = frame.f_code
            problem = f"failed in {code.co_name}, {code.co_filename}:{line} ({first_line(error)})"
            return one.error(
                problem, f"tell its authors (--debug shows the traceback), or do without {one.distribution}"
            )
    return None


def line_in(error: BaseException, task: str) -> str:
    """File and line of a task's package that an error arose in, or came from; empty if it had no part in it."""
    module = tasks()[task].module if task in tasks() else None
    for frame, line in reversed(list(_frames(error.__traceback__))):
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] == module:
            return f"{frame.f_code.co_filename}:{line}"
    return ""


def _frames(traceback: TracebackType | None) -> Iterator[tuple[Any, int]]:
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def _registration(point: EntryPoint, allowed: frozenset[str] | None) -> Registration:
    one = Registration(point.name, _package(point), point)
    if allowed is not None and not one.is_own and _normal(one.distribution) not in allowed:
        problem, fix = "is not enabled", f"add {one.distribution} to {PLUGINS}, or to plugins in {_SETTINGS}"
        return replace(one, problem=problem, fix=fix, enabled=False)
    if not _NAME.fullmatch(one.task):
        problem = f"has the name {quote(one.task)}, expected 1 to 40 of a-z, 0-9, _ and -, a letter first"
        return replace(one, problem=problem, fix=f"repair or uninstall {one.distribution}")
    if not one.is_own and not _is_there(one.point.module):
        return replace(
            one, problem=f"has no module {one.point.module}", fix=f"install {one.distribution} again, or uninstall it"
        )
    return one


def _without_clash(same: Sequence[Registration]) -> Iterable[Registration]:
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


def _is_there(module: str) -> bool:
    """Whether a module can be found, without importing anything."""
    top, *parts = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
        for part in parts:
            if spec is None or spec.submodule_search_locations is None:
                return False
            spec = PathFinder.find_spec(f"{spec.name}.{part}", list(spec.submodule_search_locations))
    except (ImportError, ValueError, AttributeError):  # what broken metadata lead to
        return False
    return spec is not None


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
    try:
        text = _SETTINGS.read_text(encoding="utf-8")
        if f"[{_TABLE}]" not in text:
            return None
        listed = tomllib.loads(text)["tool"][_OWN].get("plugins")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(str(_SETTINGS), f"cannot be read ({first_line(error)})", f"correct [{_TABLE}]") from error
    if listed is None:
        return None
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise UsageError(str(_SETTINGS), f"has plugins={quote(listed)}", 'write a list: plugins = ["nlptasks-srl"]')
    return frozenset(map(_normal, listed))
