"""Readers of data files. They are strict: whatever does not fit the format is an error with file and line, never a guess.

All formats but spaCy's are lines of UTF-8 text, plain or gzip, see `nlptasks.data.encoding`.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nlptasks.data.docbin import read_docbin
from nlptasks.data.encoding import MAX_LINE_BYTES, MAX_UNPACKED_BYTES, read_lines, whole_lines, without_end
from nlptasks.data.strict_json import parse_json, refuse_twice
from nlptasks.errors import DataError, UsageError, did_you_mean, listing, quote
from nlptasks.types import OnError, Reader, Row, refuse

_QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*"')
_TAG = re.compile(r"O|[BIESLUMW][-_].+")
_HEADER = (re.compile("tokens?|words?|form"), re.compile(r"(\w+[_-])?(tags?|labels?)"))


def read_text(path: Path, on_error: OnError = refuse) -> Iterator[Row]:
    """Read one text per line, as rows with the field ``text``."""
    for number, line in read_lines(path, on_error):
        yield Row({"text": line}, f"{path}:{number}")


def read_jsonl(path: Path, on_error: OnError = refuse) -> Iterator[Row]:
    """Read JSON Lines: one object per line."""
    for number, line in read_lines(path, on_error):
        if line.strip():
            try:
                row = parse_json_row(line, f"{path}:{number}")
            except DataError as error:
                on_error(error)
            else:
                yield row


def parse_json_row(line: str, where: str) -> Row:
    """Parse one line of a JSON Lines file.

    Raises:
        DataError: it is not a JSON object, or not strict JSON.
    """
    fix = "write one JSON object per line"
    value = parse_json(line, where=where, fix=fix)
    if not isinstance(value, dict):
        fix += ", not one array" if isinstance(value, list) else ""
        raise DataError(where, f"is a JSON {type(value).__name__}, expected an object", fix)
    return Row(value, where)


def read_json_file(path: Path) -> Any:
    """Read a JSON file of at most `MAX_UNPACKED_BYTES`.

    Raises:
        DataError: it cannot be read, is too large, or is not JSON.
    """
    lines, left = [], MAX_UNPACKED_BYTES
    for _, line in whole_lines(path, refuse, limit=MAX_UNPACKED_BYTES):
        left -= len(line)
        if left < 0:
            problem = f"has more than {MAX_UNPACKED_BYTES // 2**20} MiB of JSON"
            raise DataError(str(path), problem, "write its rows as JSON Lines")
        lines.append(line)
    return parse_json("".join(lines), where=str(path), fix="write one JSON value")


def read_csv(path: Path, on_error: OnError = refuse) -> Iterator[Row]:
    """Read comma-separated values with a header line (RFC 4180). Values stay unchanged text, quoted line ends included."""
    return _read_table(path, ",", on_error, quoted=True)


def read_tsv(path: Path, on_error: OnError = refuse) -> Iterator[Row]:
    """Read tab-separated values with a header line.

    Some programs quote fields as in CSV, for others quotes are ordinary characters (IANA's ``text/tab-separated-values``). The
    whole file decides:

    1. If each field that starts with a quote is completely quoted (``"a"``, ``"a ""b"" c"``), quotes work as in CSV.
    2. Otherwise, if every line has as many fields as the header, quotes are ordinary characters.
    3. Otherwise, quotes work as in CSV if the file is valid that way, with tabs or line ends inside quotes.
    """
    yield from _read_table(path, "\t", on_error, quoted=_has_quoted_fields(path))


def _has_quoted_fields(path: Path) -> bool:
    """Return True if quotes enclose the fields of a TSV file. Bad lines are ignored here and refused when they are read."""
    widths: set[int] = set()
    closed = True
    for _, line in read_lines(path, lambda error: None):
        cells = line.split("\t")
        closed = closed and all(_QUOTED.fullmatch(cell) for cell in cells if cell.startswith('"'))
        if line:
            widths.add(len(cells))
    return closed or (len(widths) > 1 and _is_valid_quoted(path))


def _is_valid_quoted(path: Path) -> bool:
    """Return True if a file is valid as tab-separated values with quotes as in CSV."""
    try:
        for _ in _read_table(path, "\t", refuse, quoted=True):
            pass
    except DataError:
        return False
    return True


def _read_table(path: Path, separator: str, on_error: OnError, *, quoted: bool) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE_BYTES)  # in characters: an unclosed quote must not read the whole file
    lines = (line for _, line in whole_lines(path, refuse))  # skipping a line would change what quotes enclose
    table = csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True)
    header: list[str] | None = None
    while True:
        where = f"{path}:{table.line_num + 1}"
        try:
            record = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"the record that starts here is broken ({error})"
            raise DataError(where, problem, "correct its quotes or line ends") from None
        if not record:
            continue
        if header is None:
            refuse_twice(record, "column", where)
            header = record
        elif len(record) != len(header):
            fix = "quote fields that contain the separator"
            on_error(DataError(where, f"has {len(record)} fields, expected {len(header)}", fix))
        else:
            yield Row(dict(zip(header, record, strict=True)), where)


def read_conll(path: Path, on_error: OnError = refuse) -> Iterator[Row]:
    """Read CoNLL columns: one token per line, and an empty line after each sentence.

    Columns are separated by tabs if the first line has one, otherwise by spaces. ``-DOCSTART-`` lines, a header line and comments
    are dropped. A comment comes before a sentence, starts with ``#``, and has another number of columns or no tag at the end.
    A row has each column as a list of strings under its number, from 1; the first is also ``tokens``, the last ``tags``.
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
        if not sentence and _is_comment_or_header(columns, width):
            continue
        split = split or _splitter(line)
        width = width or len(columns)
        if len(columns) == width:
            sentence.append((number, columns))
        else:
            problem = f"has {len(columns)} columns, expected {width} as above"
            on_error(DataError(f"{path}:{number}", problem, "correct this line"))


def _splitter(line: str) -> Callable[[str], list[str]]:
    """Return the function that splits the lines of a file with this first line into columns."""
    if "\t" in line:
        return lambda text: text.split("\t")
    return lambda text: re.split(" +", text.strip(" "))


def _is_comment_or_header(columns: list[str], width: int) -> bool:
    """Return True for a comment, and for a header at the start of the file (`width` is 0)."""
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


def files_of(path: Path) -> list[Path]:
    """Return the files that are read together: this one and, if it is the first of a pair, its partner."""
    return [path, *_partners(path, ".source", ".target")]


def is_second(path: Path) -> bool:
    """Return True for the second file of a pair, which is read together with the first."""
    return bool(_partners(path, ".target", ".source"))


def _partners(path: Path, own: str, other: str) -> list[Path]:
    """Return the files beside this one with the other suffix in place of its own, plain or ``.gz``."""
    name = path.name.removesuffix(".gz")
    if not name.endswith(own):
        return []
    names = [name.removesuffix(own) + other + end for end in ("", ".gz")]
    return [found for found in map(path.with_name, names) if found.is_file()]


def pairs_of(first: str, second: str) -> Reader:
    """Return a reader of parallel files: texts in ``train.source``, and their targets on the same lines of ``train.target``.

    Args:
        first: field for the lines of the source file.
        second: field for the lines of the target file.
    """

    def read(path: Path, on_error: OnError = refuse) -> Iterator[Row]:
        paths = files_of(path)
        if len(paths) != 2:
            problem = "has no file" if len(paths) < 2 else f"has both {paths[1].name} and {paths[2].name}"
            fix = "use exactly one, with the target of each text on the same line"
            raise DataError(str(path), f"{problem} beside it with the same name that ends in .target", fix)
        # A skipped line would shift all later pairs.
        lines = itertools.zip_longest(*(whole_lines(one, refuse) for one in paths))
        for number, found in enumerate(lines, start=1):
            if None in found:
                short, long = paths[found.index(None)], paths[1 - found.index(None)]
                problem = f"ends after {number - 1} lines, {long.name} has more"
                raise DataError(
                    f"{short}:{number}", problem, "write the same number of lines to both, in the same order"
                )
            texts = (without_end(line) for _, line in found)
            yield Row(dict(zip((first, second), texts, strict=True)), f"{path}:{number}")

    return read


TABLES: Mapping[str, Reader] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".spacy": read_docbin,
}
"""Readers of files with named fields, by suffix."""

