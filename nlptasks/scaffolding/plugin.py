"""A new plugin: a package with a head that works as it stands, written from the templates that come with the library."""

from __future__ import annotations

import re
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
"""Of every template, so that nothing takes one for the file that it becomes."""

_PLACE = "NAME"
"""What stands in the names of files for the task."""


@dataclass(frozen=True)
class Plugin:
    """A plugin for one task, by its names.

    Attributes:
        task: the task.
    """

    task: str

    @property
    def package(self) -> str:
        """What is installed."""
        return f"nlptasks-{self.task}"

    @property
    def module(self) -> str:
        """What is imported."""
        return f"nlptasks_{self._identifier}"

    @property
    def head_file(self) -> str:
        """The file with the head, by its path in the package."""
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
            UsageError: its name does not fit, or it is registered already, or another task of its module is.
        """
        check_head_name(self.task)
        where = f"task {quote(self.task)}"
        if not self.task[-1].isalnum():
            raise UsageError(
                where, f"ends with {self.task[-1]!r}", "let it end as a package may: with a letter or a digit"
            )
        for one in registered():
            if one.task == self.task:
                fix = "take another name" + ("" if one.is_own else f", or first pip uninstall {one.distribution}")
                raise UsageError(where, f"is registered already, by {one.package}", fix)
            if one.path.partition(".")[0] == self.module:
                problem = f"needs the module {self.module}, which is that of the task {one.task} of {one.package}"
                raise UsageError(where, problem, "take another name")

    def write(self, folder: Path) -> list[str]:
        """Write the package into a new or empty folder, whole or not at all.

        Returns:
            The files, by their paths in the folder.

        Raises:
            UsageError: the folder is not empty, or cannot be written.
        """
        check_output(folder, overwrite=True)  # an empty one is replaced
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(str(folder), "is not empty", "give another -o")
        written = self._files()
        with written_beside(folder, UsageError) as place:
            for name, text in written.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_text(text, encoding="utf-8")
        return sorted(written)

    def _files(self) -> dict[str, str]:
        """What stands in the package, by path."""
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
