"""Settings: frozen dataclasses, each field with its meaning and unit. Imports no torch, so that ``--help`` is quick."""

from __future__ import annotations

import functools
import hashlib
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from typing import Any

from nlptasks.errors import UsageError, did_you_mean, listing, quote

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")
EMBEDDED = "minilm"
"""The backbone that comes with the library."""
RUNS = "runs"
"""The folder that models are written into unless told otherwise."""


@dataclass(frozen=True)
class Range:
    """The finite numbers that a setting may be: from `least` or `above` on, up to `most` or `below`."""

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


def setting(default: Any, doc: str, *, choices: tuple[str, ...] = (), within: Range = ANY, at_run: bool = False) -> Any:
    """A field that the user may set: its default, its meaning with the unit, and the values it may take.

    Args:
        default: its default.
        doc: its meaning, with the unit.
        choices: the texts it may be; empty if any.
        within: the numbers it may be.
        at_run: whether a trained model may be run with another value.
    """
    metadata = {"doc": doc, "choices": choices, "within": within, "given": True, "at_run": at_run}
    return field(default=default, metadata=metadata)


def decided(default: Any, doc: str, *, file: str = "") -> Any:
    """A field that the data decide, not the user.

    Args:
        default: its default.
        doc: its meaning, with the unit.
        file: for a long text, the name of the file that holds it in a model, behind the head's name and a dot.
    """
    return field(default=default, metadata={"doc": doc, "choices": (), "given": False, "file": file})


def recorded(config: Any) -> dict[str, Any]:
    """A head's config as JSON has it; of what stands in files of its own, the sha256."""
    record = asdict(config)
    for name, text in attached(config).items():
        record[name] = hashlib.sha256(text.encode("utf-8")).hexdigest()
    return record


def attached(config: Any) -> dict[str, str]:
    """What a head's config keeps in files of its own, by the name of the field; what is empty has none."""
    return {name: getattr(config, name) for name in file_fields(type(config)) if getattr(config, name)}


def file_fields(cls: type) -> dict[str, str]:
    """The fields of a dataclass that stand in files of their own, and the ends of the files' names."""
    return {item.name: item.metadata["file"] for item in fields(cls) if item.metadata.get("file")}


def changed(config: Any, given: Mapping[str, Any], *, where: str) -> Any:
    """A trained head's config with other values for options that may be changed when it runs.

    Raises:
        UsageError: an option is unknown, of the training only, or has a wrong value.
    """
    parsed = parse_options(type(config), given, where=where)
    may_change = [item.name for item in settings_of(type(config)) if item.metadata["at_run"]]
    for name in parsed:
        if name not in may_change:
            fix = f"those that can be changed: {listing(may_change)}"
            raise UsageError(f"{where}.{name}", "is an option of the training", fix)
    return replace(config, **parsed)


def settings_of(cls: type) -> list[Field[Any]]:
    """The fields of a dataclass that the user may set."""
    return [item for item in fields(cls) if item.metadata.get("given")]


def limits_of(item: Field[Any]) -> str:
    """The values that a setting may take, in words; empty if any."""
    within = item.metadata["within"]
    return ", ".join(item.metadata["choices"]) or ("" if within == ANY else str(within))


def value_type(cls: type, item: Field[Any]) -> type[Any]:
    """The type a value of this field has when it is given: ``float`` for ``float | None``."""
    hint = _hints(cls)[item.name]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    kind: type[Any] = typing.get_origin(hint) or hint
    return kind


@functools.cache
def _hints(cls: type) -> Mapping[str, Any]:
    return typing.get_type_hints(cls)


