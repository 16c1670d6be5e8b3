"""Readers of column files with predicates and roles: a word a line, an empty line after each sentence.

Two layouts, told apart by their columns; columns are separated by spaces or tabs:

1. CoNLL-2005 like: the word first, anything in between, then a column with the lemma of each predicate (``-`` for other words),
   then a column of roles for each predicate, in their order.
2. CoNLL-2012 (OntoNotes) like: document, part, number of the word from 0, word, part of speech, parse, lemma, frameset, sense,
   speaker, name, a column of roles for each predicate, coreference. Lines ``#begin document`` and ``#end document`` are dropped.

A column of roles has brackets: ``(A0*``, ``*``, ``*)``; ``(A0*)`` for one word. The predicate is where its column has ``(V*``.
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
_WORD, _BEFORE_ROLES, _BEHIND_ROLES = 3, 11, 1  # of CoNLL-2012: column of the word, columns around those of roles


@dataclass(frozen=True)
class _Token:
    """A word's line: its number in the file, from 1, and its columns."""

    line: int
    columns: list[str]


@dataclass(frozen=True)
class _Frame:
    """A predicate, by the number of its word, from 0, and the roles of its sentence, by numbers of words."""

    predicate: int
    roles: list[LabelledSpan]


@dataclass(frozen=True)
class _Sentence:
    """The words of a sentence, the lines they stand in, and its predicates."""

    words: list[str]
    lines: tuple[int, ...]
    frames: list[_Frame]

    @property
    def predicates(self) -> set[int]:
        """The numbers of its predicates, from 0."""
        return {frame.predicate for frame in self.frames}


def read_columns(path: Path, on_error: OnError) -> Iterator[Row]:
    """A row for each predicate, and for each word that looks like one and is none.

    A row has ``tokens``, ``predicate`` (a word's number, from 0) and ``tags``. A word looks like a predicate if one of this file
    has the same letters, whatever their case; if it is none, all of its tags are ``O``.
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
    """Go on; it is told when the file is read again."""


def _sentences(path: Path, on_error: OnError) -> Iterator[_Sentence]:
    for tokens in _blocks(path, on_error):
        try:
            yield _sentence(tokens, str(path))
        except DataError as error:
            on_error(error)


def _blocks(path: Path, on_error: OnError) -> Iterator[list[_Token]]:
    """The lines between empty ones."""
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
            raise DataError(f"{path}:{token.line}", problem, "repair this line, or put an empty line between sentences")
    frames = (_ontonotes_frames if _is_ontonotes(tokens) else _plain_frames)(tokens, path)
    word = _WORD if _is_ontonotes(tokens) else 0
    return _Sentence([token.columns[word] for token in tokens], tuple(token.line for token in tokens), frames)


def _is_ontonotes(tokens: Sequence[_Token]) -> bool:
    """Whether the columns are those of CoNLL-2012: the second has numbers, the third counts the words from 0."""
    return len(tokens[0].columns) > _BEFORE_ROLES and all(
        token.columns[1].isdecimal() and token.columns[2] == str(number) for number, token in enumerate(tokens)
    )


def _ontonotes_frames(tokens: Sequence[_Token], path: str) -> list[_Frame]:
    return [_frame(tokens, column, path) for column in range(_BEFORE_ROLES, len(tokens[0].columns) - _BEHIND_ROLES)]


def _plain_frames(tokens: Sequence[_Token], path: str) -> list[_Frame]:
    """The predicates of CoNLL-2005: the last column without a star names them."""
    where, width = f"{path}:{tokens[0].line}", len(tokens[0].columns)
    first = next((at + 1 for at in reversed(range(width)) if not any("*" in token.columns[at] for token in tokens)), 0)
    if first < 2:
        problem = f"has {first} columns before those of roles, expected words and predicates"
        raise DataError(where, problem, "put the words before them: paste train.words train.props > train.conll")
    named = [number for number, token in enumerate(tokens) if token.columns[first - 1] != "-"]
    if len(named) != width - first:
        lemmas = listing(tokens[number].columns[first - 1] for number in named)
        problem = f"names {len(named)} predicates in column {first} ({lemmas}) and has {width - first} columns of roles"
        raise DataError(where, problem, "give each predicate a column of roles, and write - for other words")
    frames = [_frame(tokens, column, path) for column in range(first, width)]
    for number, frame in zip(named, frames, strict=True):
        if frame.predicate != number:
            lemma, at = tokens[number].columns[first - 1], tokens[frame.predicate]
            column = first + named.index(number) + 1
            problem = f"column {column} has (V* here, but is for {quote(lemma)} in line {tokens[number].line}"
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
    """The spans that the brackets of one column mean, in order."""
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
