"""What a model folder must hold: the files that its manifest lists, with the bytes that were written.

Links are followed: caches, mounted volumes and data version control are made of them, and the sha256 guards the content. Files
that are not listed are never opened.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from nlptasks.errors import ModelError, UsageError, quote
from nlptasks.storage.atomic import parsed, restored, sha256_beside

_log = logging.getLogger("nlptasks")

MAX_BYTES = 64 * 2**20
"""Largest size of a file that is read whole: a manifest, a config or a tokenizer."""

RESTORE = "restore the folder from where it was made"
CARD = "README.md"
"""The model card: people may edit it."""

RUNNING = "checkpoints"
"""Folder of an unfinished training run, which checks its own files."""

_DIGEST = re.compile("[0-9a-f]{64}")
_THREADS = 4


def read_whole(file: Path) -> bytes:
    """Return the bytes of a file that is small enough to be read whole.

    Raises:
        ModelError: it is missing, no regular file, or too large.
    """
    try:
        check_size(file)
        return file.read_bytes()
    except OSError as error:
        raise ModelError(str(file), f"cannot be read ({error})", RESTORE) from error


def check_size(file: Path) -> None:
    """Check that a file is a regular one, small enough to be read whole.

    Raises:
        ModelError: it is not.
        OSError: it cannot be read.
    """
    state = file.stat()
    if not stat.S_ISREG(state.st_mode):
        raise ModelError(str(file), "is no regular file", RESTORE)
    if state.st_size > MAX_BYTES:
        raise ModelError(str(file), f"has {state.st_size} bytes, expected at most {MAX_BYTES}", RESTORE)


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in somebody else's file.

    Raises:
        ModelError: it cannot be read, or is no JSON object.
    """
    try:
        values = parsed(read_whole(file))
    except ValueError as error:
        raise ModelError(str(file), f"is no usable JSON ({error})", RESTORE) from error
    if not isinstance(values, dict):
        raise ModelError(str(file), f"is {quote(values)}, expected an object", RESTORE)
    return values


def check_list(files: Mapping[str, str], *, where: str) -> None:
    """Check the names and digests of a list of files, before any of them is opened.

    Raises:
        ModelError: a name is no path inside the folder on every system, or a digest is no sha256.
    """
    for name, digest in files.items():
        path = PurePosixPath(name)
        is_inside = not path.is_absolute() and ".." not in path.parts and path.as_posix() == name != "."
        if not is_inside or not name.isprintable() or set(name) & set("\\:"):
            raise ModelError(where, f"lists the file {quote(name)}, expected a path inside the folder", RESTORE)
        if not _DIGEST.fullmatch(digest):
            raise ModelError(where, f"lists {quote(name)} with {quote(digest)}, expected a sha256", RESTORE)


def check_files(folder: Path, listed: Mapping[str, str], *, fix: str = RESTORE) -> None:
    """Check that a folder has the listed files, each with the bytes that were written.

    Args:
        folder: the folder.
        listed: the sha256 of each file.
        fix: what to do about a file that is missing or changed.

    Raises:
        ModelError: one is missing or changed. A changed model card is only logged.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        found = dict(zip(listed, threads.map(_digest, (folder / name for name in listed)), strict=True))
    for name, expected in listed.items():
        if found[name] == expected:
            continue
        problem = "is missing" if found[name] is None else f"has sha256 {found[name]}, expected {expected}"
        if name != CARD:
            raise ModelError(str(folder / name), problem, fix)
        _log.warning("%s: %s; the model itself is unchanged", folder / name, problem)


def _digest(file: Path) -> str | None:
    """Return the sha256 of a file, or None if it is missing or no regular file."""
    try:
        return sha256_beside(file) if file.is_file() else None
    except OSError as error:
        raise ModelError(str(file), f"cannot be read ({error})", RESTORE) from error


def check_shape(value: Any, shape: Any, *, name: str) -> None:
    """Check the types of the values in a record.

    Args:
        value: the record.
        shape: a type, a tuple of types, or a dict of the shapes of its values by key, with ``...`` for any key.
        name: name of the record, for messages.

    Raises:
        ValueError: a value has another type, or a key is missing or unknown.
    """
    if not isinstance(shape, dict):
        kinds = shape if isinstance(shape, tuple) else (shape,)
        if type(value) not in kinds:  # a bool is an int by inheritance
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{name} is {quote(value)}, expected {expected}")
        return
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {quote(value)}, expected an object")
    if ... not in shape and value.keys() != shape.keys():
        raise ValueError(f"{name} has {sorted(value)}, expected {sorted(shape)}")
    for key, part in value.items():
        check_shape(part, shape[...] if ... in shape else shape[key], name=f"{name}.{key}" if name else key)


def check_output(folder: Path, *, overwrite: bool, resumable: bool = False) -> None:
    """Refuse an output folder that is not empty, or that could not be written in the end.

    Args:
        folder: the folder.
        overwrite: True to replace what is there.
        resumable: True if an unfinished run there could be resumed, for the message.

    Raises:
        UsageError: it is not empty, no folder, or its parent is not writable.
    """
    target = folder.resolve()
    restored(target)
    try:  # read once: another process may replace it
        inside = list(target.iterdir())
    except FileNotFoundError:
        inside = []
    except NotADirectoryError as error:
        raise UsageError(str(folder), "is a file", "use another `output`") from error
    except OSError as error:
        raise UsageError(str(folder), f"cannot be read ({error})", "use another `output`") from error
    if inside and not overwrite:
        more = ", or `resume=True` to continue" if resumable else ""
        raise UsageError(str(folder), "is not empty", f"use another `output`, or `overwrite=True` to replace it{more}")
    # Path.is_mount() looks twice, and fails on a folder that another process replaces between the two.
    if target == Path.cwd() or os.path.ismount(target):
        raise UsageError(str(folder), "cannot be replaced as a whole", "use a folder inside it")
    parent = next(place for place in target.parents if place.exists())
    if not os.access(parent, os.W_OK):
        raise UsageError(str(folder), f"cannot be written: {parent} is not writable", "use another `output`")
