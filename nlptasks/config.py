"""Options and settings: frozen dataclasses whose fields have a meaning and a unit. Imports no torch, so ``--help`` is fast."""

from __future__ import annotations

import functools
import hashlib
import math
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from typing import Any

from nlptasks.errors import UsageError, did_you_mean, listing, quote

AUTO = "auto"
PRECISIONS = (AUTO, "fp32", "bf16", "fp16")
DEVICES = (AUTO, "cpu", "cuda")
EMBEDDED = "minilm"
"""The default backbone, which installs with the extra `minilm`."""
RUNS = "runs"
"""The default folder for models."""

_PLURALS: Mapping[Any, str] = {str: "strings", int: "whole numbers", float: "numbers"}


@dataclass(frozen=True)
class Range:
    """The range of a number: at least `least` or more than `above`, and at most `most` or less than `below`."""

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        names = {"least": "of at least", "above": "above", "most": "at most", "below": "below"}
        bounds = [f"{word} {bound}" for name, word in names.items() if math.isfinite(bound := getattr(self, name))]
        return f"a number {', '.join(bounds)}".rstrip()


ANY, AT_LEAST_0, AT_LEAST_1, ABOVE_0 = Range(), Range(least=0), Range(least=1), Range(above=0)
WEIGHTS = Range(least=0.001, most=1000)
SEEDS = Range(least=0, most=2**63 - 1)
SHARE_ABOVE_0, SHARE_BELOW_1 = Range(above=0, most=1), Range(least=0, below=1)


def option(default: Any, doc: str, *, choices: tuple[str, ...] = (), within: Range = ANY, at_run: bool = False) -> Any:
    """Return a dataclass field that the user may set.

    Args:
        default: its default.
        doc: its meaning, with the unit.
        choices: the allowed strings; empty for any.
        within: the allowed numbers, also those of a tuple or mapping.
        at_run: True if it may change when a trained model runs.
    """
    metadata = {"doc": doc, "choices": choices, "within": within, "given": True, "at_run": at_run}
    if isinstance(default, dict):
        return field(default_factory=default.copy, hash=False, metadata=metadata)
    return field(default=default, metadata=metadata)


def derived(default: Any, doc: str, *, within: Range = ANY, file: str = "") -> Any:
    """Return a dataclass field that the training data or the backbone decide.

    Args:
        default: its default.
        doc: its meaning, with the unit.
        within: the numbers it may be.
        file: for a long text, the suffix of the file that holds it in a model, after the head's name and a dot.
    """
    return field(default=default, metadata={"doc": doc, "choices": (), "within": within, "given": False, "file": file})


def recorded(config: Any) -> dict[str, Any]:
    """Return a head's config for JSON; fields with a file of their own are replaced by its sha256."""
    record = asdict(config)
    for name, text in attached(config).items():
        record[name] = hashlib.sha256(text.encode("utf-8")).hexdigest()
    return record


def attached(config: Any) -> dict[str, str]:
    """Return the contents of fields with a file of their own, by field; empty ones are left out."""
    return {name: getattr(config, name) for name in file_fields(type(config)) if getattr(config, name)}


def file_fields(cls: type) -> dict[str, str]:
    """Return the fields of a dataclass that have a file of their own, with the suffix of its name."""
    return {item.name: item.metadata["file"] for item in fields(cls) if item.metadata.get("file")}


