"""Folders that are written whole or not at all, and JSON files that know their own sha256."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nlptasks.errors import NlptasksError, quote

_SEAL = re.compile(rb'\{\n "sha256": "([0-9a-f]{64})",\n')
_BLANK = "0" * 64
_LOCK_SECONDS = 60.0
_TRIES = 100
"""Times that a folder is put into its place again because another writer was there first."""


def sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_beside(path: Path) -> str:
    """The same for a thread that works beside others: the file is mapped, so that it waits for nobody between two pieces.

    As with safetensors, which maps files too, the process dies if somebody cuts the file short meanwhile.
    """
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:  # nothing can be mapped
            return hashlib.sha256().hexdigest()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return hashlib.sha256(content).hexdigest()


def sealed(record: Mapping[str, Any]) -> bytes:
    """A record as JSON text that begins with its own sha256, taken with zeros in that place."""
    text = json.dumps({"sha256": _BLANK, **record}, indent=1, ensure_ascii=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return text.replace(_BLANK, digest, 1).encode()


class NoSealError(ValueError):
    """A text does not begin as `sealed` lets it begin."""


def unsealed(content: bytes) -> dict[str, Any]:
    """The record that `sealed` wrote.

    Raises:
        NoSealError: it does not begin with its own sha256.
        ValueError: it is no such text, or a byte of it is not the one that was written.
    """
    match = _SEAL.match(content)
    if match is None:
        raise NoSealError("its first member is not its sha256")
    start, end = match.span(1)
    found = hashlib.sha256(content[:start] + _BLANK.encode() + content[end:]).hexdigest()
    if found != match[1].decode():
        raise ValueError(f"its sha256 is {found}, expected {match[1].decode()}")
    record: dict[str, Any] = parsed(content)
    del record["sha256"]
    return record


def parsed(content: bytes) -> Any:
    """JSON that a stranger may have written.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or says the same key twice.
    """
    try:
        return json.loads(content, object_pairs_hook=_without_doubles)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {quote(next(key for key in keys if keys.count(key) > 1))} stands there twice")
    return found


def files_in(folder: Path) -> list[str]:
    """The files below a folder, by their paths from there."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


Failure = Callable[[str, str, str], NlptasksError]
"""The class of the error when the disk refuses."""


@contextmanager
def written_beside(target: Path, failure: Failure) -> Iterator[Path]:
    """A temporary folder beside the target, which takes its place when the block ends well, and is gone if not.

    Every file is on the disk before the folder gets its name, so that not even a power cut leaves half of it there.

    Raises:
        failure: the disk refuses; what stood there before stands there still.
    """
    target = target.resolve()
    place: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
        place.chmod(0o755)
        yield place
        for name in sorted(files_in(place)):
            (place / name).chmod(0o644)  # safetensors lets nobody else read what it writes
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
    """Keep other processes of this user that lock it, too, from moving a folder away, or beginning to write in it.

    Raises:
        failure: another process keeps it for a minute, or the disk refuses.
    """
    target = target.resolve()
    owner = os.getuid() if hasattr(os, "getuid") else 0
    place = Path(tempfile.gettempdir()) / f"nlptasks-{owner}"  # beside the folder it would lie about for good
    lock = FileLock(place / f"{hashlib.sha256(os.fsencode(target)).hexdigest()[:32]}.lock", timeout=_LOCK_SECONDS)
    try:
        place.mkdir(exist_ok=True)
        lock.acquire()
    except Timeout:
        raise failure(str(target), "is being written by another process", "try again when that has ended") from None
    except OSError as error:
        raise failure(str(place), f"cannot be used ({error})", "set TMPDIR to a folder that can") from error
    try:
        yield
    finally:
        lock.release()


def restored(target: Path) -> bool:
    """Put back the folder that a writer had moved away when it was killed; whether there was one."""
    target = target.resolve()
    if target.exists():
        return False
    with suppress(OSError):  # another process has put it back, or its writer has come to the end
        left = sorted(_left(target, "old"), key=lambda path: path.stat().st_mtime)
        if left:
            os.rename(left[-1], target)
            return True
    return False


def restored_inside(folder: Path) -> None:
    """Put back the folders inside a folder that writers had moved away when they were killed."""
    for left in folder.glob(".*.old-*"):
        restored(folder / left.name[1:].rpartition(".old-")[0])


def sweep(target: Path) -> None:
    """Remove what killed writers left beside a folder that nobody else writes."""
    target = target.resolve()
    for left in [*_left(target, "tmp"), *_left(target, "old")]:
        shutil.rmtree(left, ignore_errors=True)


def _left(target: Path, kind: str) -> Iterator[Path]:
    return target.parent.glob(f".{glob.escape(target.name)}.{kind}-*")


def _take_place(place: Path, target: Path) -> None:
    """Rename a folder to where another may stand, which is removed only afterwards.

    Of two writers at once the later one wins; neither ever stands there half.
    """
    old = place.with_name(place.name.replace(".tmp-", ".old-"))
    for _ in range(_TRIES):
        moved = _moved(target, old)
        try:
            os.rename(place, target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another writer took the place meanwhile
                shutil.rmtree(old, ignore_errors=True)
                continue
            if moved:
                os.rename(old, target)
            raise
        break
    else:
        raise OSError(errno.EBUSY, "other processes write there without end", str(target))
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
