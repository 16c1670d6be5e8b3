"""Splits without leakage: held-out rows share no text with the rows that stay in train.

With phrases of the same sentences, questions on the same paragraph or near duplicates, a random split has held-out rows that the
model has practically seen, and scores on them are too high. So rows that share five consecutive words (ten characters in scripts
without spaces) are held out together. Shorter texts that occur inside others are never held out. Sequences that very many rows
share, such as a signature, are ignored.
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
"""Sequences that more rows share are ignored."""

_HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_Hashes = npt.NDArray[np.uint64]


def unrelated_rows(texts: Sequence[Sequence[str]], size: int, *, seed: int) -> set[int]:
    """Return the indices of rows to hold out, which share no text with the others.

    Args:
        texts: the texts of each row.
        size: maximum number of rows.
        seed: random seed.

    Returns:
        At least half of `size` rows. If fewer are unrelated, `size` rows drawn at random.
    """
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    groups, contained = _related(texts)
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(row)
    drawn: set[int] = set()
    for row in order:
        related = members[int(groups[row])]
        if row not in drawn and not contained[row] and len(drawn) + len(related) <= size:
            drawn.update(related)
    return drawn if 2 * len(drawn) >= size else set(order[:size])


def _related(texts: Sequence[Sequence[str]]) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Return the group of related rows that each row is in, and True for short rows contained in another."""
    from scipy.sparse import coo_matrix  # slow to import, and only training needs it
    from scipy.sparse.csgraph import connected_components

    # A graph with a node for each row, each distinct row and each sequence of tokens; related rows are connected.
    distinct: dict[tuple[str, ...], int] = {}
    equal = [distinct.setdefault(tuple(text.lower() for text in own), len(distinct)) for own in texts]
    count = len(texts) + len(distinct)
    edges = [np.stack([np.arange(len(texts)), len(texts) + np.array(equal, np.int64)], axis=1)]
    contained = np.zeros(len(texts), dtype=np.bool_)
    for tokens, length in _token_arrays(texts):
        contained |= tokens.contained(length, len(texts))
        rows, hashes = tokens.sequences(length)
        _, sequence = np.unique(hashes, return_inverse=True)
        pairs = np.unique(np.stack([rows, sequence], axis=1), axis=0)  # [N,2] each row with each of its sequences
        shared = np.bincount(pairs[:, 1], minlength=1)
        edges.append(pairs[shared[pairs[:, 1]] <= _COMMON] + [0, count])
        count += len(shared)
    ends = np.concatenate(edges)  # [N,2]
    graph = coo_matrix((np.ones(len(ends), dtype=np.bool_), (ends[:, 0], ends[:, 1])), shape=(count, count))
    _, groups = connected_components(graph, directed=False)
    return groups[: len(texts)].astype(np.int64), contained


def _token_arrays(texts: Sequence[Sequence[str]]) -> Iterator[tuple[_Tokens, int]]:
    """Yield words of spaced texts and characters of unspaced ones, with the length of sequences that relate rows."""
    plain = [(row, text.lower()) for row, own in enumerate(texts) for text in own if text]
    unspaced = [is_mostly_unspaced(text) for _, text in plain]
    words = [(row, text.split()) for (row, text), is_unspaced in zip(plain, unspaced, strict=True) if not is_unspaced]
    characters = [(row, list(text)) for (row, text), is_unspaced in zip(plain, unspaced, strict=True) if is_unspaced]
    yield _Tokens.of(words), _WORDS
    yield _Tokens.of(characters), _CHARACTERS


@dataclass(frozen=True)
class _Tokens:
    """The words or characters of all texts in one sequence.

    Attributes:
        ids: id of each token [N].
        rows: its row [N].
        texts: its text [N].
        lengths: number of tokens in its text [N].
    """

    ids: _Hashes
    rows: Ints
    texts: Ints
    lengths: Ints

    @classmethod
    def of(cls, texts: Sequence[tuple[int, Sequence[str]]]) -> _Tokens:
        """Number the tokens of texts, which are given with their rows."""
        known: dict[str, int] = {}
        ids = [known.setdefault(token, len(known) + 1) for _, tokens in texts for token in tokens]
        sizes = [len(tokens) for _, tokens in texts]
        rows, numbers, lengths = (
            np.repeat(np.array(values, np.int64), sizes) for values in ([r for r, _ in texts], range(len(texts)), sizes)
        )
        return cls(np.array(ids, np.uint64), rows, numbers, lengths)

    def sequences(self, length: int) -> tuple[Ints, _Hashes]:
        """Return the row and the hash of each sequence of this length inside one text."""
        starts = self._starts(length)
        return self.rows[starts], self._hashes(starts, length)

    def contained(self, length: int, count: int) -> npt.NDArray[np.bool_]:
        """Return True for each of `count` rows that has a text shorter than `length` inside another text."""
        contained = np.zeros(count, dtype=np.bool_)
        for short in range(1, length):
            starts = self._starts(short)
            hashes, is_whole = self._hashes(starts, short), self.lengths[starts] == short
            contained[self.rows[starts][is_whole & np.isin(hashes, hashes[~is_whole])]] = True
        return contained

    def _starts(self, length: int) -> Ints:
        """Return the starts of all sequences of this length inside one text."""
        last = max(0, len(self.ids) - length + 1)
        return np.flatnonzero(self.texts[:last] == self.texts[length - 1 :]) if last else np.zeros(0, np.int64)

    def _hashes(self, starts: Ints, length: int) -> _Hashes:
        hashes = np.zeros(len(starts), np.uint64)
        for step in range(length):
            hashes = (hashes ^ self.ids[starts + step]) * _HASH_FACTOR
            hashes ^= hashes >> np.uint64(29)
        return hashes
