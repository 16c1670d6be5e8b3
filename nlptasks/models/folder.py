"""A model folder: opened and checked, read without its weights. Imports neither torch nor transformers.

The folder has ``nlptasks.json`` (what the model is, and the sha256 of every file), ``backbone/`` in Hugging Face's layout and
``heads/NAME.safetensors``. safetensors and JSON only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nlptasks.backbones.info import (
    CHAT_TEMPLATE,
    CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    BackboneInfo,
    read_tokenizer,
)
from nlptasks.config import file_fields
from nlptasks.errors import (
    BackendError,
    ModelError,
    NlptasksError,
    PluginError,
    UsageError,
    did_you_mean,
    quote,
    refusing,
)
from nlptasks.heads.base import Head
from nlptasks.models.manifest import (
    EXPORTS,
    MANIFEST,
    REPORT,
    HeadRecord,
    head_file,
    read_manifest,
    read_report,
)
from nlptasks.registry import find, package_of
from nlptasks.storage.atomic import restored, restored_inside
from nlptasks.storage.integrity import RESTORE, check_files, read_whole
from nlptasks.text.windows import Tokenizer

_log = logging.getLogger("nlptasks")

_Result = TypeVar("_Result")

_TRIES = 100
"""How often a folder that other processes keep replacing is read."""

_PACKAGE = re.compile("[A-Za-z0-9]+([._-]+[A-Za-z0-9]+)*")


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk. Every file is checked when it is opened; those of an export when the export is opened.

    Attributes:
        path: the folder.
        manifest: its ``nlptasks.json``.
        exports: the ``report.json`` of each ONNX export, by precision.
    """

    path: Path
    manifest: Mapping[str, Any]
    exports: Mapping[str, Mapping[str, Any]]

    @classmethod
    def open(cls, folder: str | Path) -> ModelFolder:
        """Read and check a model folder.

        Raises:
            ModelError: it is no model, made by a newer library, or not as it was written.
        """
        return cls.read(folder, lambda stored: stored)

    @classmethod
    def read(cls, folder: str | Path, use: Callable[[ModelFolder], _Result]) -> _Result:
        """Read and check a model folder, and return the result of a function that reads more of it meanwhile.

        If another process replaces the folder while it is read, as it does to add or rename a head, the new one is read.

        Args:
            folder: the folder.
            use: reads what is needed; it may be called several times.

        Raises:
            ModelError: it is no model, made by a newer library, or not as it was written.
        """
        path = Path(folder)

        def attempt() -> _Result:
            with cls._checked(path) as stored:
                return use(stored)

        return _undisturbed(attempt, path)

    @classmethod
    def unchecked(cls, folder: str | Path) -> ModelFolder:
        """Read the manifest and the reports of a model folder, and check no other file.

        Raises:
            ModelError: it is no model, or made by a newer library.
        """
        path = Path(folder)
        return _undisturbed(lambda: cls._described(path), path)

    @classmethod
    @contextlib.contextmanager
    def _checked(cls, path: Path) -> Iterator[ModelFolder]:
        """Check a model folder while the block reads it; the result of the block is void if a file is wrong.

        Raises:
            ModelError: it is no model, made by a newer library, or not as it was written.
        """
        stored = cls._described(path)
        with ThreadPoolExecutor(1) as threads:
            check = threads.submit(check_files, path, stored.manifest["files"])
            try:
                yield stored
            finally:
                check.result()  # names the damaged file, where the block's own error names only a consequence

    @classmethod
    def _described(cls, path: Path) -> ModelFolder:
        if restored(path):
            _log.warning("%s: restored to its state before a writer was killed", path)
        restored_inside(path / EXPORTS)
        if not os.path.lexists(path / MANIFEST):
            problem = "has no nlptasks.json" if path.is_dir() else "is no folder"
            fix = "give the folder that 'nlptasks train' wrote with -o"
            if (path / CONFIG).is_file():
                problem, fix = "is a Hugging Face checkpoint", f"run: nlptasks import {path} --task TASK -o DIR"
            raise ModelError(str(path), f"{problem}, so it is no model", fix)
        return cls(path, read_manifest(path / MANIFEST), _reports(path))

    @property
    def records(self) -> dict[str, HeadRecord]:
        """The record of each head."""
        return {name: HeadRecord(**record) for name, record in self.manifest["heads"].items()}

    def head_name(self, wanted: str) -> str:
        """Return a head's name for its name, or for a task of which there is one head.

        Raises:
            UsageError: there is none, or several.
        """
        records = self.records
        if wanted in records:
            return wanted
        same = [name for name, record in records.items() if record.task == wanted]
        if len(same) == 1:
            return same[0]
        problem = f"has {len(same)} heads for {wanted!r}" if same else f"has no head {wanted!r}"
        raise UsageError(str(self.path), problem, did_you_mean(wanted, same or records))

    def head_names(self, wanted: list[str] | None) -> list[str]:
        """Return the names of the wanted heads; None for all."""
        return list(self.records) if wanted is None else [self.head_name(name) for name in wanted]

    def backbone_info(self) -> BackboneInfo:
        """Return the facts about the backbone.

        Raises:
            ModelError: a file is damaged.
        """
        place = self.path / "backbone"
        small = (CONFIG, TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE)
        files = {name: read_whole(place / name) for name in small if (place / name).is_file()}
        return BackboneInfo.from_record(self.manifest["backbone"], files)

    def tokenizer(self) -> Tokenizer:
        """Return the backbone's tokenizer."""
        return read_tokenizer(self.backbone_info())

    def heads(self, names: list[str] | None = None) -> dict[str, Head[Any, Any, Any]]:
        """Return the heads without their weights.

        Raises:
            ModelError: a head's config is damaged, or its package is not installed.
            PluginError: its package is broken.
        """
        info = self.backbone_info()
        for name in self.head_names(names):
            made, here = self.records[name].package, package_of(self.records[name].task)
            if made.partition(" ")[0] != here.partition(" ")[0] and here:
                by = made or "an unknown package"
                _log.warning("%s: the head %s was made by %s, and is read by %s", self.path, name, by, here)
        return {name: self._head(name, info) for name in self.head_names(names)}

    def problem_of(self, name: str) -> NlptasksError | None:
        """Return why the class of a head is not available: its package is missing, not enabled or broken."""
        try:
            self.head_class(name)
        except (PluginError, ModelError) as error:
            return error
        return None

    def head_class(self, name: str) -> type[Head[Any, Any, Any]]:
        """Return the class of a head. Only registered tasks are imported, never what a model names.

        Raises:
            ModelError: its package is not installed.
            PluginError: its package is broken.
        """
        record = self.records[name]
        one = find(record.task)
        if one is None:
            package = record.package.partition(" ")[0]
            fix = f"pip install {package}" if _PACKAGE.fullmatch(package) else "install the package that has it"
            problem = f"needs for {name!r} the head {quote(record.task)} of the package {quote(record.package)}"
            raise ModelError(str(self.path), problem, fix)
        return one.head_class()

    def _head(self, name: str, info: BackboneInfo) -> Head[Any, Any, Any]:
        cls, record = self.head_class(name), self.records[name]
        with refusing(str(self.path / MANIFEST), f"has an unusable head {name!r}", RESTORE):
            values = {key: _frozen(value) for key, value in record.config.items()}
            for key, end in file_fields(cls.Config).items():
                if values.get(key):
                    values[key] = read_whole(self.path / head_file(name, end)).decode("utf-8")
            try:
                return cls(cls.Config(**values), info)
            except UsageError as error:
                problem = f"is damaged ({error.where} of the head {name} {error.problem})"
                raise ModelError(str(self.path / MANIFEST), problem, RESTORE) from error


