"""Read and check the fields of rows."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from nlptasks.data.strict_json import parse_json
from nlptasks.errors import DataError, listing, quote
from nlptasks.text.tags import LabelledSpan
from nlptasks.types import Row

_LIST = re.compile(r"\[\s*\]|\[\s*[\"'].*|\[[\d\s,]+\]", re.DOTALL)
"""A cell with a list, as opposed to a sentence that begins with a bracket."""

_WHOLE = re.compile(r"-?[0-9]{1,18}")

_UNITS = (("UTF-16 code units", "utf-16-le", 2), ("UTF-8 bytes", "utf-8", 1))
"""Units of offsets in other software, with the encoding and the bytes of each."""


def text_field(row: Row, name: str = "text") -> str:
    """Return the text in a field.

    Raises:
        DataError: the field is missing, or is no string.
    """
    text = _value(row, name)
    if not isinstance(text, str):
        raise DataError(row.where, f"{name} is {quote(text)}, expected a string", "correct the row")
    return text


def texts_field(row: Row, name: str) -> tuple[str, ...]:
    """Return the text in a field, or the texts in a list, which may be JSON.

    Raises:
        DataError: the field is missing, or is something else.
    """
    value = _value(row, name)
    if isinstance(value, str) and value.startswith('["') and value.endswith('"]'):
        with contextlib.suppress(DataError):  # it is a text that begins and ends like a list
            value = json_field(row, name)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(row.where, f"{name} is {quote(value)}, expected a text or a list of texts", "correct the row")
    return tuple(texts)


def _value(row: Row, name: str) -> Any:
    if name not in row.fields:
        fix = f'name the column: `columns={{"{name}": "NAME"}}`'
        raise DataError(row.where, f"has no {name!r}, only {listing(row.fields)}", fix)
    return row.fields[name]


def list_field(row: Row, name: str) -> list[str]:
    """Return the list of strings in a field: a list, JSON, or text that is split at white space.

    Raises:
        DataError: the field is missing, or is something else.
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
    """Return the value of JSON text in a field.

    Raises:
        DataError: the text is not JSON.
    """
    text = row.fields[name]
    try:
        return parse_json(text, where=row.where, fix="write a JSON list, with double quotes")
    except DataError as error:
        raise DataError(row.where, f"{name} {error.problem}: {quote(text)}", error.fix) from None


