"""Data sets: find the files of their parts, and hold out parts of train."""

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
"""The part that temperatures are fitted to. It is held out of train, because a model is too certain on rows it was trained on."""


@dataclass(frozen=True)
class DataSet:
    """The rows of a data set.

    Attributes:
        parts: rows by part: ``train``, ``dev`` and ``test`` if they exist, and the parts held out of train.
        files: sha256 of each file.
        split: description of the parts held out of train, or empty.
    """

    parts: Mapping[str, list[Row]]
    files: Mapping[str, str]
    split: str = ""


def load_data(place: Path, readers: Mapping[str, Reader], columns: Mapping[str, str]) -> DataSet:
    """Read a data set from a folder with a file per part, or from a single file, which becomes train.

    Raises:
        DataError: there is no file, two files have the same part, or a file is empty, invalid or changed while it was read.
            Errors of several rows and files are raised together (`DataErrors`).
    """
    found = _part_files(place) if place.is_dir() else {"train": place}
    errors = ErrorCollector()
    parts: dict[str, list[Row]] = {}
    files: dict[str, str] = {}
    for part, path in found.items():
        with errors.collecting():
            check_file(path)
            digests = {str(one): _digest(one) for one in files_of(path)}
            parts[part] = list(read_file(path, readers, columns, on_error=errors))
            for one, digest in digests.items():
                if _digest(Path(one)) != digest:
                    raise DataError(one, "changed while it was read", "wait until it is complete, then try again")
            files |= digests
            if not (parts[part] or errors.found):
                raise DataError(str(path), "has no examples", "use a file with at least one row")
    errors.check()
    return DataSet(parts, files)


def _digest(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise DataError(str(path), f"cannot be read ({error})", "check the path and the file") from error


TextsOf = Callable[[Row], Sequence[str]]
"""Returns the texts of a row that the backbone reads."""


def with_dev(data: DataSet, texts_of: TextsOf, *, seed: int) -> DataSet:
    """Hold out a tenth of train as dev if there is no dev part: rows that share no text with the rest."""
    size = max(1, round(_DEV_SHARE * len(data.parts["train"])))
    return data if "dev" in data.parts else _held_out(data, "dev", size, texts_of, seed)


def with_calibration(data: DataSet, texts_of: TextsOf, *, seed: int) -> DataSet:
    """Hold out a twentieth of train to fit temperatures to: at most 1,000 rows, and nothing of fewer than 200."""
    size = min(_MOST_CALIBRATION_ROWS, int(_CALIBRATION_SHARE * len(data.parts["train"])))
    return _held_out(data, CALIBRATION, size, texts_of, seed) if size >= _LEAST_CALIBRATION_ROWS else data


def check_trainable(data: DataSet) -> None:
    """Check that a model can be trained on a data set.

    Raises:
        DataError: there is no train part, or a single row and no dev part.
    """
    train = data.parts.get("train")
    if not train:
        raise DataError(listing(data.files), "has no train part", f"name a file one of {listing(PARTS['train'])}")
    if len(train) < 2 and "dev" not in data.parts:
        raise DataError(train[0].where, "is the only row, and there is no dev part", "use at least two rows")


def _held_out(data: DataSet, part: str, size: int, texts_of: TextsOf, seed: int) -> DataSet:
    """Move about this number of rows from train to another part."""
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
    """Return the name and the rows of the part to evaluate.

    Args:
        place: a folder with a file per part, or a single file, of which all rows are returned.
        wanted: name of the part; None for test or, if there is none, dev.
        readers: reader by suffix.
        columns: columns to rename, see `read_file`.

    Raises:
        DataError: there is no such part, or its file is empty or invalid.
    """
    if not place.is_dir():
        if wanted:
            problem = f"is one file and has no part {wanted!r}"
            raise DataError(str(place), problem, "omit `split`, or use a folder")
        return "all", load_data(place, readers, columns).parts["train"]
    found = _part_files(place)
    part = next((part for part, names in PARTS.items() if wanted in names), wanted)
    for name in [part] if part else ["test", "dev"]:
        if name in found:
            return name, load_data(found[name], readers, columns).parts["train"]
    problem = f"has no part {wanted or 'test or dev'}, only {listing(found)}"
    raise DataError(str(place), problem, "use one of them as `split`")


def _part_files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        part = part_of(path) if path.is_file() and not is_second(path) else None
        if part and part in found:
            problem = f"has two files for {part}: {found[part].name} and {path.name}"
            raise DataError(str(folder), problem, "keep one of them")
        if part:
            found[part] = path
    if not found:
        names = listing(name for names in PARTS.values() for name in names)
        raise DataError(str(folder), "has no train, dev or test file", f"name the files {names}, with a suffix")
    return {part: found[part] for part in PARTS if part in found}
