"""A model ready to run: texts in, results out.

>>> import nlptasks.pipeline
>>> pipe = nlptasks.pipeline.pipeline("ner", model="runs/ner")
>>> pipe("Ada Lovelace lived in London.")
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nlptasks.backbones import hub
from nlptasks.backbones.backbone import CONFIG
from nlptasks.config import DEVICES, RUNS, changed
from nlptasks.errors import DataError, UsageError, did_you_mean, listing
from nlptasks.exporting.opening import doubt, export_problem, open_export, untaken
from nlptasks.exporting.precisions import PRECISIONS
from nlptasks.heads.base import Head
from nlptasks.inference.engine import CHUNK_ITEMS, Engine, Item
from nlptasks.models.huggingface import read_checkpoint
from nlptasks.models.manifest import MANIFEST
from nlptasks.models.model import ModelFolder
from nlptasks.registry import tasks
from nlptasks.runtimes import pytorch
from nlptasks.runtimes.base import Runtime
from nlptasks.runtimes.providers import wanted_providers
from nlptasks.runtimes.pytorch import open_torch
from nlptasks.storage.atomic import restored
from nlptasks.types import Row

_log = logging.getLogger("nlptasks")

Text = str | Mapping[str, Any]
"""A text, or a row with the fields that a head reads."""

Options = Mapping[str, Mapping[str, Any]]
"""Values of options, by head's name and option."""


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
        return list(self._stream(texts, first_chunk=CHUNK_ITEMS))

    def stream(self, texts: Iterable[Text]) -> Iterator[Any]:
        """The results for any number of texts, lazily, in order, in flat memory."""
        return self._stream(texts, first_chunk=1)

    def _stream(self, texts: Iterable[Text], *, first_chunk: int) -> Iterator[Any]:
        for results in self.engine.stream(map(self.item, _rows(texts)), first_chunk=first_chunk):
            yield next(iter(results.values())) if self._single else results

    def item(self, row: Row) -> Item:
        """The examples of a row, for each head that can read it.

        Raises:
            DataError: a head that was asked for by name cannot read it, or none can and it is no bare text.
        """
        item, problems = examples_of(self.heads, row)
        for name, problem in problems.items():
            if name in self._required:
                raise problem
        if not item and problems:
            first = next(iter(problems.values()))
            if not _is_bare_text(row):
                raise first
            _log.warning("%s; it is left out, since no head reads bare texts", first)
        return item


def pipeline(
    heads: str | Sequence[str] | None = None,
    *,
    model: str | Path | None = None,
    backend: str = "auto",
    device: str = "auto",
    options: Options | None = None,
    batch_tokens: int | None = None,
) -> Pipeline:
    """Open a model for prediction.

    Args:
        heads: a head's name, or a task of which the model has one head: results come as they are; a list of such, or None for
            all heads: results come as a dict by head.
        model: the model's folder; or a fine-tuned Hugging Face checkpoint, as a folder or hub name, with `heads` the task that
            it was fine-tuned for.
        backend: ``auto`` (ONNX Runtime if there is a fresh export, else PyTorch), ``torch``, ``torch:bf16``, ``onnx`` or
            one of its precisions: ``onnx:fp32``, ``onnx:fp16``, ``onnx:int8``. Without a precision fp16 is taken on CUDA, if it
            was compared with PyTorch there, else fp32; int8 only if it is named.
        device: ``auto``, ``cpu`` or ``cuda``.
        options: options of the heads that may be changed at run, by head's name (or its task, as above) and option.
        batch_tokens: tokens in a batch, padding included; None for what suits the device.

    Raises:
        UsageError: no model, unknown head, backend, device or option.
        ModelError: the folder is no model, or has no such export.
        BackendError: the device cannot be had.
    """
    if model is None:
        name = heads if isinstance(heads, str) else next(iter(tasks()))
        example = f'pipeline({name!r}, model="runs/{name}")'
        raise UsageError("pipeline", "no model was given", f"name the folder of a trained one: {example}")
    if device not in DEVICES:
        raise UsageError(f"device {device!r}", "is unknown", f"take one of {listing(DEVICES)}")
    names = [heads] if isinstance(heads, str) else None if heads is None else list(heads)
    if names == []:
        raise UsageError("pipeline", "names no head", "name one or several, or None for all")
    if batch_tokens is not None and batch_tokens < 1:
        raise UsageError(f"batch_tokens {batch_tokens}", "expected 1 or more", "leave it out for what suits the device")
    open_model = _open_checkpoint if _is_checkpoint(str(model)) else _open_stored
    engine = replace(open_model(str(model), names, backend, device, options or {}), batch_tokens=batch_tokens)
    _log.info("%s runs on %s", listing(engine.heads), engine.runtime.name)
    return Pipeline(engine, single=isinstance(heads, str), required=list(engine.heads) if heads is not None else [])


def _is_checkpoint(model: str) -> bool:
    """Whether this is somebody's checkpoint: a folder without our list, or a name of the hub.

    What is missing in a folder that is here, or where models are written unless told otherwise, is a slip, and no name.
    """
    folder = Path(model)
    if folder.exists() or restored(folder):
        return not (folder / MANIFEST).exists() and (folder / CONFIG).exists()
    return hub.is_name(model) and not (len(folder.parts) > 1 and (folder.parent.exists() or folder.parts[0] == RUNS))


