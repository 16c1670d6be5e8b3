"""Values of a row's fields, checked."""

from __future__ import annotations

import json
import re
from typing import Any

from nlptasks.errors import DataError, quote
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


def list_field(row: Row, name: str) -> list[str]:
    """A field that holds a list of strings: as such, as JSON, or as text with white space between them."""
    value = row.fields[name]
    if isinstance(value, str):
        value = json_field(row, name) if _LIST.fullmatch(value.strip()) else value.split()
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
        fix = (
            "write names, not numbers"
            if isinstance(value, list) and value and isinstance(value[0], int)
            else "correct the row"
        )
        raise DataError(row.where, f"{name} is {quote(value)}, expected a list of non-empty strings", fix)
    return list(value)


def json_field(row: Row, name: str) -> Any:
    """A field that holds JSON as text.

    Raises:
        DataError: it is not JSON.
    """
    try:
        return json.loads(row.fields[name])
    except (ValueError, RecursionError):
        fix = "write a JSON list, with double quotes"
        raise DataError(row.where, f"{name} is {quote(row.fields[name])}, not JSON", fix) from None
