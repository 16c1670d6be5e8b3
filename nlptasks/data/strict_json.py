"""Strict JSON parser: refuses duplicate keys, NaN and lone surrogates, which Python's `json` accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from nlptasks.errors import DataError, quote

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str, *, where: str, fix: str) -> Any:
    """Parse a JSON text.

    Args:
        text: the text.
        where: file and line, for messages.
        fix: what to do if it is not JSON, for messages.

    Raises:
        DataError: it is not JSON, is nested too deeply, or has a duplicate key, NaN, an infinite number or a lone surrogate.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object_hook(where), parse_constant=_constant_hook(where))
    except (ValueError, RecursionError) as error:
        column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(where + column, f"is not JSON ({_reason(error)})", fix) from None
    if _SURROGATE.search(text):
        _refuse_lone_surrogates(value, where)
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "it is nested too deeply" if isinstance(error, RecursionError) else "it has a number of too many digits"


def _object_hook(where: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            refuse_twice([name for name, _ in pairs], "key", where)
        return record

    return build


def refuse_twice(names: list[str], kind: str, where: str) -> None:
    """Refuse duplicate names.

    Args:
        names: the names, in order.
        kind: ``column`` or ``key``, for the message.
        where: file and line, for the message.

    Raises:
        DataError: with the name and both positions.
    """
    first: dict[str, int] = {}
    for place, name in enumerate(names, start=1):
        if first.setdefault(name, place) != place:
            problem = f"has the {kind} {quote(name)} twice, as number {first[name]} and number {place}"
            raise DataError(where, problem, "rename or drop one of them")


def _constant_hook(where: str) -> Callable[[str], None]:
    def refuse(name: str) -> None:
        raise DataError(where, f"has the number {name}, which JSON does not have", "write a number or null")

    return refuse


def _refuse_lone_surrogates(value: object, where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(where, f"has {half}, half of a surrogate pair", "write the whole character in UTF-8") from None
