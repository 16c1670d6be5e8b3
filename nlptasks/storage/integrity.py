"""What a model folder may hold: the plain files that its lists name, with the bytes that were written, and nothing else.

Nothing is opened before its name and its kind are known: a list cannot name a file elsewhere, and no link is followed.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nlptasks.errors import ModelError, UsageError, quote
from nlptasks.storage.atomic import parsed, restored, sha256_beside

_log = logging.getLogger("nlptasks")

MAX_FILES = 10_000
"""Files in a model folder."""

MAX_BYTES = 64 * 2**20
"""Size of a file that is read whole: a list, a config or a tokenizer."""

RESTORE = "restore the folder from where it was made"
CARD = "README.md"
"""The model card: written for people, who edit it."""

RUNNING = "checkpoints"
"""A training in progress lives here; it guards its files itself."""

_DIGEST = re.compile("[0-9a-f]{64}")
_THREADS = 4


def read_whole(file: Path, *, links: bool = False) -> bytes:
    """The bytes of a file that is not too big to be read whole.

    Args:
        file: the file.
        links: whether it may be a link, as files in the hub's cache are.

    Raises:
        ModelError: it is missing, of another kind, or too big.
    """
    try:
        state = file.stat() if links else file.lstat()
        _check_kind(file, state, links=links)
        check_size(file)
        return file.read_bytes()
    except OSError as error:
        raise ModelError(str(file), f"cannot be read ({error})", RESTORE) from error


def check_size(file: Path) -> None:
    """Check that a file is not too big to be read whole.

    Raises:
        ModelError: it is.
    """
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise ModelError(str(file), f"has {size} bytes, expected at most {MAX_BYTES}", RESTORE)


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in somebody else's file.

    Raises:
        ModelError: it cannot be read, or is no JSON object.
    """
    try:
        values = parsed(read_whole(file, links=True))
    except ValueError as error:
        raise ModelError(str(file), f"is no usable JSON ({error})", RESTORE) from error
    if not isinstance(values, dict):
        raise ModelError(str(file), f"is {quote(values)}, expected an object", RESTORE)
    return values


def check_list(files: Mapping[str, str], *, where: str) -> None:
    """Check the names and digests of a list of files, before any of them is opened.

    Raises:
        ModelError: a name is not that of a file inside the folder, on every system the same, or a digest is none.
    """
    if len(files) > MAX_FILES:
        raise ModelError(where, f"lists {len(files)} files, expected at most {MAX_FILES}", RESTORE)
    seen: dict[str, str] = {}
    for name, digest in files.items():
        if not _is_plain(name):
            raise ModelError(where, f"lists the file {quote(name)}, expected a plain path inside the folder", RESTORE)
        if not _DIGEST.fullmatch(digest):
            raise ModelError(where, f"lists {quote(name)} with {quote(digest)}, expected a sha256", RESTORE)
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise ModelError(where, f"lists {quote(other)} and {quote(name)}, one file on some systems", RESTORE)


def _is_plain(name: str) -> bool:
    parts = name.split("/")
    return (
        name.isprintable()
        and not set(name) & set("\\:")
        and not {"", ".", ".."} & set(parts)
        and unicodedata.is_normalized("NFC", name)
    )


def plain_files(folder: Path) -> Iterator[str]:
    """The paths, from there, of the files in a model folder; hidden ones and a running training's are passed over.

    Raises:
        ModelError: one is a link or of an odd kind, or there are too many; none is opened or followed.
    """
    todo, left = [""], iter(range(MAX_FILES))
    while todo:
        prefix = todo.pop()
        try:
            entries = sorted(os.scandir(folder / prefix), key=lambda entry: entry.name)
            for entry in entries:
                name = prefix + entry.name
                if entry.name.startswith(".") or name == RUNNING:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    todo.append(name + "/")
                else:
                    _check_kind(folder / name, entry.stat(follow_symlinks=False))
                    if next(left, None) is None:
                        raise ModelError(str(folder), f"holds more than {MAX_FILES} files", RESTORE)
                    yield name
        except OSError as error:
            raise ModelError(str(folder / prefix), f"cannot be read ({error})", RESTORE) from error


