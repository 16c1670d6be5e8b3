"""A reader of column files with predicates and roles: one word per line, an empty line after each sentence.

Columns are separated by spaces or tabs. There are two layouts, which the columns tell apart:

1. Like CoNLL-2005: the word, any other columns, the lemma of each predicate (``-`` for other words), and a column of roles for
   each predicate in order.
2. Like CoNLL-2012 (OntoNotes): document, part, index of the word from 0, word, part of speech, parse, lemma, frameset, sense,
   speaker, name, a column of roles for each predicate, coreference. Lines ``#begin document`` and ``#end document`` are skipped.

A column of roles has brackets: ``(A0*``, ``*``, ``*)``; ``(A0*)`` for one word. The predicate has ``(V*`` in its column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nlptasks import DataError, LabelledSpan, OnError, Row, listing, quote, read_lines, tags_of

PREDICATE = "V"
"""The role of the predicate itself."""

_CELL = re.compile(r"((?:\([^()*]+)*)\*(\)*)")
_EDGE = re.compile(r"#(begin|end) document\b")
_WORD, _BEFORE_ROLES, _AFTER_ROLES = 3, 11, 1  # CoNLL-2012: column of the word, columns before and after those of roles


@dataclass(frozen=True)
class _Token:
    """A line of a word: its number in the file, from 1, and its columns."""

    line: int
    columns: list[str]


@dataclass(frozen=True)
class _Frame:
    """A predicate, as the index of its word, and its roles, as spans of words."""

    predicate: int
    roles: list[LabelledSpan]


@dataclass(frozen=True)
class _Sentence:
    """The words of a sentence, their lines, and its predicates."""

    words: list[str]
    lines: tuple[int, ...]
    frames: list[_Frame]

    @property
    def predicates(self) -> set[int]:
        """Indices of its predicates."""
        return {frame.predicate for frame in self.frames}


def read_columns(path: Path, on_error: OnError) -> Iterator[Row]:
    """Read a row for each predicate, and for each word that looks like a predicate and is none.

    A row has ``tokens``, ``predicate`` (the index of its word) and ``tags``. A word looks like a predicate if a predicate of this
    file has the same letters, ignoring case; if it is none, all its tags are ``O``.
    """
    forms = {sentence.words[number].lower() for sentence in _sentences(path, _ignore) for number in sentence.predicates}
    for sentence in _sentences(path, on_error):
        count = len(sentence.words)
        frames = [(frame.predicate, tags_of(frame.roles, count, "iob2")) for frame in sentence.frames]
        others = [
            (number, ["O"] * count)
            for number, word in enumerate(sentence.words)
            if word.lower() in forms and number not in sentence.predicates
        ]
        for predicate, tags in sorted(frames + others):
            fields = {"tokens": sentence.words, "predicate": predicate, "tags": tags}
            yield Row(fields, f"{path}:{sentence.lines[predicate]}", sentence.lines)


def _ignore(error: DataError) -> None:
    """Continue; the second reading of the file reports the error."""


def _sentences(path: Path, on_error: OnError) -> Iterator[_Sentence]:
    for tokens in _blocks(path, on_error):
        try:
            yield _sentence(tokens, str(path))
        except DataError as error:
            on_error(error)


def _blocks(path: Path, on_error: OnError) -> Iterator[list[_Token]]:
    """Yield the lines between empty lines."""
    block: list[_Token] = []
    for number, line in read_lines(path, on_error):
        columns = [] if _EDGE.match(line) else line.split()
        if columns:
            block.append(_Token(number, columns))
        elif block:
            yield block
            block = []
    if block:
        yield block


def _sentence(tokens: Sequence[_Token], path: str) -> _Sentence:
    width = len(tokens[0].columns)
    for token in tokens:
        if len(token.columns) != width:
            problem = f"has {len(token.columns)} columns, expected {width} as in the first line of its sentence"
            raise DataError(
                f"{path}:{token.line}", problem, "correct this line, or put an empty line between sentences"
            )
    frames = (_ontonotes_frames if _is_ontonotes(tokens) else _plain_frames)(tokens, path)
    word = _WORD if _is_ontonotes(tokens) else 0
    return _Sentence([token.columns[word] for token in tokens], tuple(token.line for token in tokens), frames)


def _is_ontonotes(tokens: Sequence[_Token]) -> bool:
    """Return True for the columns of CoNLL-2012: the second has numbers, the third counts the words from 0."""
    return len(tokens[0].columns) > _BEFORE_ROLES and all(
        token.columns[1].isdecimal() and token.columns[2] == str(number) for number, token in enumerate(tokens)
    )


def _ontonotes_frames(tokens: Sequence[_Token], path: str) -> list[_Frame]:
    return [_frame(tokens, column, path) for column in range(_BEFORE_ROLES, len(tokens[0].columns) - _AFTER_ROLES)]


def _plain_frames(tokens: Sequence[_Token], path: str) -> list[_Frame]:
    """Return the predicates of CoNLL-2005: the last column without a star names them."""
    where, width = f"{path}:{tokens[0].line}", len(tokens[0].columns)
    first = next((at + 1 for at in reversed(range(width)) if not any("*" in token.columns[at] for token in tokens)), 0)
    if first < 2:
        problem = f"has {first} columns before those of roles, expected words and predicates"
        raise DataError(where, problem, "put the words before them: paste train.words train.props > train.conll")
    named = [number for number, token in enumerate(tokens) if token.columns[first - 1] != "-"]
    if len(named) != width - first:
        lemmas = listing(tokens[number].columns[first - 1] for number in named)
        problem = f"names {len(named)} predicates in column {first} ({lemmas}) and has {width - first} columns of roles"
        raise DataError(where, problem, "write a column of roles for each predicate, and - for other words")
    frames = [_frame(tokens, column, path) for column in range(first, width)]
    for number, frame in zip(named, frames, strict=True):
        if frame.predicate != number:
            lemma, at = tokens[number].columns[first - 1], tokens[frame.predicate]
            column = first + named.index(number) + 1
            problem = f"column {column} has (V* here, but belongs to {quote(lemma)} in line {tokens[number].line}"
            raise DataError(f"{path}:{at.line}", problem, "write the columns in the order of the predicates")
    return frames


def _frame(tokens: Sequence[_Token], column: int, path: str) -> _Frame:
    roles = _roles(tokens, column, path)
    own = [start for start, _, role in roles if role == PREDICATE]
    if len(own) != 1:
        problem = f"column {column + 1} has {len(own)} times the role V, expected one predicate"
        raise DataError(f"{path}:{tokens[own[1] if own else 0].line}", problem, "write (V*) at the predicate alone")
    return _Frame(own[0], roles)


def _roles(tokens: Sequence[_Token], column: int, path: str) -> list[LabelledSpan]:
    """Return the spans of one column of brackets, in order."""
    name = f"column {column + 1}"
    roles: list[LabelledSpan] = []
    opened: tuple[int, str] | None = None
    for number, token in enumerate(tokens):
        where, cell = f"{path}:{token.line}", token.columns[column]
        match = _CELL.fullmatch(cell)
        if match is None:
            raise DataError(where, f"{name} is {quote(cell)}, expected roles", "write *, (ROLE*, *) or (ROLE*)")
        for role in match[1].split("(")[1:]:
            if opened is not None:
                problem = f"{name} opens {role} within {opened[1]}, which is open since line {tokens[opened[0]].line}"
                raise DataError(where, problem, "close that before: the roles of one predicate cannot overlap")
            opened = (number, role)
        for _ in match[2]:
            if opened is None:
                raise DataError(where, f"{name} closes a role, and none is open", "remove the bracket, or open a role")
            roles.append((opened[0], number + 1, opened[1]))
            opened = None
    if opened is not None:
        problem = f"{name} opens {opened[1]}, which is not closed in its sentence"
        raise DataError(f"{path}:{tokens[opened[0]].line}", problem, "close it at its last word: *)")
    return roles
