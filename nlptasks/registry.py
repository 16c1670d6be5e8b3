"""Registered heads and backends: entry points of installed packages, read without importing any of them.

Those of the library are registered exactly like those of other packages, by one line of the package's metadata. A package is
imported when one of its heads or backends is used; if it is broken, only these cannot be used.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import tomllib
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from nlptasks.config import NAMES, is_name
from nlptasks.errors import PluginError, UsageError, did_you_mean, first_line, listing, quote

if TYPE_CHECKING:
    from nlptasks.heads.base import AnyHead
    from nlptasks.runtimes.base import Backend

_log = logging.getLogger("nlptasks")

GROUP = "nlptasks.heads"
BACKENDS = "nlptasks.backends"
PLUGINS = "NLPTASKS_PLUGINS"
"""Environment variable that lists the packages that may be used, separated by commas; unset for all."""

_OWN = __name__.partition(".")[0]
_SETTINGS = Path("pyproject.toml")
_BACKEND_MEMBERS = ("name", "precisions", "priority", "needs_export", "choose", "open")


@dataclass(frozen=True)
class Entry:
    """An entry point of a package.

    Attributes:
        name: the registered name.
        package: name and version of the package, such as ``nlptasks 0.1.0``.
        point: the entry point.
        problem: why it cannot be used, as far as this is known without importing it; else empty.
        fix: how to repair it.
        enabled: True if the user allows the package.
    """

    kind: ClassVar[str]

    name: str
    package: str
    point: EntryPoint
    problem: str = ""
    fix: str = ""
    enabled: bool = True

    @property
    def distribution(self) -> str:
        """Name of the package without its version."""
        return self.package.partition(" ")[0]

    @property
    def path(self) -> str:
        """The module of its class, as the metadata name it; those of other packages may hold any text."""
        return self.point.value.partition(":")[0].strip()

    @property
    def is_own(self) -> bool:
        """True if the library registers it."""
        return _normal(self.distribution) == _OWN

    @property
    def where(self) -> str:
        """Its name for messages, with its class and package."""
        return f"{self.kind} {self.name} ({self.point.value} of {self.package})"

    def error(self, problem: str, fix: str) -> PluginError:
        """Return an error that names the package."""
        return PluginError(self.where, problem, fix)

    def is_there(self) -> bool:
        """Return True if its module can be found, as far as this is known without importing anything."""
        top, *parts = self.path.split(".")
        try:
            spec = importlib.util.find_spec(top)
            for part in parts:
                if spec is None or spec.submodule_search_locations is None:
                    return False
                spec = PathFinder.find_spec(f"{spec.name}.{part}", list(spec.submodule_search_locations))
        except (ImportError, ValueError, AttributeError):  # raised for broken metadata
            return False
        return spec is not None

    def line_in(self, error: BaseException) -> str:
        """Return file and line of this package's code that raised an error or called what did; empty if none did."""
        package = self.path.rpartition(".")[0] or self.path
        for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
            if f"{frame.f_globals.get('__name__', '')}.".startswith(f"{package}."):
                return f"{frame.f_code.co_filename}:{line}"
        return ""

    def _load(self) -> Any:
        """Return what the entry point names, imported and checked.

        Raises:
            PluginError: it is broken, not enabled, or breaks the contract.
        """
        if self.problem:
            raise self.error(self.problem, self.fix)
        try:
            found = self.point.load()
            problem = self._contract_problem(found)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a package may even end the process
            raise self.error(f"does not load ({first_line(error)})", self._repair) from error
        if problem:
            raise self.error(*problem)
        return found

    def _contract_problem(self, found: Any) -> tuple[str, str] | None:
        """Return what the class lacks, and the fix."""
        raise NotImplementedError

    @property
    def _repair(self) -> str:
        return f"repair or uninstall {self.distribution}"


@dataclass(frozen=True)
class Registration(Entry):
    """A registered task."""

    kind = "task"

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.name

    def head_class(self) -> type[AnyHead]:
        """Return the class of the head.

        Raises:
            PluginError: it is broken, not enabled, or no head of this version's contract.
        """
        cls: type[AnyHead] = self._load()
        return cls

    def _contract_problem(self, found: Any) -> tuple[str, str] | None:
        from nlptasks.heads.contract import contract_problem  # imports numpy, which listing tasks does not need

        return contract_problem(found)


@dataclass(frozen=True)
class BackendRegistration(Entry):
    """A registered backend."""

    kind = "backend"

    def make(self) -> Backend:
        """Return a new instance.

        Raises:
            PluginError: it is broken, not enabled, or no backend.
        """
        cls = self._load()
        try:
            backend: Backend = cls()
            missing = [name for name in _BACKEND_MEMBERS if not hasattr(backend, name)]
        except Exception as error:
            raise self.error(f"does not load ({first_line(error)})", self._repair) from error
        if missing:
            raise self.error(f"lacks {listing(missing)}", self._repair)
        return backend

    def _contract_problem(self, found: Any) -> tuple[str, str] | None:
        return None if isinstance(found, type) else ("is no class", self._repair)


_EntryT = TypeVar("_EntryT", bound=Entry)


def registered() -> list[Registration]:
    """Return every registered task, including broken and disabled ones, by name and package.

    Raises:
        UsageError: the list of the packages that may be used cannot be read.
    """
    return _entries(GROUP, Registration)


def tasks() -> dict[str, Registration]:
    """Return the tasks that may be used, by name; one whose package is broken raises when it is used."""
    return {name: one for name, one in _first_choices(registered()).items() if one.enabled}


