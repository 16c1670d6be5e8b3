"""Heads on spaCy's documents: what the component ``nlptasks`` does once it is added to a pipeline.

All heads of a model read a document in one pass, and what they find is written where spaCy has a place for it. Documents are
batched as everywhere else; the model goes along when a pipeline is written, or sent to other processes.
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
from nlptasks.heads.base import Head
from nlptasks.inference.engine import CHUNK_ITEMS, Item
from nlptasks.integrations.spacy.extensions import extend, extend_by, note, noted
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
from nlptasks.pipeline import Pipeline, examples_of, pipeline
from nlptasks.types import Row

_log = logging.getLogger("nlptasks")

_CATS, _ENTS, _SPANS, _OWN = "doc.cats", "doc.ents", "doc.spans", "doc._."


@dataclass(frozen=True)
class _Opened:
    """A model that runs, and where its heads write.

    Attributes:
        pipe: runs it.
        model: what it is.
        attributes: those of documents, ``doc._.NAME``, that heads write to.
        writers: by place, the heads that write there.
    """

    pipe: Pipeline
    model: Reference
    attributes: Sequence[str]
    writers: Mapping[str, Sequence[str]]


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
        self._wanted: Reference | None = None
        self._place: tempfile.TemporaryDirectory[str] | None = None
        self._opened: _Opened | None = None
        self._said: set[str] = set()
        extend()

    def open(self) -> None:
        """Open the model, if it is not open yet.

        Raises:
            UsageError: no such head, backend or device, or somebody else has an attribute that a head writes to.
            ModelError: the folder is no model, or another one than that which the component was sent with.
            BackendError: the device cannot be had.
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
        """What runs the model, for texts that are no documents; the model is opened if it is not open yet."""
        return self._open().pipe

    @property
    def heads(self) -> Mapping[str, Head]:
        """The heads by name; the model is opened if it is not open yet."""
        return self.pipeline.heads

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
        self.open()  # if that fails, no document is to blame
        for docs in minibatch(stream, batch_size):  # type: ignore[no-untyped-call]
            yield from self._tried(docs)

    def _tried(self, docs: list[Doc]) -> Iterator[Doc]:
        try:
            results = self._results(docs)
        except Exception as error:
            if len(docs) == 1:
                self.get_error_handler()(self.name, self, docs, error)
            else:  # by halves, to find out which it is
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
        """The results of each document by head, for the heads that read a bare text."""
        pipe = self.pipeline
        items: list[Item] = [examples_of(pipe.heads, Row({"text": doc.text}, "the document"))[0] for doc in docs]
        return list(pipe.engine.stream(items, first_chunk=CHUNK_ITEMS))

    def _written(self, doc: Doc, results: Mapping[str, Any]) -> Doc:
        """The document, with these results; as it was if they cannot be written."""
        opened = self._open()
        before = noted(doc) | doc.cats.keys()
        shared = note(doc, results, self, key=self._key)
        for attribute in opened.attributes:
            doc._.set(attribute, None)
        ents, cats = list(doc.ents), dict(doc.cats)
        try:
            labels = self._annotate(doc, results, opened)
        except Exception:
            doc.ents, doc.cats = ents, cats
            raise
        if shared and (lost := sorted(before & {*results, *labels})):
            fix = "give heads different names (nlptasks rename), or put those that classify into one component"
            self._say_once(f"{self.name} replaces what another component wrote for {listing(lost)}; {fix}", kind="lost")
        return doc

    def _annotate(self, doc: Doc, results: Mapping[str, Any], opened: _Opened) -> Iterable[str]:
        """Let each head write, and join what it wrote with what was there; the categories that were written."""
        cats, ents, writes_ents = dict(doc.cats), list(doc.ents), _ENTS in opened.writers
        prefixed = len(opened.writers.get(_CATS, ())) > 1
        written: dict[str, float] = {}
        if writes_ents:
            _without_ents(doc)
        for name, result in results.items():
            doc.cats = {}
            opened.pipe.heads[name].annotate(doc, result, name)
            written |= {f"{name}.{label}" if prefixed else label: score for label, score in doc.cats.items()}
        doc.cats = {**cats, **written}
        if writes_ents:
            doc.ents = ENTS[self.settings.ents](ents, list(doc.ents))
        self._score(doc, {name: results[name] for name in opened.writers.get(_SPANS, ()) if name in results})
        return written

    def _score(self, doc: Doc, results: Mapping[str, Sequence[Any]]) -> None:
        """Give spans their scores, where several heads found the same that of the first, and count those that were widened."""
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
                    problem = f"{name} found {exact} in {quote(span.text)}, which spaCy does not divide there"
                    told = f"doc._.nlptasks[{name!r}] has the exact place"
                    self._say_once(f"{problem}: entities are widened to whole tokens; {told}", kind="widened")

    def _say_once(self, what: str, *, kind: str = "") -> None:
        if (kind or what) not in self._said:
            self._said.add(kind or what)
            _log.warning("%s", what)

    def score(self, examples: Iterable[Example], **options: Any) -> dict[str, Any]:
        """What spaCy measures of entities and categories, for `nlp.evaluate` and ``spacy evaluate``."""
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
        """The answer to a question about a document, as the head gives it that reads questions.

        Args:
            doc: the document.
            question: the question.
            head: the head's name; None for the first that reads questions.

        Raises:
            UsageError: no head reads questions, or not this one, or the question is empty.
        """
        if not question or not question.strip():
            raise UsageError("the question", "is empty", "ask something")
        examples = self.asked(doc, question)
        wanted = head or next(iter(examples), None)
        if wanted not in examples:
            heads = listing(self.pipeline.heads)
            problem = f"is not read by {head or 'any head'} of {self.name} (heads: {heads})"
            raise UsageError(
                f"the question {quote(question)}", problem, "open a model with a head that answers questions"
            )
        [results] = self.pipeline.engine.stream([{wanted: examples[wanted]}])
        return results[wanted]

    def asked(self, doc: Doc, question: str) -> dict[str, Any]:
        """The example of a question about a document, for each head that reads questions."""
        row = Row({"question": question, "context": doc.text}, "doc._.answer")
        return examples_of(self.pipeline.heads, row)[0]

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
        write(self._open().model, Path(path))

    def from_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> Component:
        """Open what `to_disk` wrote; the config's own model if it was not told to write.

        Raises:
            ModelError: it is not as it was written.
        """
        if Path(path).exists():
            self._take(model_in(Path(path), or_else=str(self.settings.model)))
        return self

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """The same as `to_disk` writes, as bytes.

        Raises:
            UsageError: the model is a checkpoint, which must be imported first.
            ModelError: the model is not as it was written.
        """
        model = self._open().model
        packed = model_files(model) if self._store == "copy" else asdict(checked(model))
        content: bytes = srsly.msgpack_dumps({self._store: packed})
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
            self._take(read_reference(packed, where="the bytes", or_else=str(self.settings.model)).model)
        else:
            place = tempfile.TemporaryDirectory(prefix="nlptasks-")
            write_files(packed, Path(place.name))
            self._take(place.name)
            self._place = place
        return self

    def _take(self, model: str) -> None:
        """Run another model; if that cannot be, go on as before."""
        wanted = Reference.to(model)
        self._opened, self._wanted, self._place = _opened(wanted, self.settings), wanted, None

    def __reduce__(self) -> Any:
        wanted = self._opened.model if self._opened else self._wanted
        return _received, (self.name, self.settings, self._key, wanted, self._place and self.to_bytes())