TEXTS: Mapping[str, Reader] = {**TABLES, ".txt": read_text, ".source": read_text, "": read_text}
"""Readers of texts to predict, by suffix."""

PARTS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "dev": ("dev", "valid", "validation", "val", "testa"),
    "test": ("test", "testb"),
}
"""The parts of a data set, and the names of their files."""


def part_of(path: Path) -> str | None:
    """Return the part that a file's name says: ``dev`` for ``valid.jsonl.gz``, ``eng.testa`` and ``dev-v1.1.json``."""
    pieces = re.split("[.-]", path.name.lower())
    return next((part for part, names in PARTS.items() if set(names) & set(pieces)), None)


def suffix_of(path: Path) -> str:
    """Return ``.jsonl`` for ``train.jsonl.gz``, and the empty string for ``eng.train``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    return "" if any(last[1:] in names for names in PARTS.values()) else last


def read_file(
    path: Path, readers: Mapping[str, Reader], columns: Mapping[str, str], *, on_error: OnError = refuse
) -> Iterator[Row]:
    """Read the rows of a file with the reader for its suffix, and rename columns.

    Args:
        path: the file.
        readers: reader by suffix.
        columns: the column in the file for each field to rename; columns without a header are named by number.
        on_error: what to do with a bad row.

    Raises:
        DataError: the file does not exist, no reader has its suffix, or a row cannot be read.
    """
    check_file(path)
    reader = readers.get(suffix_of(path))
    if reader is None:
        for _ in read_lines(path, refuse):  # the error for a binary format says more than an unknown suffix
            break
        raise DataError(str(path), "has an unknown suffix", f"use one of {listing(sorted(filter(None, readers)))}")
    for row in reader(path, on_error):
        try:
            named = renamed(row, columns)
        except DataError as error:
            on_error(error)
        else:
            yield named


def check_file(path: Path) -> None:
    """Refuse a path that is not a file.

    Raises:
        DataError: it does not exist, or is a folder.
    """
    if not path.is_file():
        raise DataError(str(path), f"is no file (looked in {Path.cwd()})", "check the path")


def check_columns(columns: Mapping[str, str], known: Iterable[str]) -> None:
    """Check that columns are renamed only to known fields.

    Raises:
        UsageError: a field is unknown.
    """
    names = list(known)
    for field in columns:
        if field not in names:
            problem, fix = f"names {field!r}, which is not a field here", did_you_mean(field, names)
            raise UsageError("columns", problem, fix, argument="columns")


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """Return the row with columns renamed.

    Raises:
        DataError: the row has no such column.
    """
    fields = dict(row.fields)
    for field, column in columns.items():
        if column not in row.fields:
            problem = f"has no column {quote(column)} for {field!r}"
            raise DataError(row.where, problem, did_you_mean(column, map(str, row.fields)))
        fields[field] = row.fields[column]
    return Row(fields, row.where, row.lines)
