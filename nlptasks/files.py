"""Readers: a file as rows. Strict: what does not fit is an error with file and line, never a guess.

All files are UTF-8, with or without a byte order mark, with either line end, plain or gzip.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nlptasks.errors import DataError, UsageError, did_you_mean, listing, quote
from nlptasks.types import OnError, Reader, Row, refuse

Line = tuple[int, str]
"""Number, from 1, and text without its line end."""

_TAG = re.compile(r"O|[BIESLUMW][-_].+")
_HEADER = (re.compile("tokens?|words?|form"), re.compile(r"(\w+[_-])?(tags?|labels?)"))


def read_lines(path: Path, on_error: OnError) -> Iterator[Line]:
    """The lines of a text file.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or is another kind of file.
    """
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                try:
                    yield number, _decoded(raw, path, number)
                except DataError as error:
                    on_error(error)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(str(path), f"cannot be read ({error})", "check the path and the file") from error


def _decoded(raw: bytes, path: Path, number: int) -> str:
    if number == 1:
        if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(str(path), "is UTF-16, expected UTF-8", f"convert it: iconv -f UTF-16 -t UTF-8 {path.name}")
        if raw.startswith((b"PK\x03\x04", b"PAR1")):
            raise DataError(str(path), "is no text file", "give a plain or gzip text file")
        raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        return raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number}",
            f"byte 0x{raw[error.start]:02x} at column {error.start + 1} is not UTF-8",
            f"convert the file, for example: iconv -f LATIN1 -t UTF-8 {path.name}",
        ) from None


def read_text(path: Path, on_error: OnError = refuse) -> Iterator[Row]:
    """A text a line, as rows with the one field ``text``."""
    for number, line in read_lines(path, on_error):
        yield Row({"text": line}, f"{path}:{number}")


def read_jsonl(path: Path, on_error: OnError = refuse) -> Iterator[Row]:
    """A JSON object a line."""
    for number, line in read_lines(path, on_error):
        if line.strip():
            try:
                row = parse_json_row(line, f"{path}:{number}")
            except DataError as error:
                on_error(error)
            else:
                yield row


def parse_json_row(line: str, where: str) -> Row:
    """One line of a JSON Lines file.

    Raises:
        DataError: it is no JSON object, has a key twice or a number that JSON does not have.
    """
    try:
        value = json.loads(line, object_pairs_hook=_object_hook(where), parse_constant=_constant_hook(where))
    except (ValueError, RecursionError) as error:
        column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(where + column, f"is not JSON ({_reason(error)})", "write one JSON object a line") from None
    if not isinstance(value, dict):
        fix = "write one object a line, not one array" if isinstance(value, list) else "write one JSON object a line"
        raise DataError(where, f"is a JSON {type(value).__name__}, expected an object", fix)
    return Row(value, where)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "it is nested too deeply" if isinstance(error, RecursionError) else "it has a number of too many digits"


def _object_hook(where: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(where, f"has the key {quote(twice)} twice", "keep one of them")
        return record

    return build


def _constant_hook(where: str) -> Callable[[str], None]:
    def refuse(name: str) -> None:
        raise DataError(where, f"has the number {name}, which JSON does not have", "write a number or null")

    return refuse


def read_csv(path: Path, on_error: OnError = refuse) -> Iterator[Row]:
    """Comma-separated values with a header line (RFC 4180); every value stays text as it is."""
    return _read_table(path, ",", on_error)


def read_tsv(path: Path, on_error: OnError = refuse) -> Iterator[Row]:
    """Tab-separated values with a header line."""
    return _read_table(path, "\t", on_error)


def _read_table(path: Path, separator: str, on_error: OnError) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # a text may be long
    lines = (line + "\n" for _, line in read_lines(path, refuse))  # a line left out would change what a quote spans
    table = csv.reader(lines, delimiter=separator, strict=True)
    header: list[str] | None = None
    while True:
        number = table.line_num + 1
        try:
            record = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{path}:{number}", f"the record that begins here is broken ({error})", "repair its quotes"
            ) from None
        if not record:
            continue
        if header is None:
            header = _checked_header(record, f"{path}:{number}")
        elif len(record) != len(header):
            fix = "quote fields that hold the separator"
            on_error(DataError(f"{path}:{number}", f"has {len(record)} fields, expected {len(header)}", fix))
        else:
            yield Row(dict(zip(header, record, strict=True)), f"{path}:{number}")


def _checked_header(names: list[str], where: str) -> list[str]:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(where, f"has the column {quote(twice[0])} twice", "rename one of them")
    return names


def read_conll(path: Path, on_error: OnError = refuse) -> Iterator[Row]:
    """CoNLL columns: a token a line, an empty line after each sentence.

    Columns are separated by tabs if the first line has one, else by spaces. ``-DOCSTART-`` lines, a header line, and comments
    (before a sentence, beginning with ``#``, with other columns or no tag at the end) are dropped. A row has the columns as
    lists of text under their numbers, from 1, and the first and the last also as ``tokens`` and ``tags``.
    """
    split: Callable[[str], list[str]] | None = None
    width = 0
    sentence: list[tuple[int, list[str]]] = []
    for number, line in itertools.chain(read_lines(path, on_error), [(0, "")]):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if sentence:
                yield _sentence_row(sentence, path)
            sentence = []
            continue
        columns = (split or _splitter(line))(line)
        if not sentence and _is_no_token(columns, width):
            continue
        split = split or _splitter(line)
        width = width or len(columns)
        if len(columns) == width:
            sentence.append((number, columns))
        else:
            problem = f"has {len(columns)} columns, expected {width} as above"
            on_error(DataError(f"{path}:{number}", problem, "repair this line"))


def _splitter(line: str) -> Callable[[str], list[str]]:
    """How a file is cut into columns whose first line this is."""
    if "\t" in line:
        return lambda text: text.split("\t")
    return lambda text: re.split(" +", text.strip(" "))


def _is_no_token(columns: list[str], width: int) -> bool:
    """Whether a line before a sentence is a comment or, at the beginning, a header."""
    if columns[0].startswith("#"):
        return (width not in (0, len(columns))) or (len(columns) > 1 and not _TAG.fullmatch(columns[-1]))
    ends = (columns[0].lower(), columns[-1].lower())
    return not width and all(pattern.fullmatch(name) for pattern, name in zip(_HEADER, ends, strict=True))


def _sentence_row(sentence: list[tuple[int, list[str]]], path: Path) -> Row:
    numbers = tuple(number for number, _ in sentence)
    columns = [list(column) for column in zip(*(record for _, record in sentence), strict=True)]
    fields: dict[str, Any] = {str(index): column for index, column in enumerate(columns, start=1)}
    fields["tokens"] = columns[0]
    if len(columns) > 1:
        fields["tags"] = columns[-1]
    return Row(fields, f"{path}:{numbers[0]}", numbers)


TABLES: Mapping[str, Reader] = {".jsonl": read_jsonl, ".ndjson": read_jsonl, ".csv": read_csv, ".tsv": read_tsv}
"""The readers of files whose records have named fields, by suffix."""

TEXTS: Mapping[str, Reader] = {**TABLES, ".txt": read_text, "": read_text}
"""The readers of texts to predict, by suffix."""


PARTS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "dev": ("dev", "valid", "validation", "val", "testa"),
    "test": ("test", "testb"),
}
"""The parts of a data set, and the names that their files go by."""


def part_of(path: Path) -> str | None:
    """The part a file is by its name: ``dev`` for ``valid.jsonl.gz`` and for ``eng.testa``."""
    pieces = path.name.lower().split(".")
    return next((part for part, names in PARTS.items() if set(names) & set(pieces)), None)


def suffix_of(path: Path) -> str:
    """``.jsonl`` for ``train.jsonl.gz``; empty for ``eng.train``, which has none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    return "" if any(last[1:] in names for names in PARTS.values()) else last


def read_file(
    path: Path, readers: Mapping[str, Reader], columns: Mapping[str, str], *, on_error: OnError = refuse
) -> Iterator[Row]:
    """The rows of a file, by the reader for its suffix, its columns renamed.

    Args:
        path: the file.
        readers: reader by suffix.
        columns: the names that are wanted, and the names (of headerless columns: the numbers) that the file has.
        on_error: what to do with a bad row.

    Raises:
        DataError: no such file, no reader for it, or a row that cannot be read.
    """
    if not path.is_file():
        raise DataError(str(path), f"is no file (looked in {Path.cwd()})", "check the path")
    reader = readers.get(suffix_of(path))
    if reader is None:
        raise DataError(str(path), "has an unknown suffix", f"take one of {listing(sorted(filter(None, readers)))}")
    for row in reader(path, on_error):
        try:
            named = renamed(row, columns)
        except DataError as error:
            on_error(error)
        else:
            yield named


def check_columns(columns: Mapping[str, str], known: Iterable[str]) -> None:
    """Refuse to rename a column to a name that nobody reads.

    Raises:
        UsageError: a wanted name is unknown.
    """
    names = list(known)
    for wanted in columns:
        if wanted not in names:
            raise UsageError(f"--columns {wanted}=...", f"{wanted!r} is no field here", did_you_mean(wanted, names))


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with each wanted field taken from the column that is named for it.

    Raises:
        DataError: the row has no such column.
    """
    fields = dict(row.fields)
    for wanted, found in columns.items():
        if found not in row.fields:
            raise DataError(
                row.where, f"has no column {quote(found)} for {wanted!r}", did_you_mean(found, map(str, row.fields))
            )
        fields[wanted] = row.fields[found]
    return Row(fields, row.where, row.lines)
