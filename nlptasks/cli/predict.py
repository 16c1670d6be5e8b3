"""``nlptasks predict``."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
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
    parse_pairs,
    set_option,
)
from nlptasks.cli.options import Given, options_of
from nlptasks.errors import DataError

if TYPE_CHECKING:
    from nlptasks.heads.base import AnyHead
    from nlptasks.pipeline import Prediction
    from nlptasks.types import OnError, Reader, Row

_log = logging.getLogger("nlptasks")

Write = Callable[[str], object]


@click.command("predict", cls=Command)
@click.argument("model")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--heads", help="heads to run, separated by commas  [default: all]")
@click.option(
    "--input", "source", type=click.Path(path_type=Path), help="a .txt (one text a line), .jsonl, .csv or .tsv file"
)
@click.option("--output", type=click.Path(path_type=Path), help="write JSON Lines to this file")
@backend_option
@device_option
@columns_option
@set_option
@click.option("--skip-bad-rows", is_flag=True, help="skip rows that cannot be read, and report how many")
@click.option("--json", "as_json", is_flag=True, help="print JSON Lines")
def command(
    model: str,
    texts: tuple[str, ...],
    heads: str | None,
    source: Path | None,
    output: Path | None,
    backend: str,
    device: str,
    columns: str,
    options: tuple[Given, ...],
    skip_bad_rows: bool,
    as_json: bool,
) -> None:
    """Predict for each TEXT, for each row of --input, or for each line of stdin."""
    if texts and source:
        raise click.UsageError("pass TEXT or --input, not both")

    from nlptasks.data.readers import check_columns
    from nlptasks.exporting.sources import class_of
    from nlptasks.inference.engine import CHUNK_ITEMS
    from nlptasks.pipeline import pipeline
    from nlptasks.types import refuse

    typed = not texts and not source and sys.stdin.isatty()
    largest_chunk = 1 if typed else CHUNK_ITEMS  # at a terminal, answer each line at once
    skipped = _Skipped()
    on_error = skipped.add if skip_bad_rows else refuse

    names = heads.split(",") if heads else None
    given = options_of(options, lambda name: class_of(model, name))
    pipe = pipeline(names, model=model, backend=backend, device=device, options=given)
    renames = parse_pairs(columns, where="--columns")
    schemas = [head.schema for head in pipe.heads.values()]
    check_columns(renames, {field for schema in schemas for field in schema.fields})
    formats = {suffix: reader for schema in schemas for suffix, reader in schema.formats.items()}
    rows = _rows(texts, source, formats, renames, on_error)
    shown = _as_json if as_json or output else _for_people
    with _writer(output) as write:
        for found in pipe.predict(rows, on_error=on_error, largest_chunk=largest_chunk):
            write(shown(pipe.heads, found))
    if skipped.count:
        _log.warning("%d rows were left out; the first: %s", skipped.count, skipped.first)


def _rows(
    texts: tuple[str, ...],
    source: Path | None,
    formats: Mapping[str, Reader],
    columns: dict[str, str],
    on_error: OnError,
) -> Iterator[Row]:
    """Return the rows of the command line. Files of texts and tables are read as such, other files in the heads' formats."""
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


class _Skipped:
    """Counts bad rows and keeps the first error."""

    def __init__(self) -> None:
        self.count = 0
        self.first = ""

    def add(self, error: DataError) -> None:
        """Count a row."""
        self.count += 1
        self.first = self.first or str(error)


@contextmanager
def _writer(output: Path | None) -> Iterator[Write]:
    """Write lines to stdout, or to a file that appears when it is complete."""
    if output is None:
        yield click.echo
        return
    target = output.resolve()
    special = target.exists() and not target.is_file()  # write to a pipe or device, do not replace it
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


def _as_json(heads: Mapping[str, AnyHead], found: Prediction) -> str:
    inputs = (one for name, example in found.examples.items() for one in heads[name].inputs(example))
    fields = found.row.fields
    is_text = "text" in fields and all(len(one.texts) == 1 for one in inputs)
    own = {"text": fields["text"]} if is_text else dict(fields)
    line = json.dumps({**own, "results": found.results}, default=_plain, ensure_ascii=False)
    return line.encode("utf-8", "backslashreplace").decode("utf-8")  # writes a lone surrogate as a JSON escape


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Real):  # numpy's
        return int(value) if isinstance(value, Integral) else float(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _for_people(heads: Mapping[str, AnyHead], found: Prediction) -> str:
    color = sys.stdout.isatty()
    lines = {
        name: highlighted(heads[name].presenter.render(example, found.results[name]), color=color)
        for name, example in found.examples.items()
    }
    if len(heads) == 1:
        return "".join(lines.values())
    return "\n".join(f"{name}: {line}" for name, line in lines.items())
