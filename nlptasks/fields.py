"""Values of a row's fields, checked."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from nlptasks.errors import DataError, listing, quote
from nlptasks.jsontext import parse_json
from nlptasks.tags import LabelledSpan
from nlptasks.types import Row

_LIST = re.compile(r"\[\s*\]|\[\s*[\"'].*|\[[\d\s,]+\]", re.DOTALL)
"""A cell that is meant to be a list, not a sentence that begins with a bracket."""


def text_field(row: Row) -> str:
    """The field ``text``.

    Raises:
        DataError: it is no string.
    """
    text = row.fields.get("text")
    if not isinstance(text, str):
        raise DataError(row.where, f"text is {quote(text)}, expected a string", "correct the row")
    return text


def _value(row: Row, name: str) -> Any:
    if name not in row.fields:
        fix = f"name the column: --columns {name}=NAME"
        raise DataError(row.where, f"has no {name!r}, only {listing(row.fields)}", fix)
    return row.fields[name]


def list_field(row: Row, name: str) -> list[str]:
    """A field that holds a list of strings: as such, as JSON, or as text with white space between them.

    Raises:
        DataError: there is no such field, or it is something else.
    """
    value = _value(row, name)
    if isinstance(value, str):
        value = json_field(row, name) if _LIST.fullmatch(value.strip()) else value.split()
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
        numbers = isinstance(value, list | tuple) and any(isinstance(item, int | float) for item in value)
        fix = "write names, not numbers" if numbers else "correct the row"
        raise DataError(row.where, f"{name} is {quote(value)}, expected a list of non-empty strings", fix)
    return list(value)


def json_field(row: Row, name: str) -> Any:
    """A field that holds JSON as text.

    Raises:
        DataError: it is not JSON.
    """
    text = row.fields[name]
    try:
        return parse_json(text, where=row.where, fix="write a JSON list, with double quotes")
    except DataError as error:
        raise DataError(row.where, f"{name} {error.problem}: {quote(text)}", error.fix) from None


def spans_field(row: Row) -> list[LabelledSpan]:
    """The field ``spans``, labelled spans of the field ``text`` in code points: checked, in order.

    A span is ``[0, 3, "PER"]`` or ``{"start": 0, "end": 3, "label": "PER"}``, which may claim its ``text``.

    Raises:
        DataError: a span is something else, marks nothing or not what it claims, or overlaps another one.
    """
    text = text_field(row)
    value = _value(row, "spans")
    if isinstance(value, str):
        value = json_field(row, "spans")
    if not isinstance(value, list):
        raise DataError(row.where, f"spans is {quote(value)}, expected a list", "write [[START, END, LABEL], ...]")
    spans = sorted(_span(item, text, row.where) for item in value)
    for one, two in pairwise(spans):
        if one[1] > two[0]:
            raise DataError(row.where, f"spans {quote(one)} and {quote(two)} overlap", "keep one of them")
    return spans


def _span(item: Any, text: str, where: str) -> LabelledSpan:
    parts = [item.get(key) for key in ("start", "end", "label")] if isinstance(item, dict) else item
    if not isinstance(parts, list | tuple) or len(parts) != 3:
        raise DataError(where, f"span {quote(item)} is not [START, END, LABEL]", "write code points and a label")
    start, end, label = parts
    if type(start) is not int or type(end) is not int:
        raise DataError(where, f"span {quote(item)} has no whole numbers as START and END", "write code points")
    if not isinstance(label, str) or not label:
        raise DataError(where, f"span {quote(item)} has the label {quote(label)}, expected a name", "write a string")
    if start >= end:
        raise DataError(where, f"span {quote(item)} ends where it starts or before", "END is behind the last character")
    claimed = item.get("text") if isinstance(item, dict) else None
    if start < 0 or end > len(text):
        problem = f"span {quote(item)} is not within a text of {len(text)} characters"
    elif claimed is not None and claimed != text[start:end]:
        problem = f"span {quote(item)} marks {quote(text[start:end])}"
    elif not text[start:end].strip():
        problem = f"span {quote(item)} marks nothing but white space"
    else:
        return start, end, label
    unit = _other_unit(text, start, end, claimed)
    looks = f"; the offsets look like {unit}" if unit else ""
    raise DataError(where, problem + looks, "count code points" if unit else "correct the row")


def _other_unit(text: str, start: int, end: int, claimed: object) -> str:
    """The unit in which a span marks what it claims (without a claim, anything but white space); empty if there is none."""
    for unit, encoding, size in (("UTF-16 code units", "utf-16-le", 2), ("UTF-8 bytes", "utf-8", 1)):
        content = text.encode(encoding, "surrogatepass")
        if start >= 0 and end * size <= len(content):
            marked = content[start * size : end * size].decode(encoding, "replace")
            if marked == claimed or (claimed is None and marked.strip() and "\ufffd" not in marked):
                return unit
    return ""
