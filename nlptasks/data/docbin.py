"""spaCy's ``.spacy`` files, its `DocBin`, as rows: entities are spans of the text, categories are labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlptasks.errors import DataError, first_line
from nlptasks.types import OnError, Row, refuse

if TYPE_CHECKING:
    from spacy.tokens import Doc

_TRUE = 0.5
"""From this value on a category counts as given; gold ones are 0 or 1."""


def read_docbin(path: Path, on_error: OnError = refuse) -> Iterator[Row]:
    """A document a row: ``text``; ``spans`` if its entities are annotated; ``label`` or ``labels`` if it has categories.

    In a file in which every document has exactly one category that is true, this is its ``label``; else all have ``labels``.
    The place of a row in messages is the document's number, from 1.

    Raises:
        DataError: the file is no DocBin, or of a document some tokens alone are annotated: what others are is not known.
    """
    from spacy.tokens import DocBin
    from spacy.vocab import Vocab

    try:
        found = DocBin().from_disk(path)
        exclusive = all(len(_true(cats)) == 1 for cats in found.cats if cats)
        for number, doc in enumerate(found.get_docs(Vocab()), start=1):
            where = f"{path}:{number}"
            if len(doc) and doc.has_annotation("ENT_IOB") and not doc.has_annotation("ENT_IOB", require_complete=True):
                fix = "annotate all of it: doc.set_ents(doc.ents, default='outside')"
                on_error(DataError(where, "has tokens of which is not known whether they are entities", fix))
                continue
            yield Row({"text": doc.text, **_spans(doc), **_labels(doc, exclusive)}, where)
    except DataError:
        raise
    except Exception as error:  # zlib, msgpack, numpy and spaCy each raise their own on bytes that are none of theirs
        fix = "write it with spaCy's DocBin.to_disk, or with spacy convert"
        raise DataError(str(path), f"is no DocBin of spaCy ({first_line(error)[:200]})", fix) from error


def _spans(doc: Doc) -> dict[str, Any]:
    annotated = doc.has_annotation("ENT_IOB") or not len(doc)
    return {"spans": [[ent.start_char, ent.end_char, ent.label_] for ent in doc.ents]} if annotated else {}


def _labels(doc: Doc, exclusive: bool) -> dict[str, Any]:
    given = _true(doc.cats)
    if not doc.cats:
        return {}
    return {"label": given[0]} if exclusive else {"labels": given}


def _true(cats: Mapping[str, float]) -> list[str]:
    return [label for label, value in cats.items() if value >= _TRUE]