def _received(name: str, settings: Settings, key: str, wanted: Reference | None, content: bytes | None) -> Component:
    """A component in another process; a model that is in a folder is opened when it is needed."""
    component = Component(name, settings, key)
    if content:
        return component.from_bytes(content)
    component._wanted = wanted
    return component


def _opened(model: Reference, settings: Settings) -> _Opened:
    """A model that runs.

    Raises:
        UsageError: no such head, backend or device, or somebody else has an attribute that a head writes to.
        ModelError: the folder is no model.
        BackendError: the device cannot be had.
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
        for place in head.assigns:
            writers.setdefault(place, []).append(name)
    attributes = [place.removeprefix(_OWN) for place in writers if place.startswith(_OWN)]
    for attribute in attributes:
        if not extend_by(Doc, attribute, default=None):
            fix = f"remove it: Doc.remove_extension({attribute!r}), or leave out the head"
            raise UsageError(f"doc._.{attribute}", "is an extension of somebody else", fix)
    _tell_who_cannot_read(pipe.heads)
    return _Opened(pipe, model, attributes, writers)


def _without_ents(doc: Doc) -> None:
    """Take the entities out of a document, and the ids that spaCy leaves on their tokens."""
    for ent in doc.ents:
        for token in ent:
            token.ent_id = 0
    doc.ents = []


def _tell_who_cannot_read(heads: Mapping[str, Head]) -> None:
    """Say which heads read neither documents nor questions about them."""
    problems = examples_of(heads, Row({"text": "A text."}, "a document"))[1]
    asked = examples_of(heads, Row({"question": "Who?", "context": "A text."}, "a question"))[0]
    for name, problem in problems.items():
        if name not in asked:
            _log.warning("%s cannot read documents (%s); it is left out", name, problem.problem)
