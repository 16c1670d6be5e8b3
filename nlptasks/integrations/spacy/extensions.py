"""spaCy extension attributes: ``doc._.nlptasks``, ``doc._.answer``, ``span._.score`` and those that heads write to.

Results are kept in ``doc.user_data`` as plain data, so that spaCy can send documents between processes and write them to disk.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from spacy.tokens import Doc, Span

from nlptasks.errors import UsageError
from nlptasks.inference.serialization import as_plain, from_plain

_log = logging.getLogger("nlptasks")

_RESULTS: Any = ("._.", "nlptasks", None, None)
"""Key of the results in ``doc.user_data``: by head, as plain data."""
_READERS: Any = ("._.", "nlptasks_components", None, None)
"""Key of the ids of the components that read the document."""


class QuestionAnswerer(Protocol):
    """A component that answers questions about documents."""

    def question_heads(self, doc: Doc, question: str) -> Sequence[str]:
        """Return the names of the heads that read a question about a document."""

    def answer(self, doc: Doc, question: str, *, head: str | None = None) -> Any:
        """Return the answer to a question about a document."""


_COMPONENTS: weakref.WeakValueDictionary[str, QuestionAnswerer] = weakref.WeakValueDictionary()
"""The components of this process, by id."""


def write_results(doc: Doc, results: Mapping[str, Any], component: QuestionAnswerer, *, key: str) -> bool:
    """Write results into a document, and the id of the component.

    Returns:
        True if another component of this process has read the document.

    Raises:
        UsageError: a result cannot be converted to plain data.
    """
    plain = {name: as_plain(result) for name, result in results.items()}
    _COMPONENTS.setdefault(key, component)  # a copy of a component has the same id
    others = [one for one in doc.user_data.get(_READERS, ()) if one != key]
    doc.user_data[_RESULTS] = {**doc.user_data.get(_RESULTS, {}), **plain}
    doc.user_data[_READERS] = [*others, key]
    return any(one in _COMPONENTS for one in others)


def heads_with_results(doc: Doc) -> set[str]:
    """Return the heads that have results in a document."""
    return set(doc.user_data.get(_RESULTS, ()))


def add_extensions() -> None:
    """Add the attributes that every component uses."""
    add_extension(Doc, "nlptasks", {"getter": _results_of})
    add_extension(Doc, "answer", {"method": _answer})
    add_extension(Span, "score", {"default": None})


def add_extension(owner: type[Doc] | type[Span], name: str, arguments: Mapping[str, Any]) -> bool:
    """Add an extension attribute.

    Args:
        owner: the class.
        name: name of the attribute.
        arguments: those of spaCy's ``set_extension``: ``default``, ``method`` or ``getter``.

    Returns:
        False if another package has added an attribute of this name, which is kept.
    """
    if not owner.has_extension(name):
        owner.set_extension(name, **arguments)
        return True
    if owner.get_extension(name) == tuple(arguments.get(part) for part in ("default", "method", "getter", "setter")):
        return True
    _log.warning("%s._.%s is an extension of another package and is kept", owner.__name__.lower(), name)
    return False


def _results_of(doc: Doc) -> dict[str, Any]:
    """Return the results by head; the getter of ``doc._.nlptasks``."""
    return {name: from_plain(result) for name, result in doc.user_data.get(_RESULTS, {}).items()}


def _answer(doc: Doc, question: str, head: str | None = None) -> Any:
    """Return the answer of the first component that read the document and answers questions: ``doc._.answer(question)``.

    Raises:
        UsageError: there is none in this process, or no such head, or the question is empty.
    """
    readers = [one for key in doc.user_data.get(_READERS, ()) if (one := _COMPONENTS.get(key))]
    if not readers:
        fix = "run a pipeline on it first, or use a component: nlp.get_pipe('nlptasks').answer(doc, question)"
        raise UsageError("doc._.answer", "no component of this process has read the document", fix)
    able = [one for one in readers if _can_answer(one, doc, question, head)]
    return (able or readers)[0].answer(doc, question, head=head)


def _can_answer(component: QuestionAnswerer, doc: Doc, question: str, head: str | None) -> bool:
    heads = component.question_heads(doc, question)
    return head in heads if head else bool(heads)
