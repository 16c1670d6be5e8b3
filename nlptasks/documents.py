"""Heads on spaCy's documents: what the component ``nlptasks`` does once it is added to a pipeline.

All heads of a model read a document in one pass, and what they find is written where spaCy has a place for it. Documents are
batched as everywhere else; the model goes along when a pipeline is written, or sent to other processes.
"""

from __future__ import annotations

import logging
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import srsly
from spacy.pipeline import Pipe
from spacy.tokens import Doc, Span
from spacy.util import filter_spans, minibatch

from nlptasks.attributes import extend, extend_by, known_as, note
from nlptasks.engine import CHUNK_ITEMS, Item
from nlptasks.errors import ModelError, UsageError, did_you_mean, first_line, listing, quote
from nlptasks.heads.base import Head
from nlptasks.packing import copy_model, model_files, model_in, reference, referred, write_files, write_reference
from nlptasks.pipeline import Pipeline, examples_of, pipeline
from nlptasks.types import Row

_log = logging.getLogger("nlptasks")

_CATS, _ENTS, _SPANS, _OWN = "doc.cats", "doc.ents", "doc.spans", "doc._."


def _keep(before: Sequence[Span], found: Sequence[Span]) -> list[Span]:
    """Those that were there, and of ours those that overlap none of them."""
    taken = {token for span in before for token in range(span.start, span.end)}
    return [*before, *(span for span in found if taken.isdisjoint(range(span.start, span.end)))]


ENTS: Mapping[str, Callable[[Sequence[Span], Sequence[Span]], list[Span]]] = {
    "keep": _keep,
    "replace": lambda before, found: list(found),
    "merge": lambda before, found: filter_spans([*before, *found]),
}
"""What ``doc.ents`` becomes, of the entities that were there and those that the heads found."""

STORES = ("copy", "reference")
"""What a pipeline keeps of the model when it is written."""


@dataclass(frozen=True)
class Settings:
    """How a component runs: its part of a pipeline's config.

    Attributes:
        model: the model's folder, or a checkpoint of Hugging Face.
        heads: names of heads, or tasks of which the model has one; None for all.
        backend: as in `nlptasks.pipeline.pipeline`.
        device: ``auto``, ``cpu`` or ``cuda``.
        ents: what becomes of entities that were there before: ``keep`` them, and of ours those that overlap none; ``replace``
            them; ``merge`` both, the longest first.
        batch_tokens: tokens in a batch, padding included; None for what suits the device.
        store: whether a pipeline that is written keeps a ``copy`` of the model, or a ``reference`` to its folder.

    Raises:
        UsageError: there is no model, or a value is none of these.
    """

    model: str | None
    heads: tuple[str, ...] | None = None
    backend: str = "auto"
    device: str = "auto"
    ents: str = "keep"
    batch_tokens: int | None = None
    store: str = "copy"

    def __post_init__(self) -> None:
        if not self.model:
            example = 'nlp.add_pipe("nlptasks", config={"model": "runs/ner"})'
            raise UsageError("the component nlptasks", "no model was given", f"name the folder of one: {example}")
        for option, value, known in (("ents", self.ents, ENTS), ("store", self.store, STORES)):
            if value not in known:
                raise UsageError(f"{option} {quote(value)}", "is unknown", did_you_mean(value, known))


@dataclass(frozen=True)
class _Opened:
    """A model that runs, and where its heads write.

    Attributes:
        pipe: runs it.
        attributes: those of documents, ``doc._.NAME``, that heads write to.
    """

    pipe: Pipeline
    attributes: Sequence[str]

    def writers(self, place: str) -> list[str]:
        """The heads that write to a place."""
        return [name for name, head in self.pipe.heads.items() if place in head.assigns]