def spans_field(row: Row) -> list[LabelledSpan]:
    """Return the labelled spans in the field ``spans``, in order. They are code points of the field ``text``.

    A span is ``[0, 3, "PER"]`` or ``{"start": 0, "end": 3, "label": "PER"}``, which may also have its ``text``.

    Raises:
        DataError: a span has another form, marks nothing or another text than its own, or overlaps another span.
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
        raise DataError(
            where, f"span {quote(item)} ends where it starts or before", "END is the offset after the last character"
        )
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


def _offset_problem(text: str, claimed: str, start: int) -> tuple[str, str]:
    """Return the problem and the fix if `claimed` is not in `text` at `start`."""
    unit = _start_unit(text, claimed, start)
    if unit:
        return f"answer_start {start} of {quote(claimed)} looks like {unit}", "count code points"
    places = [match.start() for match in re.finditer(re.escape(claimed), text)]
    if not places:
        return f"{quote(claimed)} is not in the context", "correct the answer or the context"
    nearest = min(places, key=lambda place: abs(place - start))
    problem = f"{quote(claimed)} is not at {start}, but at {nearest} (off by {nearest - start:+d})"
    return problem, "correct answer_start"


def _start_unit(text: str, claimed: str, start: int) -> str:
    """Return the unit, other than code points, in which a string starts at an offset; empty if there is none."""
    for unit, encoding, size in _UNITS:
        content, own = text.encode(encoding, "surrogatepass"), claimed.encode(encoding, "surrogatepass")
        if start >= 0 and content[start * size :].startswith(own):
            return unit
    return ""


def _other_unit(text: str, start: int, end: int, claimed: object) -> str:
    """Return the unit in which a span marks its own text, or any text if that is unknown; empty if there is none."""
    for unit, encoding, size in _UNITS:
        content = text.encode(encoding, "surrogatepass")
        if start >= 0 and end * size <= len(content):
            marked = content[start * size : end * size].decode(encoding, "replace")
            if marked == claimed or (claimed is None and marked.strip() and "\ufffd" not in marked):
                return unit
    return ""


@dataclass(frozen=True)
class LabelField:
    """The labels of a row.

    Attributes:
        value: the value in the row.
        labels: each label once, as text.
        several: True if the value is a list.
        kind: type of the labels in the row: str, int or bool.
    """

    value: Any
    labels: tuple[str, ...]
    several: bool
    kind: type


def label_field(row: Row, name: str, *, separator: str | None = None) -> LabelField:
    """Return the label in a field, or a list of labels: a list, JSON, or text with separators.

    Args:
        row: the row.
        name: name of the field.
        separator: text between two labels; None if text is one label.

    Raises:
        DataError: the field is missing, or a label is neither text nor a whole number nor a truth value.
    """
    value = _value(row, name)
    items = value
    if isinstance(value, str) and _LIST.fullmatch(value.strip()):
        items = json_field(row, name)
    elif isinstance(value, str) and separator:
        items = [part.strip() for part in value.split(separator)] if value.strip() else []
    several = isinstance(items, list | tuple)
    listed = list(items) if several else [items]
    kinds = {type(item) for item in listed}
    wrong = next((item for item in listed if type(item) not in (str, int, bool) or item == ""), None)
    if wrong is not None or None in listed:
        kind = "an empty label" if wrong == "" else f"the label {quote(wrong)}"
        raise DataError(row.where, f"has {kind}, expected a name or a whole number", "correct the row")
    if len(kinds) > 1:
        raise DataError(row.where, f"has labels of several kinds: {quote(value)}", "write all of them as text")
    labels = dict.fromkeys(str(item).lower() if isinstance(item, bool) else str(item) for item in listed)
    return LabelField(value, tuple(labels), several, next(iter(kinds), str))


def same_kind(rows: Sequence[Row], found: Sequence[LabelField]) -> bool:
    """Return True if all rows have lists of labels, and False if none has. All labels must be of one kind.

    Raises:
        DataError: two rows differ.
    """
    first = next((one for one in found if one.labels), found[0])
    for row, one in zip(rows, found, strict=True):
        if one.several != first.several or (one.labels and one.kind is not first.kind):
            problem = f"has {quote(one.value)}, but {rows[found.index(first)].where} has {quote(first.value)}"
            fix = "write lists in all rows, or in none, and all labels as text or all as whole numbers"
            raise DataError(row.where, problem, fix)
    return first.several


def have_field(rows: Sequence[Row], name: str) -> bool:
    """Return True if all rows have a field, and False if none has it.

    Raises:
        DataError: some rows have it and some do not.
    """
    found = [name in row.fields for row in rows]
    if any(found) and not all(found):
        problem = f"has no {name!r}, but {rows[found.index(True)].where} has one"
        raise DataError(rows[found.index(False)].where, problem, f"give all rows a {name!r}, or none")
    return all(found)


def answers_field(row: Row, context: str) -> tuple[tuple[int, int], ...] | None:
    """Return the answers in the fields ``answers``, or ``answer`` and ``answer_start``, or ``is_impossible``.

    Returns:
        Code points of each answer in the context; empty if the row has no answer, None if it has none of the fields.

    Raises:
        DataError: an answer is not in the context at its offset, or a field is something else.
    """
    if row.fields.get("answers") is None and row.fields.get("answer") is None:
        return () if row.fields.get("is_impossible") in (True, "true", "True") else None
    spans = tuple(_placed(text, start, context, row.where) for text, start in _claims(row))
    return tuple(dict.fromkeys(spans))


def _claims(row: Row) -> list[tuple[Any, Any]]:
    """Return text and start of each answer in a row, in SQuAD's format, Hugging Face's, or plain columns."""
    if row.fields.get("answers") is None:
        start = row.fields.get("answer_start")
        text = row.fields["answer"]
        if isinstance(start, str) and _WHOLE.fullmatch(start):
            start = int(start)
        return [] if text == "" else [(text, start)]
    value = json_field(row, "answers") if isinstance(row.fields["answers"], str) else row.fields["answers"]
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            return list(zip(texts, starts, strict=True))
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return [(one.get("text"), one.get("answer_start")) for one in value]
    fix = 'write {"text": [...], "answer_start": [...]} or [{"text": ..., "answer_start": ...}]'
    raise DataError(row.where, f"answers is {quote(value)}, expected texts and their starts", fix)


def _placed(text: Any, start: Any, context: str, where: str) -> tuple[int, int]:
    if not isinstance(text, str) or not text.strip():
        raise DataError(where, f"has the answer {quote(text)}, expected text", "leave the lists empty if there is none")
    if start in (None, "", -1):
        count = context.count(text)
        if count == 1:
            return context.index(text), context.index(text) + len(text)
        raise DataError(where, f"answer {quote(text)} occurs {count} times in the context", "add its answer_start")
    if type(start) is not int:
        raise DataError(where, f"answer_start is {quote(start)}, expected a whole number", "count code points from 0")
    if start < 0 or context[start : start + len(text)] != text:
        raise DataError(where, *_offset_problem(context, text, start))
    return start, start + len(text)
