"""Checkpoints of a training run: written whole or not at all, read only if every byte is the one that was written.

``checkpoints/NUMBER/`` holds ``GROUP.safetensors`` for each group of tensors and ``state.json``, which has everything else and
the sha256 of the others and of itself. The newest is kept, and the whole one before it.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors.torch import load_file
from torch import Tensor

from nlptasks.errors import TrainingError, UsageError, listing
from nlptasks.storage.atomic import locked, sealed, sha256, sweep, unsealed, written_beside
from nlptasks.storage.integrity import RUNNING
from nlptasks.storage.safetensors import write

_log = logging.getLogger("nlptasks")

_RECORD = "state.json"
_LOCK = ".nlptasks.lock"
_LARGEST_SHARE = 0.04
"""Of a run's time that may go into writing checkpoints."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on.

    Attributes:
        tensors: tensors by group and name.
        record: everything else, as JSON has it.
        number: of its folder, 0 before it is written.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    record: Mapping[str, Any]
    number: int = 0


class Checkpoints:
    """The checkpoints of one run, which alone may write them; a context manager.

    Args:
        output: the folder that the run's model will have; they stand in its folder ``checkpoints``.
        fresh: whether what stands there is removed.
        seconds: between two checkpoints; more where writing one takes long.

    Raises:
        UsageError: another run is writing there.
    """

    def __init__(self, output: Path, *, fresh: bool, seconds: float) -> None:
        self.folder = output.resolve() / RUNNING
        self._last_whole = 0
        self._seconds = seconds
        self._due = time.monotonic() + seconds
        self._lock = FileLock(self.folder / _LOCK)
        self._fresh = fresh

    def __enter__(self) -> Checkpoints:
        with locked(self.folder.parent, UsageError):
            self._begin()
        return self

    def _begin(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            fix = "wait for it, or take another folder"
            raise UsageError(str(self.folder.parent), "is being trained by another process", fix) from None
        except OSError as error:
            raise UsageError(str(self.folder), f"cannot be written ({error})", "give another -o") from error
        sweep(self.folder.parent)
        for path in self.folder.iterdir():
            if path.is_dir() and (self._fresh or path.name.startswith(".")):  # what a killed run had not finished
                shutil.rmtree(path)

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if self.folder.is_dir() and not _numbered(self.folder):
            shutil.rmtree(self.folder, ignore_errors=True)
            if not any(self.folder.parent.iterdir()):
                self.folder.parent.rmdir()

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() >= self._due

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; it is kept until there are two newer ones. See `newest`."""
        found = newest(self.folder.parent)
        self._last_whole = found.number if found else 0
        return found

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, and remove those before it but for the last one that is whole.

        Raises:
            TrainingError: the disk refuses; the checkpoints before it stand as they are.
        """
        begun = time.monotonic()
        before = _numbered(self.folder)
        number = int(before[-1].name) + 1 if before else 1
        with written_beside(self.folder / f"{number:06d}", TrainingError) as place:
            for group, tensors in checkpoint.tensors.items():
                write(place / f"{group}.safetensors", tensors)
            files = {path.name: sha256(path) for path in sorted(place.iterdir())}
            (place / _RECORD).write_bytes(sealed({"files": files, **checkpoint.record}))
        for path in before:
            if int(path.name) != self._last_whole:
                shutil.rmtree(path, ignore_errors=True)
        self._last_whole = number
        ended = time.monotonic()
        self._due = ended + max(self._seconds, (ended - begun) / _LARGEST_SHARE)


def is_begun(output: Path) -> bool:
    """Whether a run has begun in this folder and has not come to its end."""
    place = output / RUNNING
    return (place / _LOCK).is_file() or any((path / _RECORD).is_file() for path in _numbered(place))


def newest(output: Path) -> Checkpoint | None:
    """The newest checkpoint of a run that is whole, None if it has not come to any.

    Raises:
        TrainingError: there are checkpoints, and all are damaged.
    """
    found = _numbered(output / RUNNING)
    for path in reversed(found):
        try:
            return _read(path)
        except (OSError, ValueError) as error:
            _log.warning("%s: is damaged (%s)", path, error)
    if found:
        names = listing(path.name for path in found)
        raise TrainingError(str(output / RUNNING), f"has no whole checkpoint ({names})", "train again with --overwrite")
    return None


def _read(path: Path) -> Checkpoint:
    """One checkpoint.

    Raises:
        OSError, ValueError: it is damaged.
    """
    record = unsealed((path / _RECORD).read_bytes())
    files = record.pop("files")
    for name, expected in files.items():
        if sha256(path / name) != expected:
            raise ValueError(f"{name} has another sha256")
    # Copied, because what is loaded stays mapped, and a file that is mapped cannot be removed everywhere.
    tensors = {name: {key: value.clone() for key, value in load_file(path / name).items()} for name in files}
    return Checkpoint({name.removesuffix(".safetensors"): own for name, own in tensors.items()}, record, int(path.name))


def _numbered(folder: Path) -> list[Path]:
    """The folders of checkpoints, oldest first."""
    return sorted(path for path in folder.glob("*") if path.name.isdecimal() and path.is_dir())
