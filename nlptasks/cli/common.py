"""What the commands share: errors as one line, options from settings, text for people."""

from __future__ import annotations

import logging
import os
import sys
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from nlptasks.cli.configfile import added
from nlptasks.config import DEVICES, Target, default_of, parse_target, settings_of, value_type
from nlptasks.errors import DataErrors, NlptasksError, UsageError, did_you_mean
from nlptasks.exporting.precisions import PRECISIONS
from nlptasks.registry import blamed
from nlptasks.training.interrupts import terminable

_Function = TypeVar("_Function", bound=Callable[..., Any])

_COLORS = ("green", "cyan", "yellow", "magenta", "blue", "red")

device_option = click.option(
    "--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="where to run"
)
backend_option = click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="auto (ONNX Runtime if there is a fresh export), torch, torch:bf16, onnx, or one of its precisions: "
    + ", ".join(f"onnx:{name}" for name in PRECISIONS),
)
set_option = click.option(
    "--set",
    "options",
    multiple=True,
    callback=added,
    metavar="HEAD.OPTION=VALUE",
    help="an option of the head; see 'nlptasks tasks TASK'",
)
columns_option = click.option(
    "--columns",
    metavar="WANTED=FOUND,...",
    callback=added,
    default="",
    help="names of the file's columns, e.g. text=review,label=stars; of one head's file: HEAD.text=review",
)


class Command(click.Command):
    """A command that reports the library's errors, a line each, and exits with their code; ``--debug`` shows the traceback."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(["--debug"], is_flag=True, help="show the traceback of an error", expose_value=False)
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["debug"] = "--debug" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        prepare_process()
        try:
            with terminable():
                return super().invoke(ctx)
        except NlptasksError as error:
            if ctx.meta["debug"]:
                raise
            for line in error.lines():
                click.echo(f"error: {printable(line)}", err=True)
            if isinstance(error, DataErrors) and error.stopped:
                click.echo(f"stopped after {len(error.errors)} errors", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            if ctx.meta["debug"]:
                raise
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except BrokenPipeError:  # the reader of our output has gone, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except (click.exceptions.Exit, click.ClickException, click.Abort):  # how click ends, and what it says itself
            raise
        except Exception as error:
            plugin = None if ctx.meta["debug"] else blamed(error)
            if plugin is None:
                raise
            click.echo(f"error: {printable(str(plugin))}", err=True)
            ctx.exit(plugin.exit_code)


def prepare_process() -> None:
    """Our own notes to stderr, and no progress bars or notes of the libraries below."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logger = logging.getLogger("nlptasks")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable())
    logger.handlers = [handler]
    first = os.environ.get("RANK", "0") == "0"  # of several processes that train together, one says what all have found
    logger.setLevel(logging.INFO if first else logging.ERROR)
    logger.propagate = False


def settings_options(cls: type) -> Callable[[_Function], _Function]:
    """A decorator: one option for each setting of a dataclass, with its type, default and meaning."""

    def decorate(function: _Function) -> _Function:
        for item in reversed(settings_of(cls)):
            choices: Sequence[str] = item.metadata["choices"]
            default = default_of(item)
            help_text = item.metadata["doc"] + (f"  [default: {default}]" if default is not None else "")
            kind = click.Choice(choices) if choices else value_type(cls, item)
            function = click.option(
                f"--{item.name.replace('_', '-')}", item.name, type=kind, default=None, help=help_text
            )(function)
        return function

    return decorate


def given_settings(cls: type, options: Mapping[str, Any]) -> Any:
    """The dataclass, with the options that were given."""
    names = {item.name for item in fields(cls)}
    return cls(**{name: value for name, value in options.items() if name in names and value is not None})


def parse_pairs(text: str, *, where: str) -> dict[str, str]:
    """``a=b,c=d`` as a dict.

    Raises:
        UsageError: a part has no ``=``.
    """
    pairs = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise UsageError(where, f"has {part!r}, expected WANTED=FOUND", "write for example text=review,label=stars")
        pairs[name] = value
    return pairs


