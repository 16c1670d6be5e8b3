"""The fields of a row: words, the predicate among them, and roles."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from nlptasks import DataError, LabelledSpan, Row, TagError, json_field, list_field, listing, quote, spans_of
from nlptasks_srl.columns import PREDICATE

SCHEME = "iob2"
_INDEX = re.compile(r"[0-9]{1,9}")
_FROM_0 = "write the index of its word, from 0"


@dataclass(frozen=True)
class Gold:
    """The gold answer of a row.

    Attributes:
        tokens: the words.
        predicate: index of the word that is, or may be, a predicate.
        roles: spans of words with their roles, in order, with V at the predicate; empty if the word is no predicate.
    """

    tokens: list[str]
    predicate: int
    roles: list[LabelledSpan]


def gold_of(row: Row) -> Gold:
    """Return the gold answer of a row.

    Raises:
        DataError: it is wrong.
    """
    if "predicates" in row.fields:
        raise DataError(row.where, "has tags and 'predicates'", "write a row for each predicate, with its index")
    if row.fields.get("predicate") is None:
        raise DataError(row.where, f"has no 'predicate', only {listing(row.fields)}", _FROM_0)
    tokens, tags = list_field(row, "tokens"), list_field(row, "tags")
    if len(tags) != len(tokens):
        raise DataError(row.where, f"has {len(tokens)} tokens and {len(tags)} tags", "write one tag for each token")
    predicate = _index(row, "predicate", row.fields["predicate"], len(tokens))
    try:
        roles = spans_of(tags, SCHEME)
    except TagError as error:
        fix = "write B-ROLE at the first word of a role, I-ROLE at the others, else O"
        raise DataError(row.line(error.word), error.problem, fix) from None
    own = [start for start, _, role in roles if role == PREDICATE]
    if roles and own != [predicate]:
        found = f"B-V at {listing(own)}" if own else "no B-V"
        problem = f"has {found}, expected it at its predicate, which is {predicate} ({quote(tokens[predicate])})"
        raise DataError(row.line(predicate), problem, "correct one of the two; all tags are O if it is no predicate")
    return Gold(tokens, predicate, roles)


def named_words(row: Row, count: int) -> list[int] | None:
    """Return the indices of the words that a row names as predicates, in order; None if it names none.

    Args:
        row: the row, perhaps with ``predicate`` or ``predicates``.
        count: number of its words.

    Raises:
        DataError: it has both fields, or one of them holds no index of a word.
    """
    one, several = row.fields.get("predicate"), row.fields.get("predicates")
    if one is not None and several is not None:
        raise DataError(row.where, "has 'predicate' and 'predicates'", "keep one of them")
    if one is not None:
        return [_index(row, "predicate", one, count)]
    if several is None:
        return None
    if isinstance(several, str):
        several = json_field(row, "predicates") if several.strip().startswith("[") else several.split()
    if not isinstance(several, list | tuple):
        problem = f"predicates is {quote(several)}, expected a list of numbers"
        raise DataError(row.where, problem, "write the indices of their words, from 0")
    return sorted({_index(row, "predicates", value, count) for value in several})


def _index(row: Row, name: str, value: Any, count: int) -> int:
    """Return the index of a word, which is text in a table."""
    if isinstance(value, str) and _INDEX.fullmatch(value):
        value = int(value)
    if type(value) is not int:
        raise DataError(row.where, f"{name} has {quote(value)}, expected a whole number", _FROM_0)
    if not 0 <= value < count:
        raise DataError(row.where, f"{name} has {value}, and the row has {count} words", _FROM_0)
    return value


def has_words(row: Row) -> bool:
    """Return True if the row gives words. If it has both words and a text, the text is read unless a predicate is named.

    Raises:
        DataError: the row has neither.
    """
    if "tokens" not in row.fields and "text" not in row.fields:
        fix = 'name the column, for example `columns={"text": "NAME"}`'
        raise DataError(row.where, f"has neither 'tokens' nor 'text', only {listing(row.fields)}", fix)
    is_named = any(row.fields.get(name) is not None for name in ("predicate", "predicates"))
    return "tokens" in row.fields and (is_named or "text" not in row.fields)
