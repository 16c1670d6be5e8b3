"""Options as text: here the text of an option becomes a typed value, and a value becomes text."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import Field, replace
from typing import TYPE_CHECKING, Any

from nlptasks.config import ANY, Target, naming, setting_of, types_of
from nlptasks.errors import UsageError, listing, quote

if TYPE_CHECKING:
    from nlptasks.heads.base import AnyHead

Given = str | tuple[str, Any]
"""An option of a head: ``HEAD.OPTION=VALUE`` of the command line, or ``HEAD.OPTION`` and its value of a config file."""

_BOOLS = {"true": True, "false": False}


def with_options(
    targets: Sequence[Target], given: Iterable[Given], head_class: Callable[[Target], type[AnyHead]]
) -> list[Target]:
    """Return targets with the options that were given for them; see `options_of`."""
    by_name = {target.name: target for target in targets}
    options = options_of(given, lambda name: head_class(by_name[name]), heads=list(by_name))
    return [replace(target, options=options.get(target.name, {})) for target in targets]


def options_of(
    given: Iterable[Given], head_class: Callable[[str], type[AnyHead]], *, heads: Sequence[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the values of options by head and option.

    Args:
        given: the options.
        head_class: returns the class of a head, whose `Config` declares the types; called only if there are options.
        heads: names of the heads that may be named; None for any.

    Raises:
        UsageError: an option has another form, names another head, is unknown, or its text has not its type.
    """
    options: dict[str, dict[str, Any]] = {}
    for one in given:
        name, value = one if isinstance(one, tuple) else _split(one, heads)
        head, _, key = name.partition(".")
        if heads is not None and head not in heads:
            known = " or ".join(map(repr, heads))
            raise UsageError(f"--set {name}", f"names the head {head!r}", f"the head here is {known}")
        cls = head_class(head).Config
        with naming(head):
            options.setdefault(head, {})[key] = parse_option(cls, key, value)
    return options


def _split(text: str, heads: Sequence[str] | None) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (all(name.partition(".")) and equals):
        example = f"--set {heads[0] if heads else 'HEAD'}.OPTION=VALUE"
        raise UsageError(f"--set {text}", "is not HEAD.OPTION=VALUE", f"write for example {example}")
    return name, value


def parse_option(cls: type, name: str, value: Any) -> Any:
    """Return the value of an option of a dataclass. Only text is parsed; its type is checked with that of other values.

    Raises:
        UsageError: there is no such option, or the text has another form.
    """
    item = setting_of(cls, name)
    choices = item.metadata["choices"]
    if not isinstance(value, str) or value in choices:
        return value
    # Empty text is an empty tuple or mapping, except where a choice says what is used by default.
    for kind in (kind for kind in types_of(cls, item) if not choices or (value and kind is not str)):
        with suppress(ValueError):
            return _parsed(value, kind)
    words = _forms(cls, item)
    if not words:
        return value
    fix = f"use {'one of ' if len(words) > 1 else ''}{listing(words)}"
    raise UsageError(name, f"is {quote(value)}", fix, argument=name)


def _parsed(text: str, hint: Any) -> Any:
    """Return text as a value of a type.

    Raises:
        ValueError: it has another form.
    """
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is bool and text.lower() in _BOOLS:
        return _BOOLS[text.lower()]
    if kind is tuple:
        return tuple(_parsed(part, parts[0]) for part in text.split(",")) if text else ()
    if kind is Mapping:
        pairs = [part.rpartition(":") for part in text.split(",")] if text else []
        found = {name: _parsed(number, parts[1]) for name, _, number in pairs}
        if "" in found or len(found) < len(pairs):
            raise ValueError("a name is missing, or is there twice")
        return found
    if kind in (str, int, float):
        return kind(text)
    raise ValueError(f"{text!r} has another type")


def to_text(value: Any) -> str:
    """Return a value as the command line writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(f"{name}:{number}" for name, number in value.items())
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def limits_of(cls: type, item: Field[Any]) -> str:
    """Return the allowed values of an option as the command line writes them; empty for any text or number."""
    return ", ".join(_forms(cls, item))


def _forms(cls: type, item: Field[Any]) -> list[str]:
    choices, within = item.metadata["choices"], item.metadata["within"]
    return [form for kind in types_of(cls, item) for form in (choices if kind is str else _forms_of(kind, within))]


def _forms_of(hint: Any, within: Any) -> Sequence[str]:
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is bool:
        return list(_BOOLS)
    if kind is Mapping:
        return ["NAME:TEXT,..." if parts[1] is str else "NAME:NUMBER,..."]
    if kind is tuple:
        words = ["TEXT" if part is str else "..." if part is Ellipsis else "NUMBER" for part in parts]
        return [",".join(words[:1] + words if Ellipsis in parts else words)]
    return [str(within)] if kind in (int, float) and within != ANY else []