@contextmanager
def naming(head: str) -> Iterator[None]:
    """Put a head's name in front of the option that a UsageError names."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{head}.{error.where}", error.problem, error.fix) from error


def changed(config: Any, given: Mapping[str, Any]) -> Any:
    """Return a trained head's config with other values for options that may change at run time.

    Raises:
        UsageError: an option is unknown, only for training, or has a wrong value.
    """
    values = check_options(type(config), given)
    may_change = [item.name for item in settings_of(type(config)) if item.metadata["at_run"]]
    for name in values:
        if name not in may_change:
            fix = f"those that can be changed: {listing(may_change)}"
            raise UsageError(name, "is an option of training", fix)
    return replace(config, **values)


def settings_of(cls: type) -> list[Field[Any]]:
    """Return the fields of a dataclass that the user may set."""
    return [item for item in fields(cls) if item.metadata.get("given")]


def setting_of(cls: type, name: str) -> Field[Any]:
    """Return the field of an option.

    Raises:
        UsageError: there is no such option.
    """
    known = {item.name: item for item in settings_of(cls)}
    if name not in known:
        raise UsageError(name, "is no option of this head", did_you_mean(name, known))
    return known[name]


def types_of(cls: type, item: Field[Any]) -> tuple[Any, ...]:
    """Return the declared types of a field: ``(float, NoneType)`` for ``float | None``."""
    hint = _hints(cls)[item.name]
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


@functools.cache
def _hints(cls: type) -> Mapping[str, Any]:
    return typing.get_type_hints(cls)


def check_options(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the user's options as arguments of a dataclass; a list becomes a tuple, and any mapping a dict.

    Raises:
        UsageError: an option is unknown, or has a wrong value.
    """
    for name, value in given.items():
        _check(value, cls, setting_of(cls, name))
    return {name: _plain(value) for name, value in given.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return dict(value) if isinstance(value, Mapping) else value


def check_values(config: Any) -> None:
    """Refuse values that do not fit the types, choices and ranges of their fields.

    Args:
        config: an instance of a dataclass with options; None is allowed where it is the default, or part of the type.

    Raises:
        UsageError: a value does not fit.
    """
    for item in fields(config):
        value = getattr(config, item.name)
        if item.metadata and (value is not None or item.default is not None):
            _check(value, type(config), item)


def _check(value: Any, cls: type, item: Field[Any]) -> None:
    name, choices, within = item.name, item.metadata["choices"], item.metadata["within"]
    kinds = types_of(cls, item)
    if not any(_fits(value, kind) for kind in kinds) or (choices and isinstance(value, str) and value not in choices):
        words = [word for kind in kinds for word in (choices if kind is str and choices else _words(kind))]
        fix = f"use {'one of ' if len(words) > 1 else ''}{listing(words)}"
        raise UsageError(name, f"is {quote(value)}", fix, argument=name)
    for problem, number in _numbers(value):
        if number not in within:
            raise UsageError(name, problem, f"give {within}", argument=name)


def _fits(value: Any, hint: Any) -> bool:
    """Return True if a value has a type. A list fits a tuple, and a whole number fits a float."""
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(key, parts[0]) and _fits(one, parts[1]) for key, one in value.items()
        )
    if kind is tuple and parts:
        if not isinstance(value, list | tuple):
            return False
        expected = parts[:1] * len(value) if Ellipsis in parts else parts
        return len(value) == len(expected) and all(map(_fits, value, expected))
    return isinstance(value, int | float if kind is float else kind) and (kind is bool or not isinstance(value, bool))


def _words(hint: Any) -> tuple[str, ...]:
    """Return a type in words."""
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is bool:
        return "True", "False"
    if kind is tuple and parts:
        count = "" if Ellipsis in parts else f"{len(parts)} "
        return (f"a tuple of {count}{_PLURALS.get(parts[0], 'values')}",)
    if kind is Mapping:
        return (f"a dict of {_PLURALS.get(parts[1], 'values')} by name",)
    return (
        {str: "a string", int: "a whole number", float: "a number", types.NoneType: "None"}.get(kind, kind.__name__),
    )


def _numbers(value: Any) -> Iterator[tuple[str, float]]:
    """Yield the numbers in a value, each with a problem in words."""
    if isinstance(value, int | float):
        yield f"is {value}", value
    elif isinstance(value, Mapping):
        yield from (
            (f"has {one} for {quote(name)}", one) for name, one in value.items() if isinstance(one, int | float)
        )
    elif isinstance(value, list | tuple):
        yield from ((f"has {part}", part) for part in value if isinstance(part, int | float))


@dataclass(frozen=True)
class Target:
    """What to train on what: ``[NAME:]TASK[=DATA]``.

    Attributes:
        task: the registered task.
        name: the head's name in the model.
        data: a folder or file; None for the sample data of the task.
        columns: field names of the head, and the file's column names (or numbers, from 1) for them.
        options: the head's options.
    """

    task: str
    name: str
    data: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def parse_target(text: str) -> Target:
    """Return ``products:ner=DATA`` as a target.

    Raises:
        UsageError: a part is empty or the name is not a head's name.
    """
    left, equals, data = text.partition("=")
    name, colon, task = left.partition(":")
    if not colon:
        name = task = left
    if not task or (equals and not data):
        raise UsageError(quote(text), "is not TASK, TASK=DATA or NAME:TASK=DATA", "write for example ner=DATA")
    check_head_name(name)
    return Target(task=task, name=name, data=data or None)


