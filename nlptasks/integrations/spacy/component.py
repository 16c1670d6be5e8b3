"""The spaCy component ``nlptasks``: heads of a model in a spaCy pipeline.

All heads read a document in one pass, and each writes its results where spaCy keeps such annotations. Documents are batched. The
model is saved with the pipeline and sent to other processes with it.
"""

from __future__ import annotations

import logging
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import srsly
from spacy.pipeline import Pipe
from spacy.scorer import Scorer
from spacy.tokens import Doc, Span
from spacy.training import Example
from spacy.util import minibatch

from nlptasks.errors import ModelError, UsageError, first_line, listing, quote
from nlptasks.heads.base import AnyHead, examples_of
from nlptasks.inference.engine import CHUNK_ITEMS
from nlptasks.integrations.spacy.extensions import add_extension, add_extensions, heads_with_results, write_results
from nlptasks.integrations.spacy.settings import ENTS, STORES, Settings
from nlptasks.models.bundling import (
    Reference,
    checked,
    copy_model,
    model_files,
    model_in,
    read_reference,
    write_files,
    write_reference,
)
from nlptasks.pipeline import Pipeline, pipeline
from nlptasks.types import Row

_log = logging.getLogger("nlptasks")

_CATS, _ENTS, _SPANS, _OWN = "doc.cats", "doc.ents", "doc.spans", "doc._."


@dataclass(frozen=True)
class _Opened:
    """An open model, and where its heads write.

    Attributes:
        pipe: runs the model.
        model: reference to the model.
        attributes: names of the extension attributes ``doc._.NAME`` that heads write to.
        writers: for each place, the heads that write there.
    """

    pipe: Pipeline
    model: Reference
    attributes: Sequence[str]
    writers: Mapping[str, Sequence[str]]


