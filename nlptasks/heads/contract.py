"""The contract of a head's class: what it must define before a task can be registered with it."""

from __future__ import annotations

import re
from dataclasses import is_dataclass
from typing import Any

from nlptasks.backbones.info import DECODER, ENCODER, ENCODER_DECODER
from nlptasks.errors import listing, quote
from nlptasks.heads.base import CONTRACT, AnyHead, Head, Schema, sample_folder
from nlptasks.version import __version__

_NETWORK = re.compile(r"\w+(\.\w+)*:\w+")
_TUPLES = ("fields", "gold", "results", "backbones")
_KINDS = (ENCODER, ENCODER_DECODER, DECODER)


def contract_problem(cls: Any) -> tuple[str, str] | None:
    """Return what a class lacks to be the head of a registered task, and the fix; None if it lacks nothing."""
    if not isinstance(cls, type) or Head not in cls.__mro__:  # issubclass would run code of all other heads
        return "is no subclass of nlptasks.Head", "register a subclass, or uninstall the package"
    return _version_problem(cls) or _member_problem(cls) or _schema_problem(cls)


def _version_problem(cls: type[AnyHead]) -> tuple[str, str] | None:
    """Return the problem with the version of the contract. A class states it itself: its base class may be newer."""
    own = vars(cls)
    written_for = own["schema"].contract if isinstance(own.get("schema"), Schema) else own.get("contract")
    if not isinstance(written_for, int) or isinstance(written_for, bool):
        found = f"has the schema {quote(own['schema'])}" if "schema" in own else "has no schema of its own"
        if written_for is not None:
            found = f"has the contract {quote(written_for)}"
        return f"{found}, expected a Schema with a version", f"write schema = Schema(contract={CONTRACT}, fields=...)"
    if written_for != CONTRACT:
        problem = f"was written for contract {written_for}, and nlptasks {__version__} has contract {CONTRACT}"
        newer = "upgrade nlptasks, or install an older version of the package"
        return problem, newer if written_for > CONTRACT else "upgrade the package"
    return None


def _member_problem(cls: type[AnyHead]) -> tuple[str, str] | None:
    if missing := sorted(cls.__abstractmethods__):
        return f"lacks the methods {listing(missing)}", "write them, or upgrade the package"
    if not is_dataclass(getattr(cls, "Config", None)):
        return "has no Config that is a dataclass", "write a class Config with @dataclass(frozen=True) above it"
    network = getattr(cls, "network", None)
    if not isinstance(network, str) or not _NETWORK.fullmatch(network):
        return f"has the network {quote(network)}, expected module and class", 'write network = "package.module:Class"'
    return None


def _schema_problem(cls: type[AnyHead]) -> tuple[str, str] | None:
    schema = cls.schema
    if wrong := [name for name in _TUPLES if not isinstance(getattr(schema, name), tuple)]:
        return f"has {listing(wrong)} in its schema that are no tuples", "write a comma after a single one: (NAME,)"
    if not schema.backbones or not set(schema.backbones) <= set(_KINDS):
        return f"runs on the backbones {listing(schema.backbones)}", f"use some of {listing(_KINDS)}"
    if not _has_sample(cls):
        return f"has no sample data in {schema.sample}", "put them into the package (as package-data)"
    return None


def _has_sample(cls: type[AnyHead]) -> bool:
    try:
        return isinstance(cls.schema.sample, str) and sample_folder(cls).is_dir()
    except TypeError:  # a module without a package has no folder
        return False