def parse_options(cls: type, given: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Options given as text, as values of the types that `cls` declares.

    Raises:
        UsageError: an unknown option, or a value of the wrong kind.
    """
    known = {item.name: item for item in settings_of(cls)}
    parsed = {}
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"{where}.{name}", "is no option of this head", did_you_mean(name, known))
        kind = value_type(cls, known[name])
        parsed[name] = _parse(value, kind, f"{where}.{name}")
        _check(parsed[name], kind, known[name], f"{where}.{name}")
    return parsed


def check_values(config: Any, *, spell: Callable[[str], str] = str) -> None:
    """Refuse settings that are not of their types, choices and ranges, wherever they come from.

    Args:
        config: an instance of a dataclass with settings; what is None by default may be None.
        spell: how a field is named to the user.

    Raises:
        UsageError: one is not.
    """
    for item in settings_of(type(config)):
        value = getattr(config, item.name)
        if value is not None or item.default is not None:
            _check(value, value_type(type(config), item), item, spell(item.name))


def _check(value: Any, kind: type, item: Field[Any], where: str) -> None:
    _check_type(value, kind, where)
    choices, within = item.metadata["choices"], item.metadata["within"]
    if choices and value not in choices:
        raise UsageError(where, f"is {quote(value)}", f"take one of {listing(choices)}")
    if kind in (int, float) and value not in within:
        raise UsageError(where, f"is {value}", f"give {within}")


def _check_type(value: Any, kind: type, where: str) -> None:
    kinds: Any = {float: (int, float), tuple: (list, tuple)}.get(kind, kind)
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(where, f"is {quote(value)}, not a value of type {kind.__name__}", "correct the value")


def _parse(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, str):
        _check_type(value, kind, where)
        return kind(value)
    if kind is str:
        return value
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise UsageError(where, f"is {quote(value)}", "take true or false")
        return value.lower() == "true"
    try:
        return tuple(value.split(",")) if kind is tuple else kind(value)
    except ValueError:
        raise UsageError(
            where, f"is {quote(value)}, not a value of type {kind.__name__}", "correct the value"
        ) from None


@dataclass(frozen=True)
class Target:
    """What to train on what: ``[NAME:]TASK[=DATA]``.

    Attributes:
        task: the registered task.
        name: the head's name in the model.
        data: a folder or file; None for the sample data of the task.
        columns: the names the head wants and the names (or numbers, from 1) the file has.
        options: the head's own options, as text or as values.
    """

    task: str
    name: str
    data: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def parse_target(text: str) -> Target:
    """``products:ner=DATA`` as a target.

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
"""What a head, or a task, can be called, in words."""


def check_head_name(name: str) -> None:
    """Refuse a name that cannot be a file's and a graph output's name.

    Raises:
        UsageError: the name does not fit.
    """
    if not is_name(name):
        raise UsageError(f"head name {quote(name)}", "does not fit", f"take {NAMES}")


def is_name(name: str) -> bool:
    """Whether a head, or a task, can be called so."""
    plain = name.replace("_", "a").replace("-", "a")
    return plain.isascii() and plain.isalnum() and name == name.lower() and name[0].isalpha() and len(name) <= 40


@dataclass(frozen=True)
class TrainSettings:
    """How to train. None means: chosen from the size of the backbone and of the data, and recorded in ``training.json``."""

    backbone: str | None = setting(
        None, "backbone: a hub name, a folder, or minilm, the embedded default; with --add-to it is the model's"
    )
    tune: str | None = setting(
        None,
        "what is trained: the whole backbone (all, the default for a new model), copies of its K top layers that the head then "
        "owns (top:K, the default for an added head), or the head alone (head)",
    )
    epochs: int | None = setting(None, "passes over the training rows", within=AT_LEAST_1)
    lr: float | None = setting(None, "highest learning rate of the backbone", within=ABOVE_0)
    head_lr: float | None = setting(
        None,
        "highest learning rate of the head; by default ten times what --lr is for the whole backbone, less where it writes",
        within=ABOVE_0,
    )
    batch_tokens: int | None = setting(None, "tokens in a batch of one process, padding included", within=AT_LEAST_1)
    accumulate: int = setting(
        1, "batches of each process whose gradients are added up before the weights change", within=AT_LEAST_1
    )
    layer_decay: float = setting(
        1.0,
        "the learning rate of each layer of the backbone as a share of the one above it; 1 for equal rates",
        within=SHARE_ABOVE_0,
    )
    warmup: float = setting(
        0.1, "share of all steps in which the learning rate rises to its highest", within=SHARE_BELOW_1
    )
    weight_decay: float = setting(
        0.01, "AdamW's decoupled decay of weight matrices, per step, times the learning rate", within=AT_LEAST_0
    )
    clip: float = setting(1.0, "largest norm of the gradient", within=ABOVE_0)
    patience: int = setting(
        3, "epochs without a better main metric on dev before training stops early", within=AT_LEAST_1
    )
    precision: str = setting(
        "auto", "arithmetic of the passes: auto takes bf16 where the hardware has it", choices=PRECISIONS
    )
    device: str = setting("auto", "where to train: auto takes a GPU if there is one", choices=DEVICES)
    head_weights: str = setting(
        "", "how often heads that learn together have their turn, in relation to each other: HEAD:WEIGHT,... (others 1)"
    )
    seed: int = setting(0, "seed of the split, the order of batches, dropout and new weights", within=SEEDS)
    checkpoint_seconds: float = setting(
        60.0,
        "seconds between checkpoints; more where writing them would take over a twenty-fifth of the time",
        within=AT_LEAST_0,
    )

    def __post_init__(self) -> None:
        check_values(self, spell=_flag)
        owned_layers(self.tune)
        parse_weights(self.head_weights)


def owned_layers(tune: str | None) -> int | None:
    """The layers that a head owns by ``--tune``: none for ``head``; None where the backbone is trained or nothing is said.

    Raises:
        UsageError: it is not ``all``, ``top:K`` or ``head``.
    """
    if tune in (None, "all"):
        return None
    if tune == "head":
        return 0
    kind, _, number = tune.partition(":")
    if kind != "top" or not number.isdecimal() or not number.isascii() or len(number) > 4 or int(number) < 1:
        raise UsageError("--tune", f"is {quote(tune)}", "take all, head, or top:K, where K is a number of layers")
    return int(number)


def parse_weights(text: str) -> dict[str, float]:
    """``ner:2,qa:0.5`` as weights by head.

    Raises:
        UsageError: it is not written so, or a weight is not a finite number above 0.
    """
    weights = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.rpartition(":")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name or name in weights or weight not in WEIGHTS:
            raise UsageError(
                "--head-weights", f"has {quote(part)}", "write HEAD:WEIGHT,..., each a finite number above 0"
            )
        weights[name] = weight
    return weights


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def default_of(item: Field[Any]) -> Any:
    """The default of a field, None where it has none."""
    return None if item.default is MISSING else item.default
