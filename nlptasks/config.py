"""Settings: frozen dataclasses, each field with its meaning and unit. Imports no torch, so that ``--help`` is quick."""

from __future__ import annotations

import hashlib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from typing import Any

from nlptasks.errors import UsageError, did_you_mean, listing, quote

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")
TUNE = ("all", "head")
RUNS = "runs"
"""The folder that models are written into unless told otherwise."""


def setting(default: Any, doc: str, *, choices: tuple[str, ...] = (), at_run: bool = False) -> Any:
    """A field that the user may set: its default, its meaning with the unit, and the values it may take.

    Args:
        default: its default.
        doc: its meaning, with the unit.
        choices: the values it may take; empty if any.
        at_run: whether a trained model may be run with another value.
    """
    return field(default=default, metadata={"doc": doc, "choices": choices, "given": True, "at_run": at_run})


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


def value_type(cls: type, item: Field[Any]) -> type[Any]:
    """The type a value of this field has when it is given: ``float`` for ``float | None``."""
    hint = typing.get_type_hints(cls)[item.name]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    kind: type[Any] = typing.get_origin(hint) or hint
    return kind


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
        parsed[name] = _parse(value, value_type(cls, known[name]), f"{where}.{name}")
        choices = known[name].metadata["choices"]
        if choices and parsed[name] not in choices:
            raise UsageError(f"{where}.{name}", f"is {quote(parsed[name])}", f"take one of {listing(choices)}")
    return parsed


def _parse(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, str):
        kinds: Any = {float: (int, float), tuple: (list, tuple)}.get(kind, kind)
        if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
            raise UsageError(where, f"is {quote(value)}, not a value of type {kind.__name__}", "correct the value")
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


def check_head_name(name: str) -> None:
    """Refuse a name that cannot be a file's and a graph output's name.

    Raises:
        UsageError: the name does not fit.
    """
    plain = name.replace("_", "a").replace("-", "a")
    if not (plain.isascii() and plain.isalnum() and name == name.lower() and name[0].isalpha() and len(name) <= 40):
        raise UsageError(
            f"head name {quote(name)}", "does not fit", "take 1 to 40 of a-z, 0-9, _ and -, a letter first"
        )


@dataclass(frozen=True)
class TrainSettings:
    """How to train. None means: chosen from the size of the backbone and of the data, and recorded in ``training.json``."""

    backbone: str = setting("minilm", "backbone: a hub name, a folder, or minilm, the embedded default")
    tune: str = setting("all", "what is trained: the whole backbone (all) or only the head on it (head)", choices=TUNE)
    epochs: int | None = setting(None, "passes over the training rows")
    lr: float | None = setting(None, "highest learning rate of the backbone")
    head_lr: float | None = setting(
        None, "highest learning rate of the head; by default ten times --lr, less where it writes"
    )
    batch_tokens: int | None = setting(None, "tokens in a batch of one process, padding included")
    accumulate: int = setting(1, "batches of each process whose gradients are added up before the weights change")
    layer_decay: float = setting(
        1.0, "the learning rate of each layer of the backbone as a share of the one above it; 1 for equal rates"
    )
    warmup: float = setting(0.1, "share of all steps in which the learning rate rises to its highest")
    weight_decay: float = setting(0.01, "AdamW's decoupled decay of weight matrices, per step, times the learning rate")
    clip: float = setting(1.0, "largest norm of the gradient")
    patience: int = setting(3, "epochs without a better main metric on dev before training stops early")
    precision: str = setting(
        "auto", "arithmetic of the passes: auto takes bf16 where the hardware has it", choices=PRECISIONS
    )
    device: str = setting("auto", "where to train: auto takes a GPU if there is one", choices=DEVICES)
    seed: int = setting(0, "seed of the split, the order of batches, dropout and new weights")

    checkpoint_seconds: float = setting(
        60.0, "seconds between checkpoints; more where writing them would take over a twenty-fifth of the time"
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "lr", "head_lr", "batch_tokens", "accumulate", "layer_decay", "clip", "patience"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(_flag(name), f"is {value}", "give a number above 0")
        if not self.layer_decay <= 1:
            raise UsageError("--layer-decay", f"is {self.layer_decay}", "give a share above 0, up to 1")
        if not self.checkpoint_seconds >= 0:
            raise UsageError("--checkpoint-seconds", f"is {self.checkpoint_seconds}", "give 0 or more")
        if not 0 <= self.warmup < 1:
            raise UsageError(_flag("warmup"), f"is {self.warmup}", "give a share from 0 up to 1")
        if not self.weight_decay >= 0:
            raise UsageError(_flag("weight_decay"), f"is {self.weight_decay}", "give 0 or more")
        if not 0 <= self.seed < 2**63:
            raise UsageError(_flag("seed"), f"is {self.seed}", "give a number from 0 up to 2**63 - 1")
        for item in fields(self):
            choices = item.metadata["choices"]
            if choices and getattr(self, item.name) not in choices:
                raise UsageError(
                    _flag(item.name), f"is {getattr(self, item.name)!r}", f"take one of {listing(choices)}"
                )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def default_of(item: Field[Any]) -> Any:
    """The default of a field, None where it has none."""
    return None if item.default is MISSING else item.default
