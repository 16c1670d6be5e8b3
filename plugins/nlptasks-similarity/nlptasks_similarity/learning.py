"""What a head learns, and how well it does: scores, or which text belongs to which.

Letters: T texts of a batch, P pairs, K texts to choose from, E width of an embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nlptasks import Floats, Ints

_Doubles = npt.NDArray[np.float64]

_CUTOFFS = (1, 5, 10)
_BLOCK = 1024
"""Pairs that are ranked at a time: memory stays flat."""


@dataclass(frozen=True)
class Texts:
    """The texts of a batch, side by side where they are of one example.

    Attributes:
        vectors: their embeddings, of length 1 [T,E].
        first: which are the first of their example [T].
        second: which are the second [T].
        negative: which are unlike the first [T].
        given: further features of their examples, by name [T,...].
    """

    vectors: Tensor
    first: Tensor
    second: Tensor
    negative: Tensor
    given: Mapping[str, Tensor]


class Objective(Protocol):
    """What is learned from pairs, and measured of them."""

    main_metric: str
    given: tuple[str, ...]
    """The names of its features."""

    def features(self, texts: Sequence[str], target: float | None) -> dict[str, Ints | Floats]:
        """What the loss needs of an example, the same for all of its windows."""

    def loss(self, texts: Texts, *, scale: float) -> tuple[Tensor, Tensor]:
        """The loss of a batch, as a sum, and the count that it is a sum over: scalars."""

    def metrics(self, examples: Sequence[Any], results: Sequence[Any]) -> dict[str, float]:
        """The metrics of results against the gold answers."""


class _Cosine:
    """The cosine of two texts is to be their score."""

    main_metric = "spearman"
    given: tuple[str, ...] = ("target",)

    def features(self, texts: Sequence[str], target: float | None) -> dict[str, Ints | Floats]:
        return {"target": np.array([0.0 if target is None else target], dtype=np.float32)}

    def loss(self, texts: Texts, *, scale: float) -> tuple[Tensor, Tensor]:
        """The squared error of the cosine."""
        cosines = (texts.vectors[texts.first] * texts.vectors[texts.second]).sum(1)  # [P]
        targets = texts.given["target"][texts.first, 0]  # [P]
        return (cosines - targets).square().sum(), texts.first.sum()

    def metrics(self, examples: Sequence[Any], results: Sequence[Any]) -> dict[str, float]:
        """How far cosines go with scores, by their order and in a line; pairs that have no cosine are left out."""
        from scipy.stats import rankdata  # heavy, and only measuring needs it

        pairs = zip(examples, results, strict=True)
        known = [(example.score, result.score) for example, result in pairs if result.score is not None]
        scores, cosines = np.array(known, dtype=np.float64).reshape(-1, 2).T  # [P], [P]
        return {
            "spearman": _correlation(rankdata(scores), rankdata(cosines)),
            "pearson": _correlation(scores, cosines),
        }


class _Ranking:
    """The second text is to be nearer to the first than any other is."""

    main_metric = "mrr"
    given: tuple[str, ...] = ("keys",)
    metric_names: ClassVar = ("mrr", *(f"recall_at_{cutoff}" for cutoff in _CUTOFFS))

    def features(self, texts: Sequence[str], target: float | None) -> dict[str, Ints | Floats]:
        """A number for each of three texts, 0 where there is no third, by which equal texts are known."""
        keys = [_number(_key(text)) for text in texts]
        return {"keys": np.array([*keys, 0][:3], dtype=np.int64)}

    def loss(self, texts: Texts, *, scale: float) -> tuple[Tensor, Tensor]:
        """The cross entropy of the second text among all that are no first ones, and of the first text among these."""
        keys = texts.given["keys"][texts.first]  # [P,3]
        others = texts.given["keys"][texts.negative][:, 2]  # [K-P]
        first = texts.vectors[texts.first]  # [P,E]
        choices = torch.cat([texts.vectors[texts.second], texts.vectors[texts.negative]])  # [K,E]
        logits = scale * first @ choices.T  # [P,K]
        right = _belongs(keys, torch.cat([keys[:, 1], others]))  # [P,K]
        right.fill_diagonal_(fill_value=False)  # what a pair is about
        logits = logits.masked_fill(right, -torch.inf)
        pairs = torch.arange(len(first), device=first.device)  # [P]
        there = nn.functional.cross_entropy(logits, pairs, reduction="sum")
        back = nn.functional.cross_entropy(logits[:, : len(first)].T, pairs, reduction="sum")
        return (there + back) / 2, texts.first.sum()

    def metrics(self, examples: Sequence[Any], results: Sequence[Any]) -> dict[str, float]:
        """How far up each second text stands among all second texts, by their cosines with the first."""
        ranks = _ranks(examples, results)  # [P]
        found = [np.mean(1 / ranks), *(np.mean(ranks <= cutoff) for cutoff in _CUTOFFS)]
        return {name: float(value) for name, value in zip(self.metric_names, found, strict=True)}


COSINE, RANKING = _Cosine(), _Ranking()


def _belongs(keys: Tensor, choices: Tensor) -> Tensor:
    """Which of the choices is right for which pair's first text, by any pair of the batch [P,K].

    Args:
        keys: of the texts of each pair [P,3].
        choices: keys of the texts to choose from [K].
    """
    same_first = keys[:, None, 0] == keys[None, :, 0]  # [P,P]
    is_second = keys[:, None, 1] == choices[None, :]  # [P,K]
    return (same_first.float() @ is_second.float()) > 0  # [P,K]


def _key(text: str) -> str:
    """What texts have in common that differ in case and white space alone."""
    return " ".join(text.casefold().split())


def _number(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=7).digest())


def _correlation(one: _Doubles, two: _Doubles) -> float:
    """Pearson's; 0 if a side is all the same, or one number."""
    if len(one) < 2 or not one.std() or not two.std():
        return 0.0
    return float(np.corrcoef(one, two)[0, 1])


def _ranks(examples: Sequence[Any], results: Sequence[Any]) -> _Doubles:
    """The rank, from 1, of each pair's second text among the distinct second texts; infinite for a pair without cosine [P].

    Others that are right for the same first text do not count, and whatever is as near as the right one stands before it: so
    embeddings that are all alike find nothing.
    """
    ranks = np.full(len(examples), np.inf)  # [P]
    known = [number for number, result in enumerate(results) if result.vectors is not None]
    if not known:
        return ranks
    firsts, seconds = ([_key(examples[number].texts[part]) for number in known] for part in (0, 1))
    columns = {key: column for column, key in enumerate(dict.fromkeys(seconds))}
    own = np.array([columns[key] for key in seconds])  # [P]
    right: dict[str, list[int]] = {}
    for first, column in zip(firsts, own.tolist(), strict=True):
        right.setdefault(first, []).append(column)
    vectors = np.stack([results[number].vectors for number in known])  # [P,2,E]
    choices = vectors[np.unique(own, return_index=True)[1], 1]  # [K,E]
    for start in range(0, len(known), _BLOCK):
        block = slice(start, start + _BLOCK)
        cosines = vectors[block, 0] @ choices.T  # [p,K]
        for row, (first, column) in enumerate(zip(firsts[block], own[block], strict=True)):
            is_near = cosines[row] >= cosines[row, column]  # [K]
            is_near[right[first]] = False
            ranks[known[start + row]] = 1 + is_near.sum()
    return ranks
