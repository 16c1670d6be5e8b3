"""A new plugin: a package with a head that works unedited, written from the templates of the library."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from nlptasks.config import check_head_name
from nlptasks.errors import UsageError, quote
from nlptasks.registry import registered
from nlptasks.storage.atomic import files_in, written_beside
from nlptasks.storage.integrity import check_output
from nlptasks.version import __version__

_TEMPLATES = Path(__file__).parents[1] / "templates" / "plugin"
_SUFFIX = ".tmpl"
"""Suffix of every template, so that no tool mistakes it for the file that it becomes."""

_PLACE = "NAME"
"""Replaced by the task in file names."""


@dataclass(frozen=True)
class NewPlugin:
    """A package that was written.

    Attributes:
        folder: its folder.
        files: paths of its files in the folder.
        head_file: the one of them with the head.
    """

    folder: Path
    files: Sequence[str]
    head_file: str


def new_plugin(task: str, output: str | Path | None = None) -> NewPlugin:
    """Write a package for a new task, with a head that works, sample data and tests.

    Args:
        task: name of the task.
        output: the package's folder; None for ``nlptasks-TASK`` here.

    Raises:
        UsageError: the name is not valid or is registered already, or the folder is not empty or cannot be written.
    """
    plugin = Plugin(task)
    plugin.check()
    folder = Path(output or plugin.package)
    return NewPlugin(folder, plugin.write(folder), plugin.head_file)


@dataclass(frozen=True)
class Plugin:
    """A plugin for one task.

    Attributes:
        task: name of the task.
    """

    task: str

    @property
    def package(self) -> str:
        """Name of the package."""
        return f"nlptasks-{self.task}"

    @property
    def module(self) -> str:
        """Name of the module."""
        return f"nlptasks_{self._identifier}"

    @property
    def head_file(self) -> str:
        """Path of the file with the head, in the package."""
        return f"{self.module}/__init__.py"

    @property
    def _identifier(self) -> str:
        return self.task.replace("-", "_")

    @property
    def _class_name(self) -> str:
        return "".join(part.capitalize() for part in re.split("[-_]+", self.task))

    def check(self) -> None:
        """Refuse a task that cannot have a plugin here.

        Raises:
            UsageError: its name is not valid, or the task or another one with the same module is registered already.
        """
        check_head_name(self.task)
        where = f"task {quote(self.task)}"
        if not self.task[-1].isalnum():
            raise UsageError(where, f"ends with {self.task[-1]!r}", "end it with a letter or a digit, as packages do")
        for one in registered():
            if one.task == self.task:
                fix = "use another name" + ("" if one.is_own else f", or first pip uninstall {one.distribution}")
                raise UsageError(where, f"is registered already, by {one.package}", fix)
            if one.path.partition(".")[0] == self.module:
                problem = f"needs the module {self.module}, which belongs to the task {one.task} of {one.package}"
                raise UsageError(where, problem, "use another name")

    def write(self, folder: Path) -> list[str]:
        """Write the package into a new or empty folder, completely or not at all.

        Returns:
            Paths of its files in the folder.

        Raises:
            UsageError: the folder is not empty, or cannot be written.
        """
        check_output(folder, overwrite=True)  # an empty folder is replaced
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(str(folder), "is not empty", "use another folder")
        written = self._files()
        with written_beside(folder, UsageError) as place:
            for name, text in written.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_text(text, encoding="utf-8")
        return sorted(written)

    def _files(self) -> dict[str, str]:
        """Return the contents of each file, by path."""
        values = {
            "task": self.task,
            "module": self.module,
            "name": self._class_name,
            "version": ".".join(__version__.split(".")[:2]),
        }
        return {
            name.removesuffix(_SUFFIX).replace(_PLACE, self._identifier): Template(
                (_TEMPLATES / name).read_text(encoding="utf-8")
            ).substitute(values)
            for name in files_in(_TEMPLATES)
        }
