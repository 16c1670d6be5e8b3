"""Opening a model for prediction: ``nlptasks.pipeline.pipeline("ner", model=DIR)``."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nlptasks.config import AUTO, DEVICES, changed, naming
from nlptasks.errors import DataError, PluginError, UsageError, did_you_mean, first_line, listing
from nlptasks.exporting.sources import CheckpointSource, StoredSource, is_checkpoint
from nlptasks.heads.base import AnyHead, examples_of, without_gold
from nlptasks.inference.engine import CHUNK_ITEMS, Engine, Item
from nlptasks.inference.streaming import streamed
from nlptasks.models.folder import ModelFolder
from nlptasks.registry import BackendRegistration, backends, make_backend, tasks
from nlptasks.runtimes.base import Backend, Choice, ModelSource, Runtime
from nlptasks.types import OnError, Row, refuse

__all__ = ["Pipeline", "Prediction", "pipeline", "predict"]

_log = logging.getLogger("nlptasks")

Text = str | Mapping[str, Any]
"""A text, or the fields of a row for heads that read more than one."""

Options = Mapping[str, Mapping[str, Any]]
"""Values of options, by head and option."""


@dataclass(frozen=True)
class Prediction:
    """The results for one row.

    Attributes:
        row: the row.
        examples: what each head read, by the head's name; heads that cannot read the row are missing.
        results: the result of each of these heads.
    """

    row: Row
    examples: Mapping[str, Any]
    results: Mapping[str, Any]


@dataclass(frozen=True)
class _Arguments:
    """The arguments of `pipeline`, from which a copy in another process is opened."""

    heads: str | Sequence[str] | None
    model: str
    backend: str
    device: str
    options: Options
    batch_tokens: int | None


class Pipeline:
    """Heads of a model, ready to run; made by `pipeline`.

    It may be called from several threads. A copy, or a pickle that another process reads, opens the model anew.
    """

    def __init__(self, engine: Engine, arguments: _Arguments) -> None:
        self._engine, self._arguments = engine, arguments
        self._single = isinstance(arguments.heads, str)
        self._required = frozenset(engine.heads) if arguments.heads is not None else frozenset()

    def __repr__(self) -> str:
        heads = ", ".join(self.heads)
        return f"<nlptasks.Pipeline of {self._arguments.model!r}: {heads} on {self.backend}>"

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("_") or name.endswith("__")]

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (self._arguments,)

    def __deepcopy__(self, memo: object) -> Pipeline:
        return _open(self._arguments)

    @property
    def heads(self) -> Mapping[str, AnyHead]:
        """The heads, by name."""
        return self._engine.heads

    @property
    def backend(self) -> str:
        """The backend for people, such as ``ONNX Runtime fp32 on the CPU``."""
        return self._engine.runtime.name

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return self._engine.runtime.device

    def __call__(self, texts: Text | Iterable[Text]) -> Any:
        """Return the result for one text, or a list of results in the order of the texts.

        Raises:
            TypeError: a text is neither a string nor a mapping of fields.
            DataError: a row cannot be read by the heads that were named.
        """
        if isinstance(texts, str | Mapping):
            return next(self.stream([texts]))
        return [self._shaped(one) for one in self.predict(_rows(texts), first_chunk=CHUNK_ITEMS)]

    def stream(self, texts: Iterable[Text]) -> Iterator[Any]:
        """Return the results for any number of texts, lazily, in order, in flat memory."""
        return (self._shaped(one) for one in self.predict(_rows(texts)))

    def _shaped(self, prediction: Prediction) -> Any:
        results = prediction.results
        return next(iter(results.values())) if self._single else results

    def predict(
        self,
        rows: Iterable[Row],
        *,
        heads: Sequence[str] | None = None,
        gold: bool = False,
        partial: bool = False,
        on_error: OnError = refuse,
        first_chunk: int = 1,
        largest_chunk: int = CHUNK_ITEMS,
    ) -> Iterator[Prediction]:
        """Return the predictions for rows, lazily, in order, in flat memory.

        Args:
            rows: the rows.
            heads: names of the heads to run; None for all.
            gold: True to read gold answers, as evaluation needs; they are ignored otherwise.
            partial: True to accept rows that heads cannot read, even heads that were named; they have no result then.
            on_error: takes the error of a row that cannot be read; by default it is raised. Such a row has no prediction.
            first_chunk: rows read before the first prediction; later chunks are larger.
            largest_chunk: the most rows read before their predictions are returned.

        Raises:
            UsageError: there is no such head.
            DataError: a row cannot be read by a head that was named, or by no head at all and it is no bare text.
        """
        waiting: deque[tuple[Row, Item]] = deque()
        wanted = {name: self._head(name) for name in (self.heads if heads is None else heads)}

        def items() -> Iterator[Item]:
            for row in rows:
                try:
                    item = self._item(row, heads=wanted, gold=gold, partial=partial)
                except DataError as error:
                    on_error(error)
                else:
                    waiting.append((row, item))
                    yield item

        for results in self._engine.stream(items(), first_chunk=first_chunk, largest_chunk=largest_chunk):
            row, item = waiting.popleft()
            yield Prediction(row, item, results)

    def stream_text(self, text: Text, head: str | None = None) -> Iterator[str]:
        """Return the pieces of a generated text while it is generated.

        Args:
            text: the text, or the fields of a row.
            head: name of a head that generates text; None if the pipeline has only one.

        Raises:
            UsageError: there is no such head, or its options ask for several texts (raised when the first piece is read).
            DataError: the head cannot read the text.
        """
        name = self._writer(head)
        [row] = _rows([text])
        item = {name: self.heads[name].read(without_gold(row, self.heads[name].schema))}
        return streamed(lambda streamer: list(self._engine.stream([item], streamer=streamer)))

    def _writer(self, head: str | None) -> str:
        """Return the name of the head that generates text."""
        writers = [name for name, one in self.heads.items() if one.generator is not None]
        if head is None and len(writers) == 1:
            return writers[0]
        if head not in writers:
            problem = f"has {len(writers)} heads that generate text" if head is None else f"{head!r} generates no text"
            raise UsageError("stream_text", problem, f"name one of: {listing(writers)}")
        return head

    def _head(self, name: str) -> AnyHead:
        if name not in self.heads:
            raise UsageError(f"head {name!r}", "is not in this pipeline", did_you_mean(name, self.heads))
        return self.heads[name]

    def _item(self, row: Row, *, heads: Mapping[str, AnyHead], gold: bool, partial: bool) -> Item:
        """Return the example of each head that can read the row."""
        examples, problems = examples_of(heads, row, gold=gold)
        if partial:
            return examples
        for name, problem in problems.items():
            if name in self._required:
                raise problem
        if not examples and problems:
            first = next(iter(problems.values()))
            if not _is_bare_text(row):
                raise first
            _log.warning("%s; it is skipped, since no head reads bare texts", first)
        return examples


def pipeline(
    heads: str | Sequence[str] | None = None,
    *,
    model: str | Path | None = None,
    backend: str = AUTO,
    device: str = "auto",
    options: Options | None = None,
    batch_tokens: int | None = None,
) -> Pipeline:
    """Open a model for prediction.

    Args:
        heads: a head's name, or a task of which the model has one head: a result is that head's result. A list of such, or None
            for all heads: a result is a dict by head.
        model: the model's folder; or a fine-tuned Hugging Face checkpoint, as a folder or hub name, with its task as `heads`.
        backend: ``auto`` (ONNX Runtime if there is a fresh export, else PyTorch), ``torch``, ``torch:bf16``, ``onnx`` or one of
            its precisions: ``onnx:fp32``, ``onnx:fp16``, ``onnx:int8``. Without a precision, fp16 is used on CUDA if it was
            compared with PyTorch there, else fp32; int8 only if it is named.
        device: ``auto``, ``cpu`` or ``cuda``.
        options: options that may change at run time, by head (or task, as above) and option.
        batch_tokens: tokens in a batch with padding; None for the default of the device.

    Raises:
        UsageError: no model, or an unknown head, backend, device or option.
        ModelError: the folder is no model, or has no such export.
        BackendError: the device is not available.
    """
    if model is None:
        name = heads if isinstance(heads, str) else next(iter(tasks()))
        example = f'pipeline({name!r}, model="runs/{name}")'
        raise UsageError("pipeline", "no model was given", f"name the folder of a trained one: {example}")
    if device not in DEVICES:
        raise UsageError(f"device {device!r}", "is unknown", f"use one of {listing(DEVICES)}", argument="device")
    if heads is not None and not heads:
        raise UsageError("pipeline", "names no head", "name one or several, or None for all")
    if batch_tokens is not None and batch_tokens < 1:
        raise UsageError(f"batch_tokens {batch_tokens}", "expected 1 or more", "leave it out for the device's default")
    return _open(_Arguments(heads, str(model), backend, device, options or {}, batch_tokens))


def predict(
    model: str | Path, texts: Text | Iterable[Text], *, heads: str | Sequence[str] | None = None, backend: str = AUTO
) -> Any:
    """Open a model and return its results for one text, or for several in their order; see `pipeline`."""
    return pipeline(heads, model=model, backend=backend)(texts)


def _open(arguments: _Arguments) -> Pipeline:
    heads = arguments.heads
    names = [heads] if isinstance(heads, str) else None if heads is None else list(heads)
    open_model = _open_checkpoint if is_checkpoint(arguments.model) else _open_stored
    engine = replace(open_model(arguments, names), batch_tokens=arguments.batch_tokens)
    _log.info("%s runs on %s", listing(engine.heads), engine.runtime.name)
    return Pipeline(engine, arguments)


def _open_checkpoint(arguments: _Arguments, names: list[str] | None) -> Engine:
    """Return an engine on a checkpoint, which is imported into memory."""
    if names is None or len(names) != 1:
        problem = "is no model folder, and a Hugging Face checkpoint has one head"
        raise UsageError(arguments.model, problem, "check the path, or name the checkpoint's task: " + listing(tasks()))
    [task] = names
    _check_options(arguments.options, names)
    source = CheckpointSource(arguments.model, task, arguments.options.get(task) or {})
    runtime = _runtime(source, arguments)
    return Engine(source.model.heads, source.model.backbone.tokenizer(), runtime, source.model.backbone.info)


def _open_stored(arguments: _Arguments, names: list[str] | None) -> Engine:
    """Return an engine on a model folder."""
    return ModelFolder.read(arguments.model, lambda stored: _engine(stored, arguments, names))


def _engine(stored: ModelFolder, arguments: _Arguments, names: list[str] | None) -> Engine:
    found = stored.head_names(names)
    by_head: dict[str, dict[str, Any]] = {}
    for name, own in arguments.options.items():
        by_head.setdefault(stored.head_name(name), {}).update(own)
    _check_options(by_head, found)
    runtime = _runtime(StoredSource(stored, found), arguments)
    heads = stored.heads(found)
    for name, given in by_head.items():
        with naming(name):
            heads[name].config = changed(heads[name].config, given)
    return Engine(heads, stored.tokenizer(), runtime, stored.backbone_info())


def _check_options(options: Options, names: Sequence[str]) -> None:
    for name in options:
        if name not in names:
            fix = did_you_mean(name, names)
            raise UsageError(f"options {name!r}", "belong to no head that is opened", fix, argument="options")


def _named_backend(wanted: str) -> tuple[Backend, str] | None:
    """Return the backend that is named, and its precision, empty if it is not named; None for ``auto``.

    Raises:
        UsageError: there is no such backend, or it has no such precision.
        PluginError: its package is broken or not enabled.
    """
    if wanted == AUTO:
        return None
    name, _, precision = wanted.partition(":")
    backend = make_backend(name)
    if precision and precision not in backend.precisions:
        known = [f"{name}:{one}" for one in backend.precisions]
        raise UsageError(f"backend {wanted!r}", "is unknown", did_you_mean(wanted, known), argument="backend")
    return backend, precision


def _runtime(source: ModelSource, arguments: _Arguments) -> Runtime:
    """Open the backend that is named, or the best one."""
    named = _named_backend(arguments.backend)
    if named:
        backend, precision = named
        chosen = precision or backend.choose(source, arguments.device).precision or backend.precisions[0]
        return backend.open(source, chosen, arguments.device)
    for registration, backend in sorted(_usable_backends(), key=lambda pair: -pair[1].priority):
        choice = _choice(registration, backend, source, arguments.device)
        for reason in choice.reasons:
            _log.warning("%s %s", source.where, reason)
        if choice.precision is not None:
            return backend.open(source, choice.precision, arguments.device)
    raise UsageError(
        "backend 'auto'", "finds no backend for this model", f"name one of {listing(backends())}", argument="backend"
    )


def _choice(registration: BackendRegistration, backend: Backend, source: ModelSource, device: str) -> Choice:
    """Return what a backend offers; one of another package that fails offers nothing."""
    try:
        return backend.choose(source, device)
    except Exception as error:
        if registration.is_own:
            raise
        _log.warning("%s", registration.error(f"failed ({first_line(error)})", "name another backend, or uninstall it"))
        return Choice(None)


def _usable_backends() -> Iterator[tuple[BackendRegistration, Backend]]:
    for one in backends().values():
        try:
            yield one, one.make()
        except PluginError as error:  # harms nobody who does not name it
            _log.warning("%s", error)


def _is_bare_text(row: Row) -> bool:
    """Return True for a row that is a text and nothing else; heads that read pairs are skipped for it."""
    return row.fields.keys() == {"text"} and isinstance(row.fields["text"], str)


def _rows(texts: Iterable[Text]) -> Iterator[Row]:
    for number, text in enumerate(texts, start=1):
        if isinstance(text, str):
            yield Row({"text": str(text)}, f"text {number}")
        elif isinstance(text, Mapping):
            yield Row(text, f"row {number}")
        else:
            raise TypeError(f"text {number} is {type(text).__name__}, expected str or a mapping of fields")


def __dir__() -> list[str]:
    return __all__
