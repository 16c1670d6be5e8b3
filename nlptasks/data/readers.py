"""Readers: a file as rows. Strict: what does not fit is an error with file and line, never a guess.

All but spaCy's are lines of UTF-8 text, plain or gzip; see `nlptasks.data.encoding`.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nlptasks.data.docbin import read_docbin
from nlptasks.data.encoding import MAX_LINE_BYTES, read_lines, whole_lines, without_end
from nlptasks.data.strict_json import parse_json, refuse_twice
from nlptasks.errors import DataError, UsageError, did_you_mean, listing, quote
from nlptasks.types import OnError, Reader, Row, refuse

_MAX_JSON_BYTES = 2**30
_QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*"')
_TAG = re.compile(r"O|[BIESLUMW][-_].+")
_HEADER = (re.compile("tokens?|words?|form"), re.compile(r"(\w+[_-])?(tags?|labels?)"))


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
        DataError: it is no JSON object, or not strictly JSON.
    """
    value = parse_json(line, where=where, fix="write one JSON object a line")
    if not isinstance(value, dict):
        fix = "write one object a line, not one array" if isinstance(value, list) else "write one JSON object a line"
        raise DataError(where, f"is a JSON {type(value).__name__}, expected an object", fix)
    return Row(value, where)


def read_json_file(path: Path) -> Any:
    """The value in a JSON file, strictly read; of at most 1 GiB.

    Raises:
        DataError: it cannot be read, or is not JSON.
    """
    text = "".join(line for _, line in whole_lines(path, refuse, limit=_MAX_JSON_BYTES))
    return parse_json(text, where=str(path), fix="write one JSON value")


def read_csv(path: Path, on_error: OnError = refuse) -> Iterator[Row]:
    """Comma-separated values with a header line (RFC 4180); every value stays text as it is, line ends in quotes too."""
    return _read_table(path, ",", on_error, quoted=True)


def read_tsv(path: Path, on_error: OnError = refuse) -> Iterator[Row]:
    """Tab-separated values with a header line.

    Some programs quote fields as in CSV, to others a quote is a character as any (IANA's ``text/tab-separated-values``), so the
    whole file decides:

    1. If every field that begins with a quote is a quoted one (``"a"``, ``"a ""b"" c"``), quotes are as in CSV.
    2. Else, if every line has as many fields as the header, quotes are plain characters.
    3. Else, if the file is flawless CSV, with tabs or line ends inside quotes, it is read so; if not, quotes are plain.
    """
    yield from _read_table(path, "\t", on_error, quoted=_quotes_are_syntax(path))


def _quotes_are_syntax(path: Path) -> bool:
    """Whether quotes enclose the fields of a TSV file; with an error in it, which is told when it is read, it matters not."""
    widths: set[int] = set()
    closed = True
    for _, line in read_lines(path, _ignore):
        cells = line.split("\t")
        closed = closed and all(_QUOTED.fullmatch(cell) for cell in cells if cell.startswith('"'))
        if line:
            widths.add(len(cells))
    return closed or (len(widths) > 1 and _is_flawless(path))


def _is_flawless(path: Path) -> bool:
    """Whether a file is tab-separated values quoted as in CSV, all of one width."""
    try:
        for _ in _read_table(path, "\t", refuse, quoted=True):
            pass
    except DataError:
        return False
    return True


def _ignore(error: DataError) -> None:
    """Go on; somebody else tells."""


def _read_table(path: Path, separator: str, on_error: OnError, *, quoted: bool) -> Iterator[Row]:
    csv.field_size_limit(
        MAX_LINE_BYTES
    )  # characters: a text may be long, but an open quote does not take the whole file
    lines = (line for _, line in whole_lines(path, refuse))  # a line left out would change what a quote spans
    table = csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True)
    header: list[str] | None = None
    while True:
        where = f"{path}:{table.line_num + 1}"
        try:
            record = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"the record that begins here is broken ({error})"
            raise DataError(where, problem, "repair its quotes or line ends") from None
        if not record:
            continue
        if header is None:
            refuse_twice(record, "column", where)
            header = record
        elif len(record) != len(header):
            fix = "quote fields that hold the separator"
            on_error(DataError(where, f"has {len(record)} fields, expected {len(header)}", fix))
        else:
            yield Row(dict(zip(header, record, strict=True)), where)


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


def files_of(path: Path) -> list[Path]:
    """All files that are read for one: itself, and the second one of a pair, each plain or ``.gz``."""
    return [path, *_partners(path, ".source", ".target")]


def is_second(path: Path) -> bool:
    """Whether a file is read together with another one, which is the part's."""
    return bool(_partners(path, ".target", ".source"))


def _partners(path: Path, own: str, other: str) -> list[Path]:
    """The files beside a file that have another suffix in place of its own, plain or ``.gz``."""
    name = path.name.removesuffix(".gz")
    if not name.endswith(own):
        return []
    names = [name.removesuffix(own) + other + end for end in ("", ".gz")]
    return [found for found in map(path.with_name, names) if found.is_file()]


def pairs_of(first: str, second: str) -> Reader:
    """A reader of a text a line in ``train.source``, and of what it becomes in the same line of ``train.target``.

    Args:
        first: the field that a line of the one file is.
        second: that of the other file.
    """

    def read(path: Path, on_error: OnError = refuse) -> Iterator[Row]:
        paths = files_of(path)
        if len(paths) != 2:
            problem = "has no file" if len(paths) < 2 else f"has both {paths[1].name} and {paths[2].name}"
            fix = "give one, with what each text becomes in the same line"
            raise DataError(str(path), f"{problem} beside it with the same name that ends in .target", fix)
        # A line left out would shift the others.
        lines = itertools.zip_longest(*(whole_lines(one, refuse) for one in paths))
        for number, found in enumerate(lines, start=1):
            if None in found:
                short, long = paths[found.index(None)], paths[1 - found.index(None)]
                problem = f"ends after {number - 1} lines, {long.name} goes on"
                raise DataError(f"{short}:{number}", problem, "give both files the same lines in the same order")
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
"""The readers of files whose records have named fields, by suffix."""

TEXTS: Mapping[str, Reader] = {**TABLES, ".txt": read_text, ".source": read_text, "": read_text}
"""The readers of texts to predict, by suffix."""


PARTS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "dev": ("dev", "valid", "validation", "val", "testa"),
    "test": ("test", "testb"),
}
"""The parts of a data set, and the names that their files go by."""


def part_of(path: Path) -> str | None:
    """The part a file is by its name: ``dev`` for ``valid.jsonl.gz``, ``eng.testa`` and ``dev-v1.1.json``."""
    pieces = re.split("[.-]", path.name.lower())
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
    check_file(path)
    reader = readers.get(suffix_of(path))
    if reader is None:
        for _ in read_lines(path, refuse):  # another format is better named by what it is than by its suffix
            break
        raise DataError(str(path), "has an unknown suffix", f"take one of {listing(sorted(filter(None, readers)))}")
    for row in reader(path, on_error):
        try:
            named = renamed(row, columns)
        except DataError as error:
            on_error(error)
        else:
            yield named


def check_file(path: Path) -> None:
    """Refuse what is no file.

    Raises:
        DataError: nothing is there, or a folder.
    """
    if not path.is_file():
        raise DataError(str(path), f"is no file (looked in {Path.cwd()})", "check the path")


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
