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
from nlptasks.inference.serialization import as_plain, from_plain

_log = logging.getLogger("nlptasks")

_RESULTS: Any = ("._.", "nlptasks", None, None)
"""In ``doc.user_data``, among attributes of documents: results by head, as plain data."""
_READERS: Any = ("._.", "nlptasks_components", None, None)
"""The same, for the keys of the components that read the document."""


class Answerer(Protocol):
    """A component, as far as documents know it."""

    def asked(self, doc: Doc, question: str) -> Mapping[str, Any]:
        """The example of a question about a document, for each head that reads questions."""

    def answer(self, doc: Doc, question: str, *, head: str | None = None) -> Any:
        """The answer to a question about a document."""


_COMPONENTS: weakref.WeakValueDictionary[str, Answerer] = weakref.WeakValueDictionary()
"""Those of this process, by their keys."""


def note(doc: Doc, results: Mapping[str, Any], component: Answerer, *, key: str) -> bool:
    """Put results by head into a document, and the key by which it finds the component that gave them.

    Returns:
        Whether another component of this process has read the document, too.

    Raises:
        UsageError: a result is no plain data, and cannot be made plain.
    """
    plain = {name: as_plain(result) for name, result in results.items()}
    _COMPONENTS.setdefault(key, component)  # another one has the key if this is a copy of it
    others = [one for one in doc.user_data.get(_READERS, ()) if one != key]
    doc.user_data[_RESULTS] = {**doc.user_data.get(_RESULTS, {}), **plain}
    doc.user_data[_READERS] = [*others, key]
    return any(one in _COMPONENTS for one in others)


def noted(doc: Doc) -> set[str]:
    """The heads that have results in a document."""
    return set(doc.user_data.get(_RESULTS, ()))


def extend() -> None:
    """Give documents and spans the attributes that every component has."""
    extend_by(Doc, "nlptasks", getter=_results_of)
    extend_by(Doc, "answer", method=_answer)
    extend_by(Span, "score", default=None)


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


def _answer(doc: Doc, question: str, head: str | None = None) -> Any:
    """``doc._.answer(question)``: by the first component that read the document and has a head that reads questions.

    Raises:
        UsageError: there is none in this process, or no such head, or the question is empty.
    """
    readers = [one for key in doc.user_data.get(_READERS, ()) if (one := _COMPONENTS.get(key))]
    if not readers:
        fix = "pass it through a pipeline first, or ask a component: nlp.get_pipe('nlptasks').answer(doc, question)"
        raise UsageError("doc._.answer", "no component that read the document is there in this process", fix)
    able = [one for one in readers if _can_answer(one, doc, question, head)]
    return (able or readers)[0].answer(doc, question, head=head)


def _can_answer(component: Answerer, doc: Doc, question: str, head: str | None) -> bool:
    examples = component.asked(doc, question)
    return head in examples if head else bool(examples)