def _open_checkpoint(model: str, names: list[str] | None, backend: str, device: str, options: Options) -> Engine:
    """An engine on a checkpoint, which is imported into memory."""
    if names is None or len(names) != 1:
        problem = f"is no model here, and a Hugging Face checkpoint has one head, not {listing(names or ['all'])}"
        raise UsageError(model, problem, "check the path, or name the checkpoint's task: " + listing(tasks()))
    if backend.partition(":")[0] == "onnx":
        fix = f"write it as a model first: nlptasks import {model} --task {names[0]} -o DIR"
        raise UsageError(f"backend {backend!r}", "needs an exported model, not a Hugging Face checkpoint", fix)
    _check_options(options, names)
    found = read_checkpoint(model, task=names[0], name=names[0], options=options.get(names[0]))
    tokenizer, info = found.backbone.tokenizer(), found.backbone.info
    if backend not in ("auto", *_TORCH):
        raise _unknown(backend)
    runtime = open_torch(found.graphs(), device, _TORCH.get(backend, "fp32"))
    return Engine(found.heads, tokenizer, runtime, info)


def _open_stored(model: str, names: list[str] | None, backend: str, device: str, options: Options) -> Engine:
    """An engine on a model folder."""
    stored = ModelFolder.open(model)
    found = stored.head_names(names)
    by_head: dict[str, dict[str, Any]] = {}
    for name, own in options.items():
        by_head.setdefault(stored.head_name(name), {}).update(own)
    _check_options(by_head, found)
    heads, runtime = _backend(stored, backend, found, device)(stored, found, device)
    for name, given in by_head.items():
        heads[name].config = changed(heads[name].config, given, where=name)
    return Engine(heads, stored.tokenizer(), runtime, stored.backbone_info())


def _check_options(options: Options, names: Sequence[str]) -> None:
    for name in options:
        if name not in names:
            raise UsageError(f"options {name!r}", "are of no head that is opened", did_you_mean(name, names))


OpenBackend = Callable[[ModelFolder, list[str], str], tuple[dict[str, Head], Runtime]]


def _open_torch(precision: str) -> OpenBackend:
    def opened(stored: ModelFolder, names: list[str], device: str) -> tuple[dict[str, Head], Runtime]:
        model = stored.model(names)
        return model.heads, open_torch(model.graphs(), device, precision)

    return opened


def _open_onnx(precision: str) -> OpenBackend:
    def opened(stored: ModelFolder, names: list[str], device: str) -> tuple[dict[str, Head], Runtime]:
        heads = stored.heads(names, device="meta")
        return heads, open_export(stored, heads, precision=precision, device=device)

    return opened


_TORCH = {"torch": "fp32"} | {f"torch:{precision}": precision for precision in pytorch.PRECISIONS}
_ONNX = {f"onnx:{precision}": precision for precision in PRECISIONS}
BACKENDS: Mapping[str, OpenBackend] = {name: _open_torch(precision) for name, precision in _TORCH.items()} | {
    name: _open_onnx(precision) for name, precision in _ONNX.items()
}
"""Those that are named with what they run in; ``auto`` and ``onnx`` choose among them."""


def _backend(stored: ModelFolder, wanted: str, heads: list[str], device: str) -> OpenBackend:
    """How to open the backend that is wanted."""
    if wanted in BACKENDS:
        if wanted in _ONNX and (reason := doubt(stored, _ONNX[wanted], heads)):
            _log.warning("%s: the export in %s %s", stored.path, _ONNX[wanted], reason)
        return BACKENDS[wanted]
    if wanted not in ("auto", "onnx"):
        raise _unknown(wanted)
    for precision in suitable_precisions(device):
        if precision in stored.exports and not (
            export_problem(stored, precision, heads) or untaken(stored, precision, heads)
        ):
            return _open_onnx(precision)
    if wanted == "auto":
        for precision in [name for name in PRECISIONS if name in stored.exports]:
            reason = untaken(stored, precision, heads) or "is made for another device"
            problem = export_problem(stored, precision, heads) or f"has an ONNX export in {precision}, which {reason}"
            _log.warning("%s %s; PyTorch is used", stored.path, problem)
        return _open_torch("fp32")
    return _open_onnx("fp32")


def suitable_precisions(device: str) -> list[str]:
    """The precisions for the device that ONNX Runtime will take, those that are made for it first."""
    place = "cpu" if len(wanted_providers(device)) == 1 else "cuda"
    found = [one for one in PRECISIONS.values() if one.device in (None, place)]
    return [one.name for one in sorted(found, key=lambda one: one.device is None)]


def _unknown(backend: str) -> UsageError:
    return UsageError(f"backend {backend!r}", "is unknown", did_you_mean(backend, ("auto", "onnx", *BACKENDS)))


def examples_of(heads: Mapping[str, Head], row: Row) -> tuple[dict[str, Any], dict[str, DataError]]:
    """The example of a row without its gold answer, for each head that can read it; and why the others cannot."""
    examples, problems = {}, {}
    for name, head in heads.items():
        try:
            examples[name] = head.read(_without_gold(row, head))
        except DataError as problem:
            problems[name] = problem
    return examples, problems


def _without_gold(row: Row, head: Head) -> Row:
    """The row without its gold answer, which may be wrong where nobody asks for it."""
    return replace(row, fields={name: value for name, value in row.fields.items() if name not in head.gold_fields})


def _is_bare_text(row: Row) -> bool:
    """Whether a row is a text and nothing else: heads that read pairs are left out of it."""
    return row.fields.keys() == {"text"} and isinstance(row.fields["text"], str)


def _rows(texts: Iterable[Text]) -> Iterator[Row]:
    for number, text in enumerate(texts, start=1):
        if isinstance(text, str):
            yield Row({"text": str(text)}, f"text {number}")
        elif isinstance(text, Mapping):
            yield Row(text, f"row {number}")
        else:
            raise TypeError(f"text {number} is {type(text).__name__}, expected str or a mapping of fields")
