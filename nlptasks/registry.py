"""Which tasks exist: the entry points of the group ``nlptasks.heads``, read without importing any of them.

A built-in head is registered exactly as a plugin's is, by one line of its package's metadata.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from nlptasks.errors import PluginError, UsageError, did_you_mean

if TYPE_CHECKING:
    from nlptasks.heads.base import Head

GROUP = "nlptasks.heads"


def tasks() -> dict[str, EntryPoint]:
    """Every registered task and where its head class is.

    Raises:
        PluginError: two packages register the same task.
    """
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, package(point))):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise PluginError(
                f"task {point.name}",
                f"registered by {package(other)} ({other.value}) and by {package(point)} ({point.value})",
                "uninstall one of the two",
            )
    return found


def package(point: EntryPoint) -> str:
    """Name and version of the package that registers a task."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def package_of(task: str) -> str:
    """Name and version of the package that registers a task; empty if none does."""
    point = tasks().get(task)
    return package(point) if point else ""


def head_class(task: str) -> type[Head]:
    """The head class of a task.

    Raises:
        UsageError: no such task.
        PluginError: its module cannot be imported.
    """
    known = tasks()
    if task not in known:
        raise UsageError(f"task {task!r}", "is not registered", did_you_mean(task, known))
    point = known[task]
    try:
        loaded: type[Head] = point.load()
    except Exception as error:
        raise PluginError(
            f"task {task}",
            f"{point.value} of {package(point)} does not load ({error})",
            "repair or uninstall that package",
        ) from error
    return loaded