def find(task: str) -> Registration | None:
    """Return the registration of a task, even if it is disabled; None if there is none."""
    return _first_choices(registered()).get(task)


def package_of(task: str) -> str:
    """Return name and version of the package that registers a task; empty if none does."""
    one = find(task)
    return one.package if one else ""


def place_of(task: str) -> str:
    """Return a task's name for messages, with its class and package if it is registered."""
    one = find(task)
    return one.where if one else f"task {task}"


def head_class(task: str) -> type[AnyHead]:
    """Return the head class of a task.

    Raises:
        UsageError: there is no such task.
        PluginError: its package is broken or not enabled, or two packages register it.
    """
    one = find(task)
    if one is None:
        raise UsageError(f"task {task!r}", "is not registered", did_you_mean(task, tasks()))
    return one.head_class()


def backends() -> dict[str, BackendRegistration]:
    """Return the backends that may be used, by name, without importing any."""
    found = _first_choices(_entries(BACKENDS, BackendRegistration))
    return {name: one for name, one in found.items() if one.enabled}


def make_backend(name: str) -> Backend:
    """Return a new instance of a backend.

    Raises:
        UsageError: there is no such backend.
        PluginError: its package is broken or not enabled.
    """
    known = _first_choices(_entries(BACKENDS, BackendRegistration))
    if name not in known:
        fix = did_you_mean(name, ("auto", *known))
        raise UsageError(f"backend {name!r}", "is unknown", fix, argument="backend")
    return known[name].make()


def blamed(error: BaseException) -> PluginError | None:
    """Return an error of a plugin's code as an error of that plugin; None if no plugin had a part in it."""
    for one in (*tasks().values(), *backends().values()):
        is_plugin = one.path.partition(".")[0] != _OWN
        if is_plugin and (line := one.line_in(error)):
            fix = f"tell its authors, or do without {one.distribution}"
            return one.error(f"failed at {line} ({first_line(error)})", fix)
    return None


def _entries(group: str, cls: type[_EntryT]) -> list[_EntryT]:
    """Return all entry points of a group, by name and package."""
    allowed = _allowed()
    points = sorted(_points(group), key=lambda point: (point.name, _package(point)))
    by_name: dict[str, list[_EntryT]] = {}
    for point in points:
        by_name.setdefault(point.name, []).append(_entry(cls, point, allowed))
    return [one for same in by_name.values() for one in _without_clash(same)]


def _first_choices(entries: Sequence[_EntryT]) -> dict[str, _EntryT]:
    """Return the entry of each name: an enabled one if there is one, and the library's own before others."""
    found: dict[str, _EntryT] = {}
    for one in sorted(entries, key=lambda one: (not one.enabled, not one.is_own)):
        found.setdefault(one.name, one)
    return {name: found[name] for name in sorted(found)}


def _points(group: str) -> Iterable[EntryPoint]:
    """Return the entry points of a group. If the metadata of a package cannot be read, only this package is left out."""
    try:
        return entry_points(group=group)
    except Exception:  # whatever broken metadata raise
        return _readable_points(group)


def _readable_points(group: str) -> list[EntryPoint]:
    found: list[EntryPoint] = []
    for package in distributions():
        try:
            found += package.entry_points.select(group=group)
        except Exception as error:
            _log.warning("the metadata of an installed package cannot be read (%s)", first_line(error))
    return found


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def _entry(cls: type[_EntryT], point: EntryPoint, allowed: frozenset[str] | None) -> _EntryT:
    one = cls(point.name, _package(point), point)
    if allowed is not None and not one.is_own and _normal(one.distribution) not in allowed:
        problem, fix = "is not enabled", f"add {one.distribution} to {PLUGINS}, or to plugins in {_SETTINGS}"
        return replace(one, problem=problem, fix=fix, enabled=False)
    if not is_name(one.name):
        problem = f"has the name {quote(one.name)}, expected {NAMES}"
        return replace(one, problem=problem, fix=f"repair or uninstall {one.distribution}")
    return one


def _without_clash(same: Sequence[_EntryT]) -> Iterator[_EntryT]:
    """Return the entries of one name. If several are enabled, only the library's own can be used, else none."""
    enabled = [one for one in same if one.enabled]
    own = [one for one in enabled if one.is_own]
    for one in same:
        others = own or [other for other in enabled if other is not one]
        if not others or not one.enabled or one.is_own:
            yield one
        else:
            what = "is the library's own" if own else "is registered twice"
            problem = f"clashes with {others[0].point.value} of {others[0].package}: the {one.kind} {what}"
            fix = f"uninstall {one.distribution if own else 'one of the two'}, or leave it out of {PLUGINS}"
            yield replace(one, problem=problem, fix=fix)


def _normal(name: str) -> str:
    """Return a package's name in the form in which names are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _allowed() -> frozenset[str] | None:
    """Return the packages that may be used: from the environment, else from ``pyproject.toml`` here; None for all.

    Raises:
        UsageError: it is no list.
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
    except (ValueError, AttributeError, RecursionError) as error:
        raise UsageError(str(_SETTINGS), f"cannot be read ({first_line(error)})", "correct it") from error
    if unknown:
        raise UsageError(str(_SETTINGS), f"has {listing(unknown)} in tool.{_OWN}", "use plugins, or remove it")
    if listed is None:
        return None
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise UsageError(str(_SETTINGS), f"has plugins={quote(listed)}", 'write a list: plugins = ["nlptasks-srl"]')
    return frozenset(map(_normal, listed))
