"""Lines of text files in UTF-8: with or without a byte order mark, with LF or CRLF, plain or gzip."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from nlptasks.errors import DataError
from nlptasks.types import OnError

Line = tuple[int, str]
"""Line number, from 1, and text."""

MAX_LINE_BYTES = 16 * 2**20
"""Limit for a line, so that a file without line ends does not fill the memory."""

MAX_UNPACKED_BYTES = 2**30
"""Limit for a file that is read into memory as a whole, after unpacking."""

_MARK = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_CONVERT = "convert it: iconv -f {kind} -t UTF-8"
_OTHER_FORMATS = tuple(
    (re.compile(pattern, re.DOTALL), kind, fix)
    for pattern, kind, fix in (
        (rb"\xff\xfe\0\0|\0\0\xfe\xff", "UTF-32", _CONVERT),
        (rb"\xff\xfe|\xfe\xff", "UTF-16", _CONVERT),
        (rb"([^\0]\0\0\0){2}", "UTF-32LE", _CONVERT),  # no mark: ASCII characters padded by zeros
        (rb"(\0\0\0[^\0]){2}", "UTF-32BE", _CONVERT),
        (rb"([^\0]\0){3}", "UTF-16LE", _CONVERT),
        (rb"(\0[^\0]){3}", "UTF-16BE", _CONVERT),
        (rb"PK\x03\x04", "a zip archive or an Excel workbook", "unpack it, or save the sheet as CSV in UTF-8"),
        (rb"\xd0\xcf\x11\xe0", "an old Excel workbook", "save the sheet as CSV in UTF-8"),
        (rb"PAR1[\0-\x1f]", "Parquet", "write its rows as JSON Lines"),
        (rb"BZh[1-9]1AY&SY", "bzip2", "unpack it with bunzip2, or use gzip"),
        (rb"\xfd7zXZ\0", "xz", "unpack it with unxz, or use gzip"),
        (rb"\x28\xb5\x2f\xfd", "zstd", "unpack it with unzstd, or use gzip"),
    )
)


def read_lines(path: Path, on_error: OnError) -> Iterator[Line]:
    """Read the lines of a text file without line ends; errors as in `whole_lines`."""
    for number, line in whole_lines(path, on_error):
        yield number, without_end(line)


def without_end(line: str) -> str:
    """Remove the line end."""
    return line.removesuffix("\n").removesuffix("\r")


def whole_lines(path: Path, on_error: OnError, *, limit: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """Read the lines of a text file with their line ends.

    Raises:
        DataError: the file cannot be read, has another format, or has a line of more than `limit` bytes.
    """
    try:
        with open(path, "rb") as file:
            packed = file.read(len(_GZIP)) == _GZIP
        with gzip.open(path, "rb") if packed else open(path, "rb") as file:
            yield from decoded_lines(file.readline, str(path), on_error, limit=limit)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(str(path), f"cannot be read ({error})", "check the path and the file") from error


def decoded_lines(
    readline: Callable[[int], bytes], name: str, on_error: OnError, *, limit: int = MAX_LINE_BYTES
) -> Iterator[Line]:
    """Read the lines of a stream with their line ends.

    Args:
        readline: the stream's method: returns at most this number of bytes of the next line.
        name: name of the stream, for messages.
        on_error: what to do with a line that is not UTF-8.
        limit: maximum number of bytes in a line; no more is read of a longer one.

    Raises:
        DataError: the stream is not text, or a line is too long.
    """
    number = 0
    while raw := readline(limit + 1):
        number += 1
        if number == 1:
            _refuse_other_formats(raw, name)
            raw = raw.removeprefix(_MARK)
        if len(raw) > limit:
            problem = f"has more than {limit // 2**20} MiB in one line"
            raise DataError(f"{name}:{number}", problem, "check its line ends, or split the text")
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = f"byte 0x{raw[error.start]:02x} at column {error.start + 1} is not UTF-8"
            fix = "convert the file, for example: iconv -f LATIN1 -t UTF-8"
            on_error(DataError(f"{name}:{number}", problem, fix))
        else:
            yield number, line


def _refuse_other_formats(head: bytes, name: str) -> None:
    """Refuse a file whose first bytes are those of another encoding or format.

    Raises:
        DataError: with the name of the format.
    """
    for pattern, kind, fix in _OTHER_FORMATS:
        if pattern.match(head):
            raise DataError(name, f"is {kind}, expected text in UTF-8", fix.format(kind=kind))