class Component(Pipe):
    """Runs heads on documents; ``doc._.nlptasks[HEAD]`` has their results, and each head writes what spaCy has a place for.

    It holds on to no document. It may be sent to other processes, which open the model anew.

    Args:
        name: its name in the pipeline.
        settings: how it runs.
        key: what documents know it by; a new one unless it was sent here from another process.

    Attributes:
        widened: how many entities did not begin and end with tokens, and were widened to whole ones, so far.
    """

    def __init__(self, name: str, settings: Settings, key: str = "") -> None:
        self.name, self.settings, self.widened = name, settings, 0
        self._key = key or uuid.uuid4().hex
        self._model = str(settings.model)
        self._place: tempfile.TemporaryDirectory[str] | None = None
        self._opened: _Opened | None = None
        known_as(self._key, self)
        extend()

    def open(self) -> None:
        """Open the model, if it is not open yet.

        Raises:
            UsageError: no such head, backend or device.
            ModelError: the folder is no model.
            BackendError: the device cannot be had.
        """
        if self._opened is None:
            settings = self.settings
            pipe = pipeline(
                settings.heads,
                model=self._model,
                backend=settings.backend,
                device=settings.device,
                batch_tokens=settings.batch_tokens,
            )
            named = {
                place.removeprefix(_OWN) for head in pipe.heads.values() for place in head.assigns if _OWN in place
            }
            self._opened = _Opened(pipe, [name for name in sorted(named) if extend_by(Doc, name, default=None)])
            _tell_who_cannot_read(pipe.heads)

    def _open(self) -> _Opened:
        self.open()
        assert self._opened is not None
        return self._opened

    @property
    def heads(self) -> Mapping[str, Head]:
        """The heads by name; the model is opened if it is not open yet."""
        return self._open().pipe.heads

    @property
    def labels(self) -> tuple[str, ...]:
        """What the heads can answer, as far as the model is open and that is a closed list."""
        heads = self._opened.pipe.heads.values() if self._opened else ()
        return tuple(dict.fromkeys(label for head in heads for label in head.labels))

    def __call__(self, doc: Doc) -> Doc:
        """The document, with what the heads found."""
        [results] = self._results([doc])
        return self._written(doc, results)

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = CHUNK_ITEMS) -> Iterator[Doc]:
        """Documents with what the heads found, lazily, in order; of so many at a time those of like length are read together.

        A document with which something goes wrong goes to the error handler, alone, and not on.
        """
        for docs in minibatch(stream, batch_size):  # type: ignore[no-untyped-call]
            yield from self._tried(docs)

    def _tried(self, docs: list[Doc]) -> Iterator[Doc]:
        try:
            results = self._results(docs)
        except Exception as error:
            if len(docs) == 1:
                self.get_error_handler()(self.name, self, docs, error)
            else:  # one after another, to find out which it is
                for doc in docs:
                    yield from self._tried([doc])
            return
        for doc, found in zip(docs, results, strict=True):
            try:
                written = self._written(doc, found)
            except Exception as error:
                self.get_error_handler()(self.name, self, [doc], error)
            else:
                yield written

    def _results(self, docs: Sequence[Doc]) -> list[dict[str, Any]]:
        """The results of each document by head, for the heads that read a bare text."""
        pipe = self._open().pipe
        items: list[Item] = [examples_of(pipe.heads, Row({"text": doc.text}, "the document"))[0] for doc in docs]
        return list(pipe.engine.stream(items, first_chunk=CHUNK_ITEMS))

    def _written(self, doc: Doc, results: Mapping[str, Any]) -> Doc:
        """The document, with these results."""
        opened = self._open()
        note(doc, results, key=self._key)
        for attribute in opened.attributes:
            doc._.set(attribute, None)
        cats, ents, writes_ents = dict(doc.cats), list(doc.ents), bool(opened.writers(_ENTS))
        prefixed = len(opened.writers(_CATS)) > 1
        if writes_ents:
            doc.ents = []
        for name, result in results.items():
            doc.cats = {}
            opened.pipe.heads[name].annotate(doc, result, name)
            cats |= {f"{name}.{label}" if prefixed else label: score for label, score in doc.cats.items()}
        doc.cats = cats
        if writes_ents:
            doc.ents = ENTS[self.settings.ents](ents, list(doc.ents))
        for name in opened.writers(_SPANS):
            self._count_widened(doc, name, results.get(name, []))
        return doc

    def _count_widened(self, doc: Doc, name: str, result: Sequence[Any]) -> None:
        exact = {(one.start, one.end) for one in result}
        widened = [span for span in doc.spans.get(name, []) if (span.start_char, span.end_char) not in exact]
        if widened and not self.widened:
            problem = f"{name} found a part of {quote(widened[0].text)}, which is one token or several"
            kept = f"doc._.nlptasks[{name!r}] has the exact place; component.widened counts such entities"
            _log.warning("%s; in doc.spans and doc.ents it is widened to whole tokens, %s", problem, kept)
        self.widened += len(widened)

    def answer(self, doc: Doc, question: str, *, head: str | None = None) -> Any:
        """The answer to a question about a document, as the head gives it that reads questions.

        Args:
            doc: the document.
            question: the question.
            head: the head's name; None for the first that reads questions.

        Raises:
            UsageError: no head reads questions, or not this one.
        """
        examples = self.asked(doc, question)
        wanted = head or next(iter(examples), None)
        if wanted not in examples:
            heads = listing(self._open().pipe.heads)
            problem = f"is not read by {head or 'any head'} of {self.name} (heads: {heads})"
            raise UsageError(
                f"the question {quote(question)}", problem, "open a model with a head that answers questions"
            )
        [results] = self._open().pipe.engine.stream([{wanted: examples[wanted]}])
        return results[wanted]

    def asked(self, doc: Doc, question: str) -> dict[str, Any]:
        """The example of a question about a document, for each head that reads questions."""
        row = Row({"question": question, "context": doc.text}, "doc._.answer")
        return examples_of(self._open().pipe.heads, row)[0]

    @property
    def _store(self) -> str:
        """What is kept of the model: nobody is referred to a temporary folder."""
        return "copy" if self._place else self.settings.store

    def to_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> None:
        """Write the model, or a reference to it, as `Settings.store` says; what was there is replaced.

        Raises:
            UsageError: the model is a checkpoint, which must be imported first.
            ModelError: the model is not as it was written, or this cannot be written.
        """
        write = {"copy": copy_model, "reference": write_reference}[self._store]
        write(self._model, Path(path))

    def from_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> Component:
        """Open what `to_disk` wrote; the config's own model if it was not told to write.

        Raises:
            ModelError: it is not as it was written.
        """
        if Path(path).exists():
            self._take(model_in(Path(path)))
        return self

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """The same as `to_disk` writes, as bytes.

        Raises:
            UsageError: the model is a checkpoint, which must be imported first.
            ModelError: the model is not as it was written.
        """
        pack = {"copy": model_files, "reference": reference}[self._store]
        content: bytes = srsly.msgpack_dumps({self._store: pack(self._model)})
        return content

    def from_bytes(self, content: bytes, *, exclude: Iterable[str] = ()) -> Component:
        """Open what `to_bytes` gave; the files of a copy go into a temporary folder.

        Raises:
            ModelError: it is not what was given.
        """
        try:
            [(store, packed)] = srsly.msgpack_loads(content).items()
            if store not in STORES or not isinstance(packed, dict):
                raise ValueError(f"they hold {quote(store)}")
        except Exception as error:  # msgpack raises many kinds on bytes that are none of its own
            problem = f"are not those of a component ({first_line(error)[:200]})"
            raise ModelError("the bytes", problem, "take those that to_bytes gave") from error
        if store == "reference":
            self._take(referred(packed, where="the bytes"))
        else:
            place = tempfile.TemporaryDirectory(prefix="nlptasks-")
            write_files(packed, Path(place.name))
            self._take(place.name)
            self._place = place
        return self

    def _take(self, model: str) -> None:
        """Run another model."""
        self._model, self._opened, self._place = model, None, None
        self.open()

    def __reduce__(self) -> Any:
        return _received, (self.name, self.settings, self._key, self._model, self._place and self.to_bytes())


def _received(name: str, settings: Settings, key: str, model: str, content: bytes | None) -> Component:
    """A component in another process; a model that is in a folder is opened when it is needed."""
    component = Component(name, settings, key)
    if content:
        return component.from_bytes(content)
    component._model = model
    return component


def _tell_who_cannot_read(heads: Mapping[str, Head]) -> None:
    """Say which heads read neither documents nor questions about them."""
    problems = examples_of(heads, Row({"text": "A text."}, "a document"))[1]
    asked = examples_of(heads, Row({"question": "Who?", "context": "A text."}, "a question"))[0]
    for name, problem in problems.items():
        if name not in asked:
            _log.warning("%s cannot read documents (%s); it is left out", name, problem.problem)
