"""A model ready to run: texts in, results out.

>>> import nlptasks.pipeline
>>> pipe = nlptasks.pipeline.pipeline("ner", model="runs/ner")
>>> pipe("Ada Lovelace lived in London.")
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nlptasks.config import DEVICES
from nlptasks.engine import Engine, Item
from nlptasks.errors import DataError, UsageError, did_you_mean, listing
from nlptasks.exporting import export_problem, has_export, open_export
from nlptasks.heads.base import Head
from nlptasks.model import ModelFolder
from nlptasks.registry import tasks
from nlptasks.runtime.pytorch import TorchRuntime, pack_linears, torch_device
from nlptasks.types import ENCODE, Row, Runtime

_log = logging.getLogger("nlptasks")

_BATCH_TOKENS = {"cpu": 512, "cuda": 32768}

Text = str | Mapping[str, Any]
"""A text, or a row with the fields that a head reads."""


class Pipeline:
    """Heads of a model, ready to run.

    Args:
        engine: what runs them.
        single: whether a result is one head's result, or a dict of results by head.
        required: heads that must be able to read every row; others are left out of rows they cannot read.
    """

    def __init__(self, engine: Engine, *, single: bool, required: Sequence[str]) -> None:
        self.engine = engine
        self._single = single
        self._required = frozenset(required)

    @property
    def heads(self) -> Mapping[str, Head]:
        """The heads, by name."""
        return self.engine.heads

    @property
    def backend(self) -> str:
        """What it runs on, for people: ``ONNX Runtime fp32 on the CPU``."""
        return self.engine.runtime.name

    def __call__(self, texts: Text | Iterable[Text]) -> Any:
        """The result for one text, or the results for several, in their order.

        Raises:
            TypeError: a text is no string and no row.
            DataError: a row cannot be read by the heads asked for.
        """
        if isinstance(texts, str | Mapping):
            return next(self.stream([texts]))
        return list(self.stream(texts))

    def stream(self, texts: Iterable[Text]) -> Iterator[Any]:
        """The results for any number of texts, lazily, in order, in flat memory."""
        for results in self.engine.stream(map(self.item, _rows(texts))):
            yield next(iter(results.values())) if self._single else results

    def item(self, row: Row) -> Item:
        """The examples of a row, for each head that can read it.

        Raises:
            DataError: a required head cannot read it, or no head can.
        """
        item: dict[str, Any] = {}
        error: DataError | None = None
        for name, head in self.heads.items():
            try:
                item[name] = head.read(row)
            except DataError as problem:
                if name in self._required:
                    raise
                error = problem
        if error and not item:
            raise error
        return item


def pipeline(
    heads: str | Sequence[str] | None = None,
    *,
    model: str | Path | None = None,
    backend: str = "auto",
    device: str = "auto",
) -> Pipeline:
    """Open a model for prediction.

    Args:
        heads: a head's name, or a task of which the model has one head: results come as they are; a list of such, or None for
            all heads: results come as a dict by head.
        model: the model's folder.
        backend: ``auto`` (ONNX Runtime if there is a fresh export, else PyTorch), ``torch``, ``onnx`` or ``onnx:fp32``.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UsageError: no model, unknown head, backend or device.
        ModelError: the folder is no model, or has no such export.
        BackendError: the device cannot be had.
    """
    if model is None:
        name = heads if isinstance(heads, str) else next(iter(tasks()))
        example = f'pipeline({name!r}, model="runs/{name}")'
        raise UsageError("pipeline", "no model was given", f"name the folder of a trained one: {example}")
    if device not in DEVICES:
        raise UsageError(f"device {device!r}", "is unknown", f"take one of {listing(DEVICES)}")
    stored = ModelFolder.open(model)
    single = isinstance(heads, str)
    names = stored.head_names([heads] if isinstance(heads, str) else None if heads is None else list(heads))
    open_backend = _backend(stored, backend)
    opened, runtime = open_backend(stored, names, device)
    engine = Engine(opened, stored.tokenizer(), runtime, stored.backbone_info(), _BATCH_TOKENS[runtime.device])
    _log.info("%s runs on %s", listing(names), runtime.name)
    return Pipeline(engine, single=single, required=names if heads is not None else [])


OpenBackend = Callable[[ModelFolder, list[str], str], tuple[dict[str, Head], Runtime]]


def _backend(stored: ModelFolder, wanted: str) -> OpenBackend:
    """How to open the backend that is wanted."""
    kind, _, precision = wanted.partition(":")
    if wanted == "torch":
        return _open_torch
    if kind == "onnx":
        return _open_onnx(precision or "fp32")
    if wanted != "auto":
        raise UsageError(
            f"backend {wanted!r}", "is unknown", did_you_mean(wanted, ("auto", "torch", "onnx", "onnx:fp32"))
        )
    problem = export_problem(stored, "fp32")
    if problem and has_export(stored, "fp32"):
        _log.warning("%s %s; PyTorch is used", stored.path, problem)
    return _open_torch if problem else _open_onnx("fp32")


def _open_torch(stored: ModelFolder, names: list[str], device: str) -> tuple[dict[str, Head], Runtime]:
    where = torch_device(device)
    model = stored.model().only(names)
    if where.type == "cpu":
        pack_linears(model)
    runtime = TorchRuntime({ENCODE: model}, where)
    return {name: model.heads[name] for name in names}, runtime


def _open_onnx(precision: str) -> OpenBackend:
    def opened(stored: ModelFolder, names: list[str], device: str) -> tuple[dict[str, Head], Runtime]:
        runtime = open_export(stored, precision=precision, device=device)
        return stored.heads(names, device="meta"), runtime

    return opened


def _rows(texts: Iterable[Text]) -> Iterator[Row]:
    for number, text in enumerate(texts, start=1):
        if isinstance(text, str):
            yield Row({"text": str(text)}, f"text {number}")
        elif isinstance(text, Mapping):
            yield Row(text, f"row {number}")
        else:
            raise TypeError(f"text {number} is {type(text).__name__}, expected str or a mapping of fields")
