"""Data sets: which file is which part, and a dev part where there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nlptasks.data.readers import PARTS, check_file, files_of, is_second, part_of, read_file
from nlptasks.data.splitting import unrelated_rows
from nlptasks.errors import DataError, ErrorCollector, listing
from nlptasks.storage.atomic import sha256
from nlptasks.types import Reader, Row

_DEV_SHARE = 0.1
_CALIBRATION_SHARE, _LEAST_CALIBRATION_ROWS, _MOST_CALIBRATION_ROWS = 0.05, 10, 1000
CALIBRATION = "calibration"
"""The part that is held out of train, so that temperatures are fitted to rows that nothing was learned from."""


@dataclass(frozen=True)
class DataSet:
    """The rows of a data set.

    Attributes:
        parts: rows of ``train``, ``dev`` and ``test``, as far as there are any, and of what was held out of train.
        files: sha256 of each file that was read.
        split: what was held out of train, and how, empty if nothing was.
    """

    parts: Mapping[str, list[Row]]
    files: Mapping[str, str]
    split: str = ""


def load_data(place: Path, readers: Mapping[str, Reader], columns: Mapping[str, str]) -> DataSet:
    """A data set from a folder with the files of its parts, or from one file, which then is train.

    Raises:
        DataError: nothing there, two files for one part, an empty or wrong file, or one that changed while it was read;
            what is wrong with several rows or files is told together (`DataErrors`).
    """
    found = _part_files(place) if place.is_dir() else {"train": place}
    errors = ErrorCollector()
    parts: dict[str, list[Row]] = {}
    files: dict[str, str] = {}
    for part, path in found.items():
        with errors.noting():
            check_file(path)
            digests = {str(one): _digest(one) for one in files_of(path)}
            parts[part] = list(read_file(path, readers, columns, on_error=errors))
            for one, digest in digests.items():
                _check_unchanged(Path(one), digest)
            files |= digests
            if not (parts[part] or errors.found):
                raise DataError(str(path), "has no examples", "give a file with at least one row")
    errors.check()
    return DataSet(parts, files)


def _digest(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise DataError(str(path), f"cannot be read ({error})", "check the path and the file") from error


def _check_unchanged(path: Path, digest: str) -> None:
    if _digest(path) != digest:
        raise DataError(str(path), "changed while it was read", "wait until it is written, then begin again")


TextsOf = Callable[[Row], Sequence[str]]
"""What is read of a row."""


def with_dev(data: DataSet, texts_of: TextsOf, *, seed: int) -> DataSet:
    """The data set with a dev part: a seeded tenth of train where none was given, of rows that share no text with the others."""
    size = max(1, round(_DEV_SHARE * len(data.parts["train"])))
    return data if "dev" in data.parts else _held_out(data, "dev", size, texts_of, seed)


def with_calibration(data: DataSet, texts_of: TextsOf, *, seed: int) -> DataSet:
    """The data set with a twentieth of train (at most 1,000 rows) held out to fit temperatures to; none of under 200 rows."""
    size = min(_MOST_CALIBRATION_ROWS, int(_CALIBRATION_SHARE * len(data.parts["train"])))
    return _held_out(data, CALIBRATION, size, texts_of, seed) if size >= _LEAST_CALIBRATION_ROWS else data


def check_trainable(data: DataSet) -> None:
    """Refuse a data set that nothing can be learned from, or nothing be held out of.

    Raises:
        DataError: there is no train part, or one row alone.
    """
    train = data.parts.get("train")
    if not train:
        raise DataError(listing(data.files), "has no train part", f"name a file one of {listing(PARTS['train'])}")
    if len(train) < 2 and "dev" not in data.parts:
        raise DataError(train[0].where, "is the only row, and there is no dev part", "give at least two rows")


def _held_out(data: DataSet, part: str, size: int, texts_of: TextsOf, seed: int) -> DataSet:
    """The data set with about so many rows of train in a part of their own."""
    train = data.parts["train"]
    drawn = unrelated_rows([texts_of(row) for row in train], size, seed=seed)
    parts = {
        **data.parts,
        "train": [row for index, row in enumerate(train) if index not in drawn],
        part: [row for index, row in enumerate(train) if index in drawn],
    }
    how = f"{part} is {len(drawn)} rows of train, drawn with seed {seed}"
    return replace(data, parts=parts, split="; ".join(filter(None, (data.split, how))))


def load_part(
    place: Path, wanted: str | None, readers: Mapping[str, Reader], columns: Mapping[str, str]
) -> tuple[str, list[Row]]:
    """The part to evaluate and its rows: the one that is wanted; without a wish test, else dev; of a single file all.

    Raises:
        DataError: there is no such part, or its file is empty or wrong.
    """
    if not place.is_dir():
        if wanted:
            raise DataError(
                str(place), f"is one file and has no part {wanted!r}", "leave --split out, or give a folder"
            )
        return "all", load_data(place, readers, columns).parts["train"]
    found = _part_files(place)
    part = next((part for part, names in PARTS.items() if wanted in names), wanted)
    for name in [part] if part else ["test", "dev"]:
        if name in found:
            return name, load_data(found[name], readers, columns).parts["train"]
    raise DataError(
        str(place), f"has no part {wanted or 'test or dev'}, only {listing(found)}", "give --split one of them"
    )


def _part_files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        part = part_of(path) if path.is_file() and not is_second(path) else None
        if part and part in found:
            raise DataError(
                str(folder), f"has two files for {part}: {found[part].name} and {path.name}", "keep one of them"
            )
        if part:
            found[part] = path
    if not found:
        names = listing(name for names in PARTS.values() for name in names)
        raise DataError(str(folder), "has no train, dev or test file", f"name the files {names}, with a suffix")
    return {part: found[part] for part in PARTS if part in found}
