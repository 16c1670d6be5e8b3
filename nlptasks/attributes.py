"""The attributes that documents and spans of spaCy have here: ``doc._.nlptasks``, ``doc._.answer``, ``span._.score`` and others.

What a component finds is kept in ``doc.user_data`` as plain data, so that it goes along when spaCy sends documents between
processes or writes them to disk; these attributes read it.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from typing import Any, Protocol

from spacy.tokens import Doc, Span

from nlptasks.errors import UsageError
from nlptasks.plain import as_plain, from_plain

_log = logging.getLogger("nlptasks")

_RESULTS, _READERS = "nlptasks", "nlptasks.components"
"""In ``doc.user_data``: results by head, as plain data; and the keys of the components that read the document."""


class Reader(Protocol):
    """A component, as far as documents know it."""

    def asked(self, doc: Doc, question: str) -> Mapping[str, Any]:
        """The example of a question about a document, for each head that reads questions."""

    def answer(self, doc: Doc, question: str, *, head: str | None = None) -> Any:
        """The answer to a question about a document."""


_COMPONENTS: weakref.WeakValueDictionary[str, Reader] = weakref.WeakValueDictionary()
"""Those of this process, by their keys."""


def known_as(key: str, component: Reader) -> None:
    """Let documents find a component by a key, unless another one has it, of which this is a copy."""
    _COMPONENTS.setdefault(key, component)


def note(doc: Doc, results: Mapping[str, Any], *, key: str) -> None:
    """Put results by head into a document, and the key of the component that found them.

    Raises:
        UsageError: a result is no plain data, and cannot be made plain.
    """
    doc.user_data.setdefault(_RESULTS, {}).update({name: as_plain(result) for name, result in results.items()})
    doc.user_data[_READERS] = list(dict.fromkeys([*doc.user_data.get(_READERS, []), key]))


def extend() -> None:
    """Give documents and spans the attributes that every component has."""
    extend_by(Doc, "nlptasks", getter=_results_of)
    extend_by(Doc, "answer", method=_answer)
    extend_by(Span, "nlptasks", getter=_exact)
    extend_by(Span, "score", getter=_score)


def extend_by(owner: type[Doc] | type[Span], name: str, **how: Any) -> bool:
    """Give documents or spans an attribute; whether it can be ours: what somebody else has put there stays theirs."""
    if not owner.has_extension(name):
        owner.set_extension(name, **how)
        return True
    own = tuple(how.get(part) for part in ("default", "method", "getter", "setter"))
    if owner.get_extension(name) == own:
        return True
    _log.warning("%s._.%s is an extension of somebody else, and stays theirs", owner.__name__.lower(), name)
    return False


def _results_of(doc: Doc) -> dict[str, Any]:
    """``doc._.nlptasks``: the results by head."""
    return {name: from_plain(result) for name, result in doc.user_data.get(_RESULTS, {}).items()}


def _exact(span: Span) -> Any:
    """``span._.nlptasks``: what a head found there, with its exact place; None for other spans."""
    for result in span.doc._.nlptasks.values():
        for one in [one for one in result if hasattr(one, "start")] if isinstance(result, list) else []:
            own = span.doc.char_span(one.start, one.end, alignment_mode="expand")
            if one.label == span.label_ and own is not None and (own.start, own.end) == (span.start, span.end):
                return one
    return None


def _score(span: Span) -> float | None:
    """``span._.score``: the probability of what a head found there; None for other spans."""
    return getattr(_exact(span), "score", None)


def _answer(doc: Doc, question: str, head: str | None = None) -> Any:
    """``doc._.answer(question)``: by the first component that read the document and has a head that reads questions.

    Raises:
        UsageError: there is none in this process.
    """
    readers = [one for key in doc.user_data.get(_READERS, []) if (one := _COMPONENTS.get(key))]
    if not readers:
        fix = (
            "pass it through a pipeline here first, or ask a component: nlp.get_pipe('nlptasks').answer(doc, question)"
        )
        raise UsageError("doc._.answer", "the document was read by no component of this process", fix)
    best = next((one for one in readers if one.asked(doc, question)), readers[0])
    return best.answer(doc, question, head=head)
