"""``nlptasks predict``."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nlptasks.cli.common import (
    Command,
    backend_option,
    columns_option,
    device_option,
    highlighted,
    options_of,
    parse_pairs,
    set_option,
)
from nlptasks.errors import DataError

if TYPE_CHECKING:
    from nlptasks.inference.engine import Item
    from nlptasks.pipeline import Pipeline
    from nlptasks.types import OnError, Reader, Row

_log = logging.getLogger("nlptasks")

Write = Callable[[str], object]


@click.command("predict", cls=Command)
@click.argument("model")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--heads", help="heads to run, separated by commas  [default: all]")
@click.option(
    "--input", "source", type=click.Path(path_type=Path), help="a .txt (a text a line), .jsonl, .csv or .tsv file"
)
@click.option("--output", type=click.Path(path_type=Path), help="write JSON Lines to this file")
@backend_option
@device_option
@columns_option
@set_option
@click.option("--skip-bad-rows", is_flag=True, help="leave rows out that cannot be read, and say how many")
@click.option("--json", "as_json", is_flag=True, help="JSON Lines on stdout")
def command(
    model: str,
    texts: tuple[str, ...],
    heads: str | None,
    source: Path | None,
    output: Path | None,
    backend: str,
    device: str,
    columns: str,
    options: tuple[str, ...],
    skip_bad_rows: bool,
    as_json: bool,
) -> None:
    """Predict for each TEXT, for each row of --input, or for each line of stdin."""
    if texts and source:
        raise click.UsageError("give TEXT or --input, not both")

    from nlptasks.data.readers import check_columns
    from nlptasks.inference.engine import CHUNK_ITEMS
    from nlptasks.pipeline import pipeline
    from nlptasks.types import refuse

    typed = not texts and not source and sys.stdin.isatty()
    largest_chunk = 1 if typed else CHUNK_ITEMS  # who types wants the answer to the line just typed
    skipped = _Skipped()
    on_error = skipped.add if skip_bad_rows else refuse

    names = heads.split(",") if heads else None
    given = options_of(options, sorted({option.partition(".")[0] for option in options}))
    pipe = pipeline(names, model=model, backend=backend, device=device, options=given)
    renames = parse_pairs(columns, where="--columns")
    check_columns(renames, {field for head in pipe.heads.values() for field in head.fields})
    formats = {suffix: reader for head in pipe.heads.values() for suffix, reader in head.formats.items()}
    rows = _rows(texts, source, formats, renames, on_error)
    with _writer(output) as write:
        for row, item, results in _predictions(pipe, rows, on_error, largest_chunk):
            write(_as_json(pipe, row, item, results) if as_json or output else _for_people(pipe, item, results))
    if skipped.count:
        _log.warning("%d rows were left out; the first: %s", skipped.count, skipped.first)


def _rows(
    texts: tuple[str, ...],
    source: Path | None,
    formats: Mapping[str, Reader],
    columns: dict[str, str],
    on_error: OnError,
) -> Iterator[Row]:
    """The rows of a command line. A file whose kind is known to all is read as texts or rows, others as the heads read them."""
    from nlptasks.data.encoding import decoded_lines, without_end
    from nlptasks.data.readers import TEXTS, read_file, renamed
    from nlptasks.types import Row

    if source:
        yield from read_file(source, {**formats, **TEXTS}, columns, on_error=on_error)
    elif texts:
        for number, text in enumerate(texts, start=1):
            yield renamed(Row({"text": text}, f"text:{number}"), columns)
    else:
        for number, line in decoded_lines(sys.stdin.buffer.readline, "stdin", on_error):
            yield renamed(Row({"text": without_end(line)}, f"stdin:{number}"), columns)


def _predictions(
    pipe: Pipeline, rows: Iterable[Row], on_error: OnError, largest_chunk: int
) -> Iterator[tuple[Row, Item, dict[str, Any]]]:
    waiting: deque[tuple[Row, Item]] = deque()

    def items() -> Iterator[Item]:
        for row in rows:
            try:
                item = pipe.item(row)
            except DataError as error:
                on_error(error)
            else:
                waiting.append((row, item))
                yield item

    for results in pipe.engine.stream(items(), largest_chunk=largest_chunk):
        row, item = waiting.popleft()
        yield row, item, results


class _Skipped:
    """Counts bad rows and remembers what was wrong with the first."""

    def __init__(self) -> None:
        self.count = 0
        self.first = ""

    def add(self, error: DataError) -> None:
        """One more."""
        self.count += 1
        self.first = self.first or str(error)


@contextmanager
def _writer(output: Path | None) -> Iterator[Write]:
    """Writes lines to stdout, or to a file that appears when all of it is written."""
    if output is None:
        yield click.echo
        return
    target = output.resolve()
    special = target.exists() and not target.is_file()  # a pipe or a device is written to, not replaced
    place = target if special else target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        with open(place, "w", encoding="utf-8") as file:
            yield lambda line: file.write(line + "\n")
        if not special:
            os.replace(place, target)
    except OSError as error:
        raise DataError(str(output), f"cannot be written ({error})", "check the path and the free space") from error
    finally:
        if not special:
            place.unlink(missing_ok=True)


def _as_json(pipe: Pipeline, row: Row, item: Item, results: dict[str, Any]) -> str:
    sources = (source for name, example in item.items() for source in pipe.heads[name].sources(example))
    is_text = "text" in row.fields and all(source.second is None for source in sources)
    own = {"text": row.fields["text"]} if is_text else dict(row.fields)
    line = json.dumps({**own, "results": results}, default=_plain, ensure_ascii=False)
    return line.encode("utf-8", "backslashreplace").decode("utf-8")  # a lone surrogate as JSON escapes it


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Real):  # numpy's
        return int(value) if isinstance(value, Integral) else float(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _for_people(pipe: Pipeline, item: Item, results: dict[str, Any]) -> str:
    color = sys.stdout.isatty()
    lines = [highlighted(pipe.heads[name].show(example, results[name]), color=color) for name, example in item.items()]
    if len(pipe.heads) == 1:
        return "".join(lines)
    return "\n".join(f"{name}: {line}" for name, line in zip(item, lines, strict=True))