class Component(Pipe):
    """Runs heads on documents. ``doc._.nlptasks[HEAD]`` has all results; heads also write to spaCy's own annotations.

    It keeps no reference to a document. A pickle that another process reads opens the model again.

    Args:
        name: its name in the pipeline.
        settings: its settings.
        key: id by which documents find it; by default a new one.

    Attributes:
        widened: number of entities so far that did not align with tokens and were widened to whole tokens.
    """

    def __init__(self, name: str, settings: Settings, key: str = "") -> None:
        self.name, self.settings, self.widened = name, settings, 0
        self._key = key or uuid.uuid4().hex
        self._wanted: Reference | None = None
        self._place: tempfile.TemporaryDirectory[str] | None = None
        self._opened: _Opened | None = None
        self._warned: set[str] = set()
        add_extensions()

    def open(self) -> None:
        """Open the model, if it is not open yet.

        Raises:
            UsageError: an unknown head, backend or device, or another package uses an attribute that a head writes to.
            ModelError: the folder is no model, or not the model that the component was pickled with.
            BackendError: the device is not available.
        """
        if self._opened is None:
            model = checked(self._wanted) if self._wanted else Reference.to(str(self.settings.model))
            self._opened = _opened(model, self.settings)

    def _open(self) -> _Opened:
        self.open()
        assert self._opened is not None
        return self._opened

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline that runs the model, for texts that are no documents; opens the model if needed."""
        return self._open().pipe

    @property
    def heads(self) -> Mapping[str, AnyHead]:
        """The heads by name; opens the model if needed."""
        return self.pipeline.heads

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of all heads; empty while the model is not open."""
        heads = self._opened.pipe.heads.values() if self._opened else ()
        return tuple(dict.fromkeys(label for head in heads for label in head.presenter.labels))

    def __call__(self, doc: Doc) -> Doc:
        """Annotate a document."""
        [results] = self._results([doc])
        return self._written(doc, results)

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = CHUNK_ITEMS) -> Iterator[Doc]:
        """Annotate a stream of documents, lazily, in order.

        A document that causes an error is passed to the error handler and left out.

        Args:
            stream: the documents.
            batch_size: documents that are sorted by length and read together.
        """
        self.open()  # an error here is not the fault of a document
        for docs in minibatch(stream, batch_size):  # type: ignore[no-untyped-call]
            yield from self._tried(docs)

    def _tried(self, docs: list[Doc]) -> Iterator[Doc]:
        try:
            results = self._results(docs)
        except Exception as error:
            if len(docs) == 1:
                self.get_error_handler()(self.name, self, docs, error)
            else:  # bisect to find the document that fails
                middle = len(docs) // 2
                yield from self._tried(docs[:middle])
                yield from self._tried(docs[middle:])
            return
        for doc, found in zip(docs, results, strict=True):
            try:
                written = self._written(doc, found)
            except Exception as error:
                self.get_error_handler()(self.name, self, [doc], error)
            else:
                yield written

    def _results(self, docs: Sequence[Doc]) -> list[dict[str, Any]]:
        """Return the results of each document, for the heads that read plain texts."""
        rows = (Row({"text": doc.text}, "the document") for doc in docs)
        return [dict(one.results) for one in self.pipeline.predict(rows, partial=True, first_chunk=CHUNK_ITEMS)]

    def _written(self, doc: Doc, results: Mapping[str, Any]) -> Doc:
        """Write results into a document. If they cannot be written, entities and categories stay as they were."""
        opened = self._open()
        before = heads_with_results(doc) | doc.cats.keys()
        shared = write_results(doc, results, self, key=self._key)
        for attribute in opened.attributes:
            doc._.set(attribute, None)
        ents, cats = list(doc.ents), dict(doc.cats)
        try:
            labels = self._annotate(doc, results, opened)
        except Exception:
            doc.ents, doc.cats = ents, cats
            raise
        if shared and (lost := sorted(before & {*results, *labels})):
            fix = "give heads different names (nlptasks rename), or put heads that classify into one component"
            self._warn_once(
                f"{self.name} overwrites what another component wrote for {listing(lost)}; {fix}", kind="lost"
            )
        return doc

    def _annotate(self, doc: Doc, results: Mapping[str, Any], opened: _Opened) -> Iterable[str]:
        """Let each head write, and merge this with earlier annotations. Return the categories that were written."""
        cats, ents, writes_ents = dict(doc.cats), list(doc.ents), _ENTS in opened.writers
        prefixed = len(opened.writers.get(_CATS, ())) > 1
        written: dict[str, float] = {}
        if writes_ents:
            _remove_ents(doc)
        for name, result in results.items():
            doc.cats = {}
            if writer := opened.pipe.heads[name].spacy:
                writer.write(doc, result, name)
            written |= {f"{name}.{label}" if prefixed else label: score for label, score in doc.cats.items()}
        doc.cats = {**cats, **written}
        if writes_ents:
            doc.ents = ENTS[self.settings.ents](ents, list(doc.ents))
        self._score(doc, {name: results[name] for name in opened.writers.get(_SPANS, ()) if name in results})
        return written

    def _score(self, doc: Doc, results: Mapping[str, Sequence[Any]]) -> None:
        """Set the scores of spans, and count those that were widened. If several heads found a span, the first score is kept."""
        scored, ours = set(), Span.get_extension("score") == (None, None, None, None)
        for name, result in results.items():
            for span, one in zip(doc.spans[name], result, strict=True):
                place = (span.start_char, span.end_char)
                if ours and place not in scored:
                    span._.score = one.score
                scored.add(place)
                if place != (one.start, one.end):
                    self.widened += 1
                    exact = quote(doc.text[one.start : one.end])
                    problem = f"{name} found {exact} inside the token {quote(span.text)} of spaCy"
                    where = f"doc._.nlptasks[{name!r}] has the exact offsets"
                    self._warn_once(f"{problem}: entities are widened to whole tokens; {where}", kind="widened")

    def _warn_once(self, message: str, *, kind: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            _log.warning("%s", message)

    def score(self, examples: Iterable[Example], **options: Any) -> dict[str, Any]:
        """Return spaCy's scores of entities and categories, for `nlp.evaluate` and ``spacy evaluate``."""
        writers, rows = self._open().writers, list(examples)
        scores: dict[str, Any] = {}
        if _ENTS in writers and any(row.reference.has_annotation("ENT_IOB") for row in rows):
            scores |= Scorer.score_spans(rows, "ents")
        if _CATS in writers and any(row.reference.cats for row in rows):
            labels = sorted({label for row in rows for label in row.predicted.cats})
            several = any(sum(value >= 0.5 for value in row.reference.cats.values()) != 1 for row in rows)
            scores |= Scorer.score_cats(rows, "cats", labels=labels, multi_label=several)
        return scores

    def answer(self, doc: Doc, question: str, *, head: str | None = None) -> Any:
        """Return the answer of a head to a question about a document.

        Args:
            doc: the document.
            question: the question.
            head: the head's name; None for the first that reads questions.

        Raises:
            UsageError: no head reads questions, or the named head does not, or the question is empty.
        """
        if not question or not question.strip():
            raise UsageError("the question", "is empty", "ask something")
        readers = self.question_heads(doc, question)
        wanted = head or next(iter(readers), None)
        if wanted not in readers:
            heads = listing(self.pipeline.heads)
            problem = f"is not read by {head or 'any head'} of {self.name} (heads: {heads})"
            raise UsageError(
                f"the question {quote(question)}", problem, "open a model with a head that answers questions"
            )
        [found] = self.pipeline.predict([_question_row(doc, question)], heads=[wanted])
        return found.results[wanted]

    def question_heads(self, doc: Doc, question: str) -> list[str]:
        """Return the names of the heads that read a question about a document."""
        return list(examples_of(self.heads, _question_row(doc, question))[0])

    @property
    def _store(self) -> str:
        """How the model is saved: a reference to a temporary folder would be useless."""
        return "copy" if self._place else self.settings.store

    def to_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> None:
        """Write the model, or a reference to it, as set by `Settings.store`; an existing folder is replaced.

        Raises:
            UsageError: the model is a checkpoint, which must be imported first.
            ModelError: the model has changed since it was opened, or cannot be written.
        """
        write = {"copy": copy_model, "reference": write_reference}[self._store]
        write(self._open().model, Path(path))

    def from_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> Component:
        """Open what `to_disk` wrote, or the model of the config if the component was excluded there.

        Raises:
            ModelError: the model is damaged or has changed.
        """
        if Path(path).exists():
            self._load(model_in(Path(path), or_else=str(self.settings.model)))
        return self

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """Return what `to_disk` writes as bytes.

        Raises:
            UsageError: the model is a checkpoint, which must be imported first.
            ModelError: the model has changed since it was opened.
        """
        model = self._open().model
        packed = model_files(model) if self._store == "copy" else asdict(checked(model))
        content: bytes = srsly.msgpack_dumps({self._store: packed})
        return content

    def from_bytes(self, content: bytes, *, exclude: Iterable[str] = ()) -> Component:
        """Open what `to_bytes` returned; the files of a copy are written to a temporary folder.

        Raises:
            ModelError: the bytes are damaged or not from `to_bytes`.
        """
        try:
            [(store, packed)] = srsly.msgpack_loads(content).items()
            if store not in STORES or not isinstance(packed, dict):
                raise ValueError(f"they hold {quote(store)}")
        except Exception as error:  # msgpack raises many kinds of errors for other bytes
            problem = f"are not those of a component ({first_line(error)[:200]})"
            raise ModelError("the bytes", problem, "pass what to_bytes returned") from error
        if store == "reference":
            self._load(read_reference(packed, where="the bytes", or_else=str(self.settings.model)).model)
        else:
            place = tempfile.TemporaryDirectory(prefix="nlptasks-")
            write_files(packed, Path(place.name))
            self._load(place.name)
            self._place = place
        return self

    def _load(self, model: str) -> None:
        """Open another model; if this fails, the component keeps its model."""
        wanted = Reference.to(model)
        self._opened, self._wanted, self._place = _opened(wanted, self.settings), wanted, None

    def __reduce__(self) -> Any:
        wanted = self._opened.model if self._opened else self._wanted
        return _unpickled, (self.name, self.settings, self._key, wanted, self._place and self.to_bytes())


def _unpickled(name: str, settings: Settings, key: str, wanted: Reference | None, content: bytes | None) -> Component:
    """Return a component from its pickle; a model in a folder is opened when it is needed."""
    component = Component(name, settings, key)
    if content:
        return component.from_bytes(content)
    component._wanted = wanted
    return component


def _opened(model: Reference, settings: Settings) -> _Opened:
    """Open a model.

    Raises:
        UsageError: an unknown head, backend or device, or another package uses an attribute that a head writes to.
        ModelError: the folder is no model.
        BackendError: the device is not available.
    """
    pipe = pipeline(
        settings.heads,
        model=model.model,
        backend=settings.backend,
        device=settings.device,
        batch_tokens=settings.batch_tokens,
        options=settings.options,
    )
    writers: dict[str, list[str]] = {}
    for name, head in pipe.heads.items():
        for place in head.spacy.assigns if head.spacy else ():
            writers.setdefault(place, []).append(name)
    attributes = [place.removeprefix(_OWN) for place in writers if place.startswith(_OWN)]
    for attribute in attributes:
        if not add_extension(Doc, attribute, {"default": None}):
            fix = f"remove it: Doc.remove_extension({attribute!r}), or leave out the head"
            raise UsageError(f"doc._.{attribute}", "is an extension of another package", fix)
    _warn_of_unread_documents(pipe.heads)
    return _Opened(pipe, model, attributes, writers)


def _remove_ents(doc: Doc) -> None:
    """Remove the entities of a document, and the ids that spaCy leaves on their tokens."""
    for ent in doc.ents:
        for token in ent:
            token.ent_id = 0
    doc.ents = []


def _question_row(doc: Doc, question: str) -> Row:
    return Row({"question": question, "context": doc.text}, "doc._.answer")


def _warn_of_unread_documents(heads: Mapping[str, AnyHead]) -> None:
    """Warn of heads that read neither documents nor questions about them."""
    _, asked = examples_of(heads, Row({"question": "Who?", "context": "A text."}, "a question"))
    for name, problem in examples_of(heads, Row({"text": "A text."}, "a document"))[1].items():
        if name in asked:
            _log.warning("%s cannot read documents (%s); it is left out", name, problem.problem)
