"""Folders that are written completely or not at all, and JSON files with their own sha256."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nlptasks.errors import NlptasksError, quote

_LOCK_SECONDS = 60.0
_PIECE = 2**22
"""Bytes of a file that are hashed at once."""

_TRIES = 100
"""Attempts to put a folder into its place while other writers do the same."""


def sha256(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_beside(path: Path) -> str:
    """Return the same in a background thread: the pieces are large, so that the thread seldom waits for the others."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_PIECE))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()


def sealed(record: Mapping[str, Any]) -> bytes:
    """Return a record as JSON that starts with the sha256 of the rest."""
    text = json.dumps(record, indent=1, ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return (json.dumps({"sha256": digest, **record}, indent=1, ensure_ascii=False) + "\n").encode()


def unsealed(content: bytes) -> dict[str, Any]:
    """Return the record that `sealed` wrote.

    Raises:
        ValueError: this is no such JSON, or a byte of it has changed.
    """
    record = parsed(content)
    if not isinstance(record, dict) or "sha256" not in record:
        raise ValueError("it has no sha256")
    del record["sha256"]
    if sealed(record) != content:
        raise ValueError("it does not match its sha256")
    return record


def parsed(content: bytes) -> Any:
    """Return JSON that anybody may have written.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or has a key twice.
    """
    try:
        return json.loads(content, object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key {quote(next(key for key in keys if keys.count(key) > 1))} twice")
    return found


def files_in(folder: Path) -> list[str]:
    """Return the files below a folder, by their relative paths."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


Failure = Callable[[str, str, str], NlptasksError]
"""Class of the error to raise if the disk refuses."""


@contextmanager
def written_beside(target: Path, failure: Failure) -> Iterator[Path]:
    """Provide a temporary folder beside the target, which replaces it when the block succeeds and is removed if it fails.

    Every file is on the disk before the folder gets its name, so not even a power cut leaves half a folder.

    Raises:
        failure: the disk refuses; the target stays as it was.
    """
    target = target.resolve()
    place: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
        place.chmod(0o755)
        yield place
        for name in sorted(files_in(place)):
            (place / name).chmod(0o644)  # safetensors makes files private
            _sync(place / name)
        for folder in [path for path in place.rglob("*") if path.is_dir()] + [place]:
            _sync(folder)
        _take_place(place, target)
    except OSError as error:
        raise failure(str(target), f"cannot be written ({error})", "check the path and the free space") from error
    finally:
        if place:
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def locked(target: Path, failure: Failure) -> Iterator[None]:
    """Hold a lock on a folder, so that no other process of this user moves it away or starts to write in it.

    Raises:
        failure: another process holds the lock for a minute, or the disk refuses.
    """
    target = target.resolve()
    owner = os.getuid() if hasattr(os, "getuid") else 0
    place = Path(tempfile.gettempdir()) / f"nlptasks-{owner}"  # beside the folder, lock files would stay for ever
    lock = FileLock(place / f"{hashlib.sha256(os.fsencode(target)).hexdigest()[:32]}.lock", timeout=_LOCK_SECONDS)
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        _check_private(place)
        lock.acquire()
    except Timeout:
        raise failure(str(target), "is being written by another process", "try again when it has finished") from None
    except OSError as error:
        raise failure(str(place), f"cannot be used ({error})", "set TMPDIR to a folder of your own") from error
    try:
        yield
    finally:
        lock.release()


def _check_private(folder: Path) -> None:
    """Check that a folder in the shared temporary folder belongs to this user: others could plant links in it.

    Raises:
        OSError: it is a link, or others may write to it.
    """
    state = folder.lstat()
    is_mine = stat.S_ISDIR(state.st_mode) and (not hasattr(os, "getuid") or state.st_uid == os.getuid())
    if not is_mine or (os.name != "nt" and state.st_mode & 0o022):
        raise PermissionError(errno.EPERM, "it is a link, or other users may write to it", str(folder))


def restored(target: Path) -> bool:
    """Restore the folder that a killed writer had moved away. Return True if there was one."""
    target = target.resolve()
    if target.exists():
        return False
    with suppress(OSError):  # another process has restored it, or its writer has finished
        left = sorted(_left(target, "old"), key=lambda path: path.stat().st_mtime)
        if left:
            os.rename(left[-1], target)
            return True
    return False


def restored_inside(folder: Path) -> None:
    """Restore the folders inside a folder that killed writers had moved away."""
    for left in folder.glob(".*.old-*"):
        restored(folder / left.name[1:].rpartition(".old-")[0])


def sweep(target: Path) -> None:
    """Remove what killed writers left beside a folder; the caller holds its lock."""
    target = target.resolve()
    for left in [*_left(target, "tmp"), *_left(target, "old")]:
        shutil.rmtree(left, ignore_errors=True)


def _left(target: Path, kind: str) -> Iterator[Path]:
    return target.parent.glob(f".{glob.escape(target.name)}.{kind}-*")


def _take_place(place: Path, target: Path) -> None:
    """Rename a folder to a name that another one may have, which is removed afterwards. Of two writers the later one wins."""
    old = place.with_name(place.name.replace(".tmp-", ".old-"))
    for _ in range(_TRIES):
        moved = _moved(target, old)
        try:
            os.rename(place, target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another writer was faster
                shutil.rmtree(old, ignore_errors=True)
                continue
            if moved:
                os.rename(old, target)
            raise
        break
    else:
        raise OSError(errno.EBUSY, "other processes keep writing there", str(target))
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _moved(target: Path, old: Path) -> bool:
    try:
        os.rename(target, old)
    except FileNotFoundError:
        return False
    return True


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