def make_targets(texts: Iterable[str], *, columns: str, options: Iterable[str] = ()) -> list[Target]:
    """The targets of a command line, with their columns and options.

    Args:
        texts: ``[NAME:]TASK[=DATA]`` of each.
        columns: ``WANTED=FOUND,...`` for every target, ``HEAD.WANTED=FOUND`` for one.
        options: ``HEAD.OPTION=VALUE``.

    Raises:
        UsageError: one of them is not written as it must be, or is of another head.
    """
    targets = [parse_target(text) for text in texts]
    names = [target.name for target in targets]
    given = options_of(options, names)
    renames: dict[str, dict[str, str]] = {name: {} for name in names}
    pairs = parse_pairs(columns, where="--columns")
    for wanted, found in sorted(pairs.items(), key=lambda pair: "." in pair[0]):  # a head's own come last and win
        head, dot, field = wanted.partition(".")
        if dot and head not in renames:
            raise UsageError(f"--columns {wanted}", f"names the head {head!r}", did_you_mean(head, names))
        for name in [head] if dot else names:
            renames[name][field if dot else wanted] = found
    return [replace(target, columns=renames[target.name], options=given[target.name]) for target in targets]


def options_of(options: Iterable[str], heads: Sequence[str]) -> dict[str, dict[str, str]]:
    """``HEAD.OPTION=VALUE`` of each of these heads, by head and option.

    Raises:
        UsageError: one is not written so, or names another head.
    """
    given: dict[str, dict[str, str]] = {head: {} for head in heads}
    for option in options:
        name, equals, value = option.partition("=")
        head, dot, key = name.partition(".")
        if not (head and dot and key and equals):
            raise UsageError(
                f"--set {option}", "is not HEAD.OPTION=VALUE", f"write for example --set {heads[0]}.OPTION=VALUE"
            )
        if head not in given:
            known = " or ".join(map(repr, heads))
            raise UsageError(f"--set {option}", f"names the head {head!r}", f"the head here is {known}")
        given[head][key] = value
    return given


def printable(text: str) -> str:
    """Text that cannot steer a terminal: control characters are shown as their escapes."""
    return "".join(char if char == "\t" or not _steers(char) else repr(char)[1:-1] for char in text)


class _Printable(logging.Formatter):
    """Notes may quote the data, and stay in their line."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _steers(char: str) -> bool:
    """Control characters, halves of surrogate pairs, and marks that turn the direction of what follows."""
    return (
        unicodedata.category(char) in ("Cc", "Cs") or char in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )


def highlighted(pieces: Iterable[tuple[str, str]], *, color: bool) -> str:
    """Pieces of text with their labels: in colour, or as ``[text LABEL]``."""
    parts = []
    for text, label in pieces:
        if not label:
            parts.append(printable(text))
        elif color:
            shade = _COLORS[zlib.crc32(label.encode()) % len(_COLORS)]
            parts.append(
                click.style(printable(text), fg=shade, bold=True)
                + click.style(f" {printable(label)}", fg=shade, dim=True)
            )
        else:
            parts.append(f"[{printable(text)} {printable(label)}]")
    return "".join(parts)


def next_steps(folder: Path, row: Mapping[str, str]) -> str:
    """What can be done with a new model whose head reads such rows."""
    given = '"..."' if row.keys() == {"text"} else f"--input FILE.jsonl (rows with {', '.join(row)})"
    return f"next:  nlptasks predict {folder} {given}    nlptasks export {folder}"


def metric_lines(metrics: Mapping[str, float], main: str) -> list[str]:
    """Metrics for people: overall first, then a line for each label."""
    rows: dict[str, list[str]] = {}
    for key, value in sorted(metrics.items(), key=lambda pair: pair[0].rpartition(".")[2] != main):
        label, _, name = key.rpartition(".")
        number = f"{value:.0f}" if name == "support" else f"{value:.4f}" if value <= 1 else f"{value:.2f}"
        rows.setdefault(label, []).append(f"{name} {number}")
    width = max(map(len, rows))
    return [f"  {printable(label):{width}}  {'  '.join(values)}" for label, values in rows.items()]