NAMES = "1 to 40 of a-z, 0-9, _ and -, a letter first"
"""Valid names of heads and tasks, in words."""


def check_head_name(name: str) -> None:
    """Refuse a name that is not valid for files and graph outputs.

    Raises:
        UsageError: the name does not fit.
    """
    if not is_name(name):
        raise UsageError(f"head name {quote(name)}", "is not valid", f"use {NAMES}")


def is_name(name: str) -> bool:
    """Return True for a valid name of a head or task."""
    plain = name.replace("_", "a").replace("-", "a")
    return plain.isascii() and plain.isalnum() and name == name.lower() and name[0].isalpha() and len(name) <= 40


@dataclass(frozen=True)
class TrainSettings:
    """Settings of training. None means chosen from the size of backbone and data; the choice is recorded in ``training.json``."""

    backbone: str | None = option(
        None, "backbone: a hub name, a folder, or minilm, the embedded default; an added head has that of its model"
    )
    tune: str | None = option(
        None,
        "what is trained: the whole backbone (all, the default for a new model), copies of its K top layers that belong to the "
        "head (top:K, the default for an added head), or only the head (head)",
    )
    epochs: int | None = option(None, "passes over the training rows", within=AT_LEAST_1)
    lr: float | None = option(None, "highest learning rate of the backbone", within=ABOVE_0)
    head_lr: float | None = option(
        None,
        "highest learning rate of the head; by default ten times that of the whole backbone, less for text generation",
        within=ABOVE_0,
    )
    batch_tokens: int | None = option(None, "tokens in a batch of one process, with padding", within=AT_LEAST_1)
    accumulate: int = option(
        1, "batches of each process in one optimizer step (gradient accumulation)", within=AT_LEAST_1
    )
    layer_decay: float = option(
        1.0,
        "learning rate of each backbone layer relative to the layer above; 1 for equal rates",
        within=SHARE_ABOVE_0,
    )
    warmup: float = option(0.1, "fraction of steps used for linear warm-up", within=SHARE_BELOW_1)
    weight_decay: float = option(0.01, "decoupled weight decay of AdamW for weight matrices", within=AT_LEAST_0)
    clip: float = option(1.0, "gradient clipping: largest norm", within=ABOVE_0)
    patience: int = option(3, "early stopping: epochs without a better main metric on dev", within=AT_LEAST_1)
    precision: str = option("auto", "arithmetic: auto uses bf16 if the hardware supports it", choices=PRECISIONS)
    device: str = option("auto", "where to train: auto uses a GPU if there is one", choices=DEVICES)
    head_weights: Mapping[str, float] = option(
        {}, "relative sampling weight of each head in joint training (1 for the others)", within=WEIGHTS
    )
    seed: int = option(0, "seed of data split, batch order, dropout and new weights", within=SEEDS)
    checkpoint_seconds: float = option(
        60.0,
        "seconds between checkpoints; more if writing them would take over 4 % of the time",
        within=AT_LEAST_0,
    )

    def __post_init__(self) -> None:
        check_values(self)
        owned_layers(self.tune)
        object.__setattr__(self, "head_weights", dict(self.head_weights))  # any mapping can then be copied and pickled


def owned_layers(tune: str | None) -> int | None:
    """Return the number of layers that a head owns: 0 for ``head``, None if the backbone is trained or nothing is set.

    Raises:
        UsageError: it is not ``all``, ``top:K`` or ``head``.
    """
    if tune in (None, "all"):
        return None
    if tune == "head":
        return 0
    kind, _, number = tune.partition(":")
    if kind != "top" or not number.isdecimal() or not number.isascii() or len(number) > 4 or int(number) < 1:
        raise UsageError("tune", f"is {quote(tune)}", "use all, head, or top:K with K layers", argument="tune")
    return int(number)


def default_of(item: Field[Any]) -> Any:
    """Return the default of a field, None if it has none."""
    if item.default_factory is not MISSING:
        return item.default_factory()
    return None if item.default is MISSING else item.default
