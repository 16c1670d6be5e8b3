"""Which rows share text, so that what is held out of training is new to what was trained.

A row taken at random from phrases of the same sentences, from questions on the same paragraph or from copies with small changes
is as good as learned: scores fitted to such rows claim too much. So rows that share five words in a row (ten characters of a
script without spaces) are held out together, and short ones that stand inside others are not held out at all. What very many
rows share, such as a signature, relates nobody.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nlptasks.text.words import is_mostly_unspaced
from nlptasks.types import Ints

_WORDS, _CHARACTERS = 5, 10
_COMMON = 50
"""A sequence that more rows share is taken for common."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_Numbers = npt.NDArray[np.uint64]


def unrelated_rows(texts: Sequence[Sequence[str]], size: int, *, seed: int) -> set[int]:
    """Numbers of rows to be held out: rows that share no text with those that stay.

    Args:
        texts: what is read of each row.
        size: rows that are wanted at most.
        seed: of the draw.

    Returns:
        At least half as many, of rows drawn at random if too few can be had otherwise.
    """
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    group, inside = _related(texts)
    members: dict[int, list[int]] = {}
    for row, number in enumerate(group.tolist()):
        members.setdefault(number, []).append(row)
    drawn: set[int] = set()
    for row in order:
        own = members[int(group[row])]
        if row not in drawn and not inside[row] and len(drawn) + len(own) <= size:
            drawn.update(own)
    return drawn if 2 * len(drawn) >= size else set(order[:size])


def _related(texts: Sequence[Sequence[str]]) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """The group of each row, and whether it is short and stands inside another one."""
    from scipy.sparse import coo_matrix  # heavy, and only training needs it
    from scipy.sparse.csgraph import connected_components

    wholes: dict[tuple[str, ...], int] = {}
    equal = [wholes.setdefault(tuple(text.lower() for text in own), len(wholes)) for own in texts]
    count = len(texts) + len(wholes)
    edges = [np.stack([np.arange(len(texts)), len(texts) + np.array(equal, np.int64)], axis=1)]
    inside = np.zeros(len(texts), dtype=np.bool_)
    for pieces, length in _pieces(texts):
        inside |= pieces.inside_others(length, len(texts))
        rows, numbers = pieces.sequences(length)
        _, number = np.unique(numbers, return_inverse=True)
        pairs = np.unique(np.stack([rows, number], axis=1), axis=0)  # [E,2] rows and what each has, once
        shared = np.bincount(pairs[:, 1], minlength=1)
        edges.append(pairs[shared[pairs[:, 1]] <= _COMMON] + [0, count])
        count += len(shared)
    ends = np.concatenate(edges)  # [E,2] rows and what they share
    graph = coo_matrix((np.ones(len(ends), dtype=np.bool_), (ends[:, 0], ends[:, 1])), shape=(count, count))
    _, group = connected_components(graph, directed=False)
    return group[: len(texts)].astype(np.int64), inside


def _pieces(texts: Sequence[Sequence[str]]) -> Iterator[tuple[_Pieces, int]]:
    """Words or characters of all texts, and how many in a row are too many to be shared by chance."""
    plain = [(row, text.lower()) for row, own in enumerate(texts) for text in own if text]
    unspaced = [is_mostly_unspaced(text) for _, text in plain]
    words = [(row, text.split()) for (row, text), closed in zip(plain, unspaced, strict=True) if not closed]
    characters = [(row, list(text)) for (row, text), closed in zip(plain, unspaced, strict=True) if closed]
    yield _Pieces.numbered(words), _WORDS
    yield _Pieces.numbered(characters), _CHARACTERS


@dataclass(frozen=True)
class _Pieces:
    """The pieces of texts, one text behind the other.

    Attributes:
        numbers: of each piece, the same for the same piece [N].
        rows: the row that each is of [N].
        texts: the text that each is of [N].
        lengths: pieces in the text that each is of [N].
    """

    numbers: _Numbers
    rows: Ints
    texts: Ints
    lengths: Ints

    @classmethod
    def numbered(cls, texts: Sequence[tuple[int, Sequence[str]]]) -> _Pieces:
        known: dict[str, int] = {}
        numbers = [known.setdefault(piece, len(known) + 1) for _, pieces in texts for piece in pieces]
        sizes = [len(pieces) for _, pieces in texts]
        rows, places = (
            np.repeat(np.array(values, np.int64), sizes) for values in ([r for r, _ in texts], range(len(texts)))
        )
        return cls(np.array(numbers, np.uint64), rows, places, np.repeat(np.array(sizes, np.int64), sizes))

    def sequences(self, length: int) -> tuple[Ints, _Numbers]:
        """Every sequence of so many pieces of one text: its row and its number."""
        starts = self._starts(length)
        return self.rows[starts], self._hashed(starts, length)

    def inside_others(self, length: int, count: int) -> npt.NDArray[np.bool_]:
        """Of `count` rows those whose text has fewer pieces than `length` and stands inside another one."""
        inside = np.zeros(count, dtype=np.bool_)
        for short in range(1, length):
            starts = self._starts(short)
            hashed, whole = self._hashed(starts, short), self.lengths[starts] == short
            inside[self.rows[starts][whole & np.isin(hashed, hashed[~whole])]] = True
        return inside

    def _starts(self, length: int) -> Ints:
        """Where sequences of so many pieces begin."""
        last = len(self.numbers) - length + 1
        return (
            np.flatnonzero(self.texts[: max(last, 0)] == self.texts[length - 1 :])
            if last > 0
            else np.zeros(0, np.int64)
        )

    def _hashed(self, starts: Ints, length: int) -> _Numbers:
        """One number for each sequence of pieces."""
        hashed = np.zeros(len(starts), np.uint64)
        for step in range(length):
            hashed = (hashed ^ self.numbers[starts + step]) * _FACTOR
            hashed ^= hashed >> np.uint64(29)
        return hashed