def _check_kind(file: Path, state: os.stat_result, *, links: bool = False) -> None:
    fix = "copy the folder without links, as 'cp -rL' does"
    if stat.S_ISLNK(state.st_mode):
        raise ModelError(str(file), "is a symbolic link, expected a file", fix)
    if not stat.S_ISREG(state.st_mode):
        raise ModelError(str(file), f"is {_KINDS.get(stat.S_IFMT(state.st_mode), 'odd')}, expected a file", RESTORE)
    if state.st_nlink > 1 and not links:
        raise ModelError(str(file), f"is a hard link, one of {state.st_nlink} names of a file, expected a file", fix)


_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"} | dict.fromkeys(
    (stat.S_IFCHR, stat.S_IFBLK), "a device"
)


def check_files(folder: Path, names: Sequence[str], listed: Mapping[str, str], fixes: Mapping[str, str]) -> None:
    """Check that the files of a folder are the listed ones, each with the bytes that were written.

    Args:
        folder: the folder.
        names: the files that are there, by `plain_files`.
        listed: the sha256 of each file that should be there.
        fixes: what is to be done for a file that is missing or changed, where that is not to restore the folder.

    Raises:
        ModelError: one is missing or changed, or one is there that should not be. Of the model card this is only logged.
    """
    for name in names:
        if name not in listed and name != CARD:
            raise ModelError(str(folder / name), "does not belong to the model", "remove it")
    present = [name for name in names if name in listed]
    with ThreadPoolExecutor(_THREADS) as threads:
        try:
            found = dict(zip(present, threads.map(sha256_beside, (folder / name for name in present)), strict=True))
        except OSError as error:
            raise ModelError(str(folder), f"cannot be read ({error})", RESTORE) from error
    for name, expected in listed.items():
        if found.get(name) == expected:
            continue
        problem = f"has sha256 {found[name]}, expected {expected}" if name in found else "is missing"
        if name != CARD:
            raise ModelError(str(folder / name), problem, fixes.get(name, RESTORE))
        _log.warning("%s: %s; the model itself is as it was", folder / name, problem)


def check_shape(value: Any, shape: Any, *, name: str) -> None:
    """Check what kinds of values a record is made of.

    Args:
        value: the record.
        shape: a type; or a tuple of types; or a dict of the shapes of its values by key, ``...`` for keys that may be any.
        name: of the record, for messages.

    Raises:
        ValueError: a value is of another kind, or a key is missing or unknown.
    """
    if not isinstance(shape, dict):
        kinds = shape if isinstance(shape, tuple) else (shape,)
        if type(value) not in kinds:  # a bool is an int by inheritance, and none here
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
    """Refuse an output folder that holds something, or that could not be written in the end.

    Args:
        folder: the folder.
        overwrite: whether what is there may be replaced.
        resumable: whether what is there could be gone on with, for the message.

    Raises:
        UsageError: it is not empty, no folder, or its parent cannot be written to.
    """
    target = folder.resolve()
    restored(target)
    try:  # asked once: another process may be about to replace it
        inside = list(target.iterdir())
    except FileNotFoundError:
        inside = []
    except NotADirectoryError as error:
        raise UsageError(str(folder), "is a file", "give another -o") from error
    except OSError as error:
        raise UsageError(str(folder), f"cannot be read ({error})", "give another -o") from error
    if inside and not overwrite:
        ways = "--overwrite to replace it, or --resume" if resumable else "or --overwrite to replace it"
        raise UsageError(str(folder), "is not empty", f"give another -o, {ways}")
    if target == Path.cwd() or target.is_mount():
        raise UsageError(str(folder), "cannot be replaced as a whole", "give a folder inside it as -o")
    parent = next(place for place in target.parents if place.exists())
    if not os.access(parent, os.W_OK):
        raise UsageError(str(folder), f"cannot be written: {parent} is not writable", "give another -o")
