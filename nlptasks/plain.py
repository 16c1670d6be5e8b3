"""Results as plain data and back: what goes from process to process with a spaCy document, which takes no objects of others."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from typing import Any

from nlptasks.errors import UsageError, quote
from nlptasks.registry import tasks

_KIND, _CONTENT = "is", "with"


def as_plain(result: Any) -> Any:
    """A result as numbers, strings, lists and dicts.

    Raises:
        UsageError: something in it is neither these nor a tuple nor a dataclass.
    """
    if result is None or isinstance(result, str | bool):
        return result
    if isinstance(result, Real):  # numpy's, too
        return int(result) if isinstance(result, Integral) else float(result)
    if isinstance(result, list):
        return [as_plain(item) for item in result]
    if isinstance(result, tuple):
        return {_KIND: "tuple", _CONTENT: [as_plain(item) for item in result]}
    if isinstance(result, Mapping):
        return {_KIND: "dict", _CONTENT: {str(key): as_plain(value) for key, value in result.items()}}
    if is_dataclass(result) and not isinstance(result, type):
        content = {field.name: as_plain(getattr(result, field.name)) for field in fields(result)}
        return {_KIND: _path(type(result)), _CONTENT: content}
    problem = f"holds {type(result).__name__}, expected dataclasses, lists, dicts, strings and numbers"
    raise UsageError("a result", problem, "let the head's decode give no other")


def from_plain(content: Any) -> Any:
    """The result that `as_plain` was given.

    Raises:
        UsageError: it names what is no result of a head that is installed here.
    """
    if isinstance(content, list | tuple):  # msgpack may give either for the other
        return [from_plain(item) for item in content]
    if not isinstance(content, dict):
        return content
    kind, inner = content[_KIND], content[_CONTENT]
    if kind == "tuple":
        return tuple(from_plain(item) for item in inner)
    values = {name: from_plain(value) for name, value in inner.items()}
    return values if kind == "dict" else _class(kind)(**values)


@cache
def _path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


@cache
def _class(path: str) -> type:
    """The dataclass at a path, in a package that has a head: a document may come from anywhere, and imports nothing else."""
    module, _, name = path.partition(":")
    if module.partition(".")[0] in {point.value.partition(".")[0] for point in tasks().values()}:
        found = getattr(importlib.import_module(module), name, None)
        if isinstance(found, type) and is_dataclass(found):
            return found
    raise UsageError("a result", f"is {quote(path)}, which no head here gives", "install the package that has the head")
