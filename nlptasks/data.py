"""Data sets: which file is which part, and how examples become batches.

Order is a pure function of seed and epoch: nothing is drawn from a global random state.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nlptasks.errors import DataError, listing
from nlptasks.files import PARTS, part_of, read_file
from nlptasks.types import Ints, Reader, Row, Window

_DEV_SHARE = 0.1
_BUCKET_BATCHES = 50
"""Batches that are filled from rows sorted together: enough to keep lengths equal, few enough to keep the order random."""


@dataclass(frozen=True)
class DataSet:
    """The rows of a data set.

    Attributes:
        parts: rows of ``train``, ``dev`` and ``test``, as far as there are any.
        files: sha256 of each file that was read.
        split: how dev was made, empty if it was given.
    """

    parts: Mapping[str, list[Row]]
    files: Mapping[str, str]
    split: str = ""


def load_data(place: Path, readers: Mapping[str, Reader], columns: Mapping[str, str]) -> DataSet:
    """A data set from a folder with the files of its parts, or from one file, which then is train.

    Raises:
        DataError: nothing there, two files for one part, or an empty or wrong file.
    """
    found = _part_files(place) if place.is_dir() else {"train": place}
    parts = {}
    for part, path in found.items():
        parts[part] = list(read_file(path, readers, columns))
        if not parts[part]:
            raise DataError(str(path), "has no examples", "give a file with at least one row")
    return DataSet(parts, {str(path): _sha256(path) for path in found.values()})


def with_dev(data: DataSet, seed: int) -> DataSet:
    """The data set with a dev part: a seeded tenth of train where none was given.

    Raises:
        DataError: there is no train part, or it is too small to split.
    """
    train = data.parts.get("train")
    if not train:
        raise DataError(listing(data.files), "has no train part", f"name a file one of {listing(PARTS['train'])}")
    if "dev" in data.parts:
        return data
    if len(train) < 2:
        raise DataError(train[0].where, "is the only row, and there is no dev part", "give at least two rows")
    order = list(range(len(train)))
    random.Random(seed).shuffle(order)
    size = max(1, round(_DEV_SHARE * len(train)))
    held_out = set(order[:size])
    parts = {
        **data.parts,
        "train": [row for index, row in enumerate(train) if index not in held_out],
        "dev": [row for index, row in enumerate(train) if index in held_out],
    }
    return replace(data, parts=parts, split=f"dev is {size} rows of train, drawn with seed {seed}")


def choose_part(data: DataSet, wanted: str | None, place: Path) -> tuple[str, list[Row]]:
    """The part to evaluate and its rows: the one that is wanted; without a wish test, else dev; of a single file all.

    Raises:
        DataError: there is no such part.
    """
    if not place.is_dir():
        if wanted:
            raise DataError(str(place), f"is one file and has no part {wanted!r}", "leave --split out, or give a folder")
        return "all", data.parts["train"]
    for part in [wanted] if wanted else ["test", "dev"]:
        if part in data.parts:
            return part, data.parts[part]
    raise DataError(str(place), f"has no part {wanted or 'test or dev'}, only {listing(data.parts)}", "give --split one of them")


def _part_files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        part = part_of(path) if path.is_file() else None
        if part and part in found:
            raise DataError(str(folder), f"has two files for {part}: {found[part].name} and {path.name}", "keep one of them")
        if part:
            found[part] = path
    if not found:
        names = listing(name for names in PARTS.values() for name in names)
        raise DataError(str(folder), "has no train, dev or test file", f"name the files {names}, with a suffix")
    return {part: found[part] for part in PARTS if part in found}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def length_batches(lengths: Sequence[int], budget: int, order: Iterable[int]) -> list[list[int]]:
    """Indices in this order, cut into batches of at most `budget` tokens, padding included (one alone may be longer)."""
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        longest = max(longest, lengths[index])
        if batches and longest * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = lengths[index]
    return batches


def epoch_batches(lengths: Sequence[int], budget: int, *, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch: rows shuffled, sorted by length inside buckets, filled to the budget, batches shuffled."""
    draw = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    draw.shuffle(order)
    mean = max(1, sum(lengths) // len(lengths))
    size = max(1, _BUCKET_BATCHES * budget // mean)
    batches: list[list[int]] = []
    for start in range(0, len(order), size):
        bucket = sorted(order[start : start + size], key=lambda index: lengths[index])
        batches += length_batches(lengths, budget, bucket)
    draw.shuffle(batches)
    return batches


def collate(windows: Sequence[Window], pad_id: int) -> dict[str, Ints]:
    """Windows as the arrays ``ids``, ``mask`` and ``types`` [B,S], S the longest."""
    return {
        "ids": pad([window.ids for window in windows], pad_id),
        "mask": pad([np.ones(len(window), dtype=np.int64) for window in windows], 0),
        "types": pad([window.types for window in windows], 0),
    }


def pad(sequences: Sequence[Ints], filler: int) -> Ints:
    """Sequences as one array [B,S], filled up at the right."""
    padded = np.full((len(sequences), max(map(len, sequences))), filler, dtype=np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return padded
