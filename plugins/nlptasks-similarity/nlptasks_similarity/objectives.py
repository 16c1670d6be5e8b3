"""Objectives: what a head learns from pairs of texts, and how it is measured.

Letters: P pairs, K distinct second texts, E width of an embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from nlptasks import Array, Counts, Floats, Metrics

_Doubles = npt.NDArray[np.float64]

_CUTOFFS = (1, 5, 10)
_BLOCK = 1024
"""Pairs that are ranked at a time, so that memory stays flat."""


@dataclass(frozen=True)
class Pair:
    """A gold pair of texts with the head's answer.

    Attributes:
        texts: both texts.
        score: their gold score, None if there is none.
        cosine: the cosine of their embeddings, None if a text has no tokens.
        vectors: both embeddings [2,E] if the head learned without scores; None if a text has no tokens.
    """

    texts: tuple[str, str]
    score: float | None
    cosine: float | None
    vectors: Floats | None


class Objective(Protocol):
    """What is learned and measured.

    Attributes:
        loss: the loss of the network, see `nlptasks.networks.pooled_embedding.PooledEmbedding`.
    """

    loss: ClassVar[str]

    def targets(self, texts: Sequence[str], cosine: float | None) -> dict[str, Array]:
        """Return the target that the loss reads beside ``texts``, the same for all windows of an example."""

    def count(self, pair: Pair) -> Counts:
        """Return what the metrics need of a pair."""

    def metrics(self, counts: Counts) -> Metrics:
        """Return the metrics of merged counts."""


class _Cosine:
    """The cosine of two texts approaches their score."""

    loss: ClassVar[str] = "cosine"

    def targets(self, texts: Sequence[str], cosine: float | None) -> dict[str, Array]:
        return {"cosine": np.array([0.0 if cosine is None else cosine], dtype=np.float32)}

    def count(self, pair: Pair) -> Counts:
        """Return score and cosine as a row; a pair without a cosine is left out."""
        return Counts() if pair.cosine is None else Counts(rows=((pair.score, pair.cosine),))

    def metrics(self, counts: Counts) -> Metrics:
        """Return the rank correlation and the linear correlation of cosines and scores."""
        from scipy.stats import rankdata  # heavy, and only metrics need it

        scores, cosines = np.array(counts.rows, dtype=np.float64).reshape(-1, 2).T  # [P], [P]
        values = {
            "spearman": _correlation(rankdata(scores), rankdata(cosines)),
            "pearson": _correlation(scores, cosines),
        }
        return Metrics(values, main="spearman")


class _Ranking:
    """The second text is nearer to the first text than other texts are."""

    loss: ClassVar[str] = "contrastive"

    def targets(self, texts: Sequence[str], cosine: float | None) -> dict[str, Array]:
        """Return a number for each of three texts, 0 if there is no third one; equal texts have equal numbers."""
        keys = [_number(_key(text)) for text in texts]
        return {"keys": np.array([*keys, 0][:3], dtype=np.int64)}

    def count(self, pair: Pair) -> Counts:
        """Return keys and embeddings of both texts as a row."""
        first, second = pair.texts
        return Counts(rows=((_key(first), _key(second), pair.vectors),))

    def metrics(self, counts: Counts) -> Metrics:
        """Return how high each second text ranks among all second texts, by their cosines with the first text."""
        firsts, seconds, vectors = zip(*counts.rows, strict=True)
        ranks = _ranks(firsts, seconds, vectors)  # [P]
        recalls = {f"recall_at_{cutoff}": float(np.mean(ranks <= cutoff)) for cutoff in _CUTOFFS}
        return Metrics({"mrr": float(np.mean(1 / ranks)), **recalls}, main="mrr")


COSINE, RANKING = _Cosine(), _Ranking()


def _key(text: str) -> str:
    """Return the form in which texts that differ only in case and white space are equal."""
    return " ".join(text.casefold().split())


def _number(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=7).digest())


def _correlation(one: _Doubles, two: _Doubles) -> float:
    """Return Pearson's correlation; 0 if a side is constant or has fewer than two numbers."""
    if len(one) < 2 or not one.std() or not two.std():
        return 0.0
    return float(np.corrcoef(one, two)[0, 1])


def _ranks(firsts: Sequence[str], seconds: Sequence[str], vectors: Sequence[Floats | None]) -> _Doubles:
    """Return the rank, from 1, of each pair's second text among the distinct second texts; infinite without embeddings [P].

    Other right answers to the same first text do not count. Texts that are as near as the right one rank before it, so equal
    embeddings find nothing.

    Args:
        firsts: keys of the first texts [P].
        seconds: keys of the second texts [P].
        vectors: embeddings of both texts [2,E] of each pair, None if a text has no tokens.
    """
    ranks = np.full(len(firsts), np.inf)  # [P]
    known = [(number, own) for number, own in enumerate(vectors) if own is not None]
    if not known:
        return ranks
    numbers = [number for number, _ in known]
    columns = {key: column for column, key in enumerate(dict.fromkeys(seconds[number] for number in numbers))}
    own = np.array([columns[seconds[number]] for number in numbers])  # [p]
    right: dict[str, list[int]] = {}
    for number, column in zip(numbers, own.tolist(), strict=True):
        right.setdefault(firsts[number], []).append(column)
    both = np.stack([pair for _, pair in known])  # [p,2,E]
    candidates = both[np.unique(own, return_index=True)[1], 1]  # [K,E]
    for start in range(0, len(known), _BLOCK):
        block = slice(start, start + _BLOCK)
        cosines = both[block, 0] @ candidates.T  # [block,K]
        for row, (number, column) in enumerate(zip(numbers[block], own[block], strict=True)):
            is_near = cosines[row] >= cosines[row, column]  # [K]
            is_near[right[firsts[number]]] = False
            ranks[number] = 1 + is_near.sum()
    return ranks