def _undisturbed(attempt: Callable[[], _Result], path: Path) -> _Result:
    """Return the result of reading a model folder; it is read again if another process has replaced it meanwhile."""
    tries, reread = _TRIES, False
    while True:
        before, tries = _identity(path), tries - 1
        try:
            result = attempt()
        except (ModelError, BackendError, OSError):
            if not tries or _identity(path) == before:
                raise
        else:  # an export that was missing for a moment is no error, but there may be a better result now
            if reread or _identity(path) == before:
                return result
            reread = True


def _identity(path: Path) -> dict[Path, tuple[int, int]]:
    """Return what distinguishes the manifest and the reports of a model folder from others that replace them."""
    found = {}
    with contextlib.suppress(OSError):  # it is being replaced
        for file in (path / MANIFEST, *_report_files(path)):
            state = file.stat()
            found[file] = state.st_ino, state.st_mtime_ns
    return found


def _report_files(path: Path) -> list[Path]:
    return sorted((path / EXPORTS).glob(f"[!.]*/{REPORT}"))


def _reports(path: Path) -> dict[str, dict[str, Any]]:
    """Return the report of each export by precision. A damaged one is left out with a warning: the model itself is good."""
    reports = {}
    for file in _report_files(path):
        try:
            reports[file.parent.name] = read_report(file)
        except ModelError as error:
            _log.warning("%s", error)
    return reports


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
