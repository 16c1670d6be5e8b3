"""Reader of spaCy's ``.spacy`` files (`DocBin`): entities become spans of the text, categories become labels."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlptasks.data.encoding import MAX_UNPACKED_BYTES
from nlptasks.errors import DataError, first_line
from nlptasks.types import OnError, Row, refuse

if TYPE_CHECKING:
    from spacy.tokens import Doc

_TRUE = 0.5
"""Lowest value of a true category; gold values are 0 or 1."""


def read_docbin(path: Path, on_error: OnError = refuse) -> Iterator[Row]:
    """Read one row per document: ``text``, ``spans`` if entities are annotated, ``label`` or ``labels`` if it has categories.

    If each document of the file has exactly one true category, this is its ``label``; otherwise all have ``labels``.
    Messages name a document by its number, from 1.

    Raises:
        DataError: the file is not a DocBin, or a document has annotated and unannotated tokens.
    """
    from spacy.tokens import DocBin
    from spacy.vocab import Vocab

    try:
        found = DocBin().from_bytes(_read_within_limit(path))
        exclusive = all(len(_true(cats)) == 1 for cats in found.cats if cats)
        for number, doc in enumerate(found.get_docs(Vocab()), start=1):
            where = f"{path}:{number}"
            if len(doc) and doc.has_annotation("ENT_IOB") and not doc.has_annotation("ENT_IOB", require_complete=True):
                fix = "annotate all: doc.set_ents(doc.ents, default='outside')"
                on_error(DataError(where, "has tokens whose entity annotation is missing", fix))
                continue
            yield Row({"text": doc.text, **_spans(doc), **_labels(doc, exclusive)}, where)
    except DataError:
        raise
    except Exception as error:  # zlib, msgpack, numpy and spaCy each raise their own errors
        fix = "write it with spaCy's DocBin.to_disk, or with spacy convert"
        raise DataError(str(path), f"is not a DocBin of spaCy ({first_line(error)[:200]})", fix) from error


def _read_within_limit(path: Path) -> bytes:
    """Read a file that does not unpack to more than the limit: `DocBin` unpacks everything at once."""
    packed = path.read_bytes()
    if len(zlib.decompressobj().decompress(packed, MAX_UNPACKED_BYTES + 1)) > MAX_UNPACKED_BYTES:
        problem = f"unpacks to more than {MAX_UNPACKED_BYTES // 2**20} MiB"
        raise DataError(str(path), problem, "split it into several files")
    return packed


def _spans(doc: Doc) -> dict[str, Any]:
    annotated = doc.has_annotation("ENT_IOB") or not len(doc)
    return {"spans": [[ent.start_char, ent.end_char, ent.label_] for ent in doc.ents]} if annotated else {}


def _labels(doc: Doc, exclusive: bool) -> dict[str, Any]:
    labels = _true(doc.cats)
    if not doc.cats:
        return {}
    return {"label": labels[0]} if exclusive else {"labels": labels}


def _true(cats: Mapping[str, float]) -> list[str]:
    return [label for label, value in cats.items() if value >= _TRUE]
