"""Checkpoints of a training run: written completely or not at all, and read only if no byte has changed.

``checkpoints/NUMBER/`` contains ``GROUP.safetensors`` for each group of tensors, and ``state.json`` with everything else, the
sha256 of the other files and of itself. The newest checkpoint and the last intact one before it are kept.
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
_MAX_SHARE = 0.04
"""Maximum fraction of a run's time that is spent on writing checkpoints."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to resume.

    Attributes:
        tensors: tensors by group and name.
        record: everything else, as JSON.
        number: number of its folder, 0 before it is written.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    record: Mapping[str, Any]
    number: int = 0


class Checkpoints:
    """Context manager for the checkpoints of a run, with a lock against other runs in the same folder.

    Args:
        output: folder of the run's model; checkpoints are in its subfolder ``checkpoints``.
        fresh: True to remove existing checkpoints.
        seconds: minimum time between two checkpoints; it is longer if writing one takes long.

    Raises:
        UsageError: another run is using the folder.
    """

    def __init__(self, output: Path, *, fresh: bool, seconds: float) -> None:
        self.folder = output.resolve() / RUNNING
        self._last_intact = 0
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
            fix = "wait until it has finished, or use another folder"
            raise UsageError(str(self.folder.parent), "is being trained by another process", fix) from None
        except OSError as error:
            raise UsageError(str(self.folder), f"cannot be written ({error})", "use another output folder") from error
        sweep(self.folder.parent)
        for path in self.folder.iterdir():
            if path.is_dir() and (self._fresh or path.name.startswith(".")):  # unfinished ones of a killed run
                shutil.rmtree(path)

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if self.folder.is_dir() and not _numbered(self.folder):
            shutil.rmtree(self.folder, ignore_errors=True)
            if not any(self.folder.parent.iterdir()):
                self.folder.parent.rmdir()

    @property
    def due(self) -> bool:
        """True if it is time for the next checkpoint."""
        return time.monotonic() >= self._due

    def newest(self) -> Checkpoint | None:
        """Return the newest intact checkpoint, see `newest`. It is kept until there are two newer ones."""
        found = newest(self.folder.parent)
        self._last_intact = found.number if found else 0
        return found

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, and remove all older ones but the last intact one.

        Raises:
            TrainingError: the disk refuses; older checkpoints stay as they are.
        """
        begun = time.monotonic()
        before = _numbered(self.folder)
        number = int(before[-1].name) + 1 if before else 1
        with written_beside(self.folder / f"{number:06d}", TrainingError) as folder:
            for group, tensors in checkpoint.tensors.items():
                write(folder / f"{group}.safetensors", tensors)
            files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
            (folder / _RECORD).write_bytes(sealed({"files": files, **checkpoint.record}))
        for path in before:
            if int(path.name) != self._last_intact:
                shutil.rmtree(path, ignore_errors=True)
        self._last_intact = number
        ended = time.monotonic()
        self._due = ended + max(self._seconds, (ended - begun) / _MAX_SHARE)


def is_begun(output: Path) -> bool:
    """Return True if the folder has an unfinished run."""
    folder = output / RUNNING
    return (folder / _LOCK).is_file() or any((path / _RECORD).is_file() for path in _numbered(folder))


def newest(output: Path) -> Checkpoint | None:
    """Return the newest intact checkpoint of a run, or None if it has none.

    Raises:
        TrainingError: all its checkpoints are damaged.
    """
    found = _numbered(output / RUNNING)
    for path in reversed(found):
        try:
            return _read(path)
        except (OSError, ValueError) as error:
            _log.warning("%s: is damaged (%s)", path, error)
    if found:
        names = listing(path.name for path in found)
        raise TrainingError(
            str(output / RUNNING), f"has no intact checkpoint ({names})", "train again with `overwrite=True`"
        )
    return None


def _read(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        OSError, ValueError: it is damaged.
    """
    record = unsealed((path / _RECORD).read_bytes())
    files = record.pop("files")
    for name, expected in files.items():
        if sha256(path / name) != expected:
            raise ValueError(f"{name} has another sha256")
    # safetensors maps the file, and Windows cannot remove a mapped file: so the tensors are copied.
    tensors = {name: {key: value.clone() for key, value in load_file(path / name).items()} for name in files}
    return Checkpoint({name.removesuffix(".safetensors"): own for name, own in tensors.items()}, record, int(path.name))


def _numbered(folder: Path) -> list[Path]:
    """Return the folders of checkpoints, oldest first."""
    return sorted(path for path in folder.glob("*") if path.name.isdecimal() and path.is_dir())
