"""Results as plain data and back: what goes from process to process with a spaCy document, which takes no objects of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from typing import Any

from nlptasks.errors import PluginError, UsageError, quote
from nlptasks.registry import tasks

_KIND, _CONTENT = "is", "with"
_AS_IT_IS = (str, float, int, bool, type(None))

_KNOWN: dict[str, type] = {}
"""The dataclasses of results, by the names that they go by in plain data."""


def as_plain(result: Any) -> Any:
    """A result as numbers, strings, lists and dicts.

    Raises:
        UsageError: something in it is neither these nor a tuple, nor what its head says that its results are.
    """
    kind = type(result)
    if kind in _AS_IT_IS:
        return result
    if kind is list:
        return [as_plain(item) for item in result]
    if kind is tuple:
        return {_KIND: "tuple", _CONTENT: [as_plain(item) for item in result]}
    if is_dataclass(kind):
        content = {field.name: as_plain(getattr(result, field.name)) for field in fields(result)}
        return {_KIND: _name_of(kind), _CONTENT: content}
    if isinstance(result, Mapping) and all(type(key) is str for key in result):
        return {_KIND: "dict", _CONTENT: {key: as_plain(value) for key, value in result.items()}}
    if isinstance(result, Real):  # numpy's
        return int(result) if isinstance(result, Integral) else float(result)
    problem = f"holds {kind.__name__}, expected dataclasses, lists, dicts by strings, strings and numbers"
    raise UsageError("a result", problem, "let the head's decode give no other")


def from_plain(content: Any) -> Any:
    """The result that `as_plain` was given.

    Raises:
        UsageError: this is nothing that it gives, or a result of a head that is not installed here, or of another version.
    """
    if isinstance(content, list | tuple):  # msgpack may give either for the other
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
        fix = (
            "install the package and the version that it was made with, or pass the document through the pipeline again"
        )
        raise UsageError("a result", f"is {quote(content)}, which no head here gives", fix) from error


def _class_of(name: str) -> type:
    """The dataclass of a name: what a document names is looked up among the results of heads, never imported."""
    if name not in _KNOWN:
        _learn(name)
    return _KNOWN[name]


def _name_of(kind: type) -> str:
    name = f"{kind.__module__}:{kind.__qualname__}"
    if name not in _KNOWN:
        _learn(name)
    if name not in _KNOWN:
        problem = f"holds {kind.__name__}, which is not among the results of any head"
        raise UsageError("a result", problem, "name the class in the head's results")
    return name


def _learn(name: str) -> None:
    """Learn what heads give until this name is known, beginning with those of the package that it is from."""
    top = name.partition(":")[0].partition(".")[0]
    for one in sorted(tasks().values(), key=lambda one: one.path.partition(".")[0] != top):
        if name in _KNOWN:
            return
        try:
            results = one.head_class().results
        except PluginError:  # a broken package harms nobody else
            continue
        _KNOWN.update({f"{kind.__module__}:{kind.__qualname__}": kind for kind in results})
