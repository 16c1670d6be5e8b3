"""Results as plain data and back: a spaCy document carries them between processes and to disk, where it takes no objects."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from typing import Any

from nlptasks.errors import PluginError, UsageError, quote
from nlptasks.registry import tasks

_KIND, _CONTENT = "is", "with"
_PLAIN = (str, float, int, bool, type(None))


def as_plain(result: Any) -> Any:
    """Return a result as numbers, strings, lists and dicts.

    Raises:
        UsageError: it holds something else, or a dataclass that is in no head's schema.
    """
    kind = type(result)
    if kind in _PLAIN:
        return result
    if kind is list:
        return [as_plain(item) for item in result]
    if kind is tuple:
        return {_KIND: "tuple", _CONTENT: [as_plain(item) for item in result]}
    if is_dataclass(kind):
        try:
            _class_of(_name_of(kind))
        except KeyError:
            problem = f"holds {kind.__name__}, which is not among the results of any head"
            raise UsageError("a result", problem, "name the class in the results of the head's schema") from None
        content = {field.name: as_plain(getattr(result, field.name)) for field in fields(result)}
        return {_KIND: _name_of(kind), _CONTENT: content}
    if isinstance(result, Mapping) and all(type(key) is str for key in result):
        return {_KIND: "dict", _CONTENT: {key: as_plain(value) for key, value in result.items()}}
    if isinstance(result, Real):  # a number of numpy
        return int(result) if isinstance(result, Integral) else float(result)
    problem = f"holds {kind.__name__}, expected dataclasses, lists, dicts by strings, strings and numbers"
    raise UsageError("a result", problem, "change the head's decode")


def from_plain(content: Any) -> Any:
    """Return the result that `as_plain` was given. Nothing that the content names is imported.

    Raises:
        UsageError: it is nothing that `as_plain` returns, or a result of a head that is not installed, or of another version.
    """
    if isinstance(content, list | tuple):  # msgpack may return either for the other
        return [from_plain(item) for item in content]
    if not isinstance(content, dict):
        return content
    try:
        kind, inner = content[_KIND], content[_CONTENT]
        if kind == "tuple":
            return tuple(from_plain(item) for item in inner)
        values = {name: from_plain(value) for name, value in inner.items()}
        return values if kind == "dict" else _class_of(kind)(**values)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        fix = "install the package and version that made it, or run the pipeline on the document again"
        raise UsageError("a result", f"is {quote(content)}, which no installed head returns", fix) from error


def _name_of(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


@cache
def _class_of(name: str) -> type:
    """Return the dataclass of this name among the results of the registered heads.

    Heads of the package in the name are asked first, so that few others are imported.

    Raises:
        KeyError: there is none.
    """
    top = name.partition(":")[0].partition(".")[0]
    for one in sorted(tasks().values(), key=lambda one: one.path.partition(".")[0] != top):
        with suppress(PluginError):  # a broken package harms nobody else
            for kind in one.head_class().schema.results:
                if _name_of(kind) == name:
                    return kind
    raise KeyError(name)
