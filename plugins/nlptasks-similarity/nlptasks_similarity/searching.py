"""Search by meaning: texts are embedded once, and each query is compared with all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np

from nlptasks import Floats, Ints, Result, Row, UsageError, did_you_mean, listing, quote
from nlptasks_similarity.head import SimilarityHead

if TYPE_CHECKING:
    from nlptasks import Pipeline

_BLOCK = 16_384
"""Texts that are compared with a query at a time."""
_QUERIES = 64
"""Queries that are compared with them together. Both limits keep memory flat."""


@dataclass(frozen=True)
class Hit(Result):
    """A text that was found.

    Attributes:
        index: its index among the texts.
        text: the text.
        score: the cosine of its embedding and the query's, in -1..1.
    """

    index: int
    text: str
    score: float


class Search:
    """Texts that can be searched by meaning.

    >>> index = Search(pipe, ["The cat sleeps.", "Prices have risen again."])
    >>> index.search("inflation", top_k=1)

    Args:
        pipe: a pipeline with a head for similarity; other heads are not run.
        texts: the texts to search, at least one; they are embedded lazily and kept.
        head: the head's name, if the pipeline has several heads for similarity.

    Attributes:
        texts: the texts.
        vectors: embeddings of length 1 of those that have tokens [n,E].

    Raises:
        UsageError: there is no text, or no such head.
        DataError: a text is not a string.
    """

    def __init__(self, pipe: Pipeline, texts: Iterable[str], *, head: str | None = None) -> None:
        if isinstance(texts, str):
            raise UsageError("Search", f"got one text, {quote(texts)}", "pass a list of texts")
        self._pipe, self._head = pipe, _head_of(pipe, head)
        kept: list[str] = []
        rows = list(self._embedded(_recorded(texts, kept), name="text"))
        if not kept:
            raise UsageError("Search", "got no texts", "pass at least one")
        self.texts: Sequence[str] = tuple(kept)
        self._numbers = [number for number, row in enumerate(rows) if row is not None]
        found = [row for row in rows if row is not None]
        self.vectors: Floats = np.stack(found) if found else np.zeros((0, 0), dtype=np.float32)  # [n,E]

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def search(self, query: str, *, top_k: int = ...) -> list[Hit]: ...  # type: ignore[overload-overlap]

    @overload
    def search(self, query: Iterable[str], *, top_k: int = ...) -> list[list[Hit]]: ...

    def search(self, query: str | Iterable[str], *, top_k: int = 5) -> list[Hit] | list[list[Hit]]:
        """Return the texts that are nearest to a query, the nearest first; for several queries a list for each.

        Args:
            query: a text, or several texts. A text without tokens finds nothing.
            top_k: the most texts to return.

        Raises:
            UsageError: `top_k` is below 1.
            DataError: a query is not a string.
        """
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise UsageError("top_k", f"is {quote(top_k)}", "pass a whole number of at least 1")
        if isinstance(query, str):
            return self._hits([query], top_k)[0]
        return self._hits(query, top_k)

    def _hits(self, queries: Iterable[str], top_k: int) -> list[list[Hit]]:
        rows = list(self._embedded(queries, name="query"))
        hits: list[list[Hit]] = [[] for _ in rows]
        known = [(number, row) for number, row in enumerate(rows) if row is not None]
        for start in range(0, len(known), _QUERIES) if self._numbers else ():
            numbers, vectors = zip(*known[start : start + _QUERIES], strict=True)
            for number, (places, scores) in zip(numbers, self._nearest(np.stack(vectors), top_k), strict=True):
                hits[number] = [self._hit(*found) for found in zip(places.tolist(), scores.tolist(), strict=True)]
        return hits

    def _hit(self, place: int, score: float) -> Hit:
        number = self._numbers[place]
        return Hit(number, self.texts[number], min(1.0, max(-1.0, score)))  # rounding may leave the range

    def _nearest(self, queries: Floats, top_k: int) -> Iterator[tuple[Ints, Floats]]:
        """Return, for each query [q,E], rows and cosines of the nearest embeddings; equal cosines keep the order of the texts."""
        places = np.zeros((len(queries), 0), dtype=np.int64)  # [q,k]
        scores = np.zeros((len(queries), 0), dtype=np.float32)  # [q,k]
        for start in range(0, len(self.vectors), _BLOCK):
            block = self.vectors[start : start + _BLOCK]  # [b,E]
            here = np.broadcast_to(np.arange(start, start + len(block)), (len(queries), len(block)))  # [q,b]
            places, scores = np.hstack([places, here]), np.hstack([scores, queries @ block.T])  # [q,k+b]
            order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]  # [q,k]
            places, scores = np.take_along_axis(places, order, axis=1), np.take_along_axis(scores, order, axis=1)
        yield from zip(places, scores, strict=True)

    def _embedded(self, texts: Iterable[str], *, name: str) -> Iterator[Floats | None]:
        """Return the embedding of each text [E], lazily; None for a text without tokens."""
        rows = (Row({"text": text}, f"{name} {number}") for number, text in enumerate(texts, start=1))
        for found in self._pipe.predict(rows, heads=[self._head]):
            values = found.results[self._head].values
            yield np.array(values, dtype=np.float32) if values else None


def _head_of(pipe: Pipeline, wanted: str | None) -> str:
    """Return the name of the head to use.

    Raises:
        UsageError: there is no head for similarity, or none of this name, or several of them and no name.
    """
    able = [name for name, head in pipe.heads.items() if isinstance(head, SimilarityHead)]
    if not able:
        problem = f"has no head for similarity, only {listing(pipe.heads)}"
        raise UsageError("the pipeline", problem, 'open one: pipeline("similarity", model="minilm")')
    if wanted is None and len(able) > 1:
        raise UsageError("the pipeline", f"has {len(able)} heads for similarity", f"name one: {listing(able)}")
    if wanted is not None and wanted not in able:
        raise UsageError(f"head {wanted!r}", "is no head for similarity", did_you_mean(wanted, able))
    return wanted or able[0]


def _recorded(texts: Iterable[str], kept: list[str]) -> Iterator[str]:
    """Yield the texts, and append each to a list."""
    for text in texts:
        kept.append(text)
        yield text
