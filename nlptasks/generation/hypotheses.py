"""Hypotheses of a search, and generated texts. Imports neither torch nor transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nlptasks.types import IGNORED, Outputs, Result


@dataclass(frozen=True)
class GeneratedText(Result):
    """A generated text.

    Attributes:
        text: the text.
        score: geometric mean of the probabilities of its tokens, in 0..1 (the mean over the windows if there were several); None
            for a text without tokens.
        truncated: True if a part of the input was not read, or if there was no room to finish the text.
    """

    text: str
    score: float | None
    truncated: bool


Generated = GeneratedText | list[GeneratedText]
"""A result: the best text, or a list of the best ones if several were asked for."""


def best(result: Generated) -> GeneratedText:
    """Return the best text of a result."""
    return result[0] if isinstance(result, list) else result


class Hypothesis(NamedTuple):
    """An answer to one source.

    Attributes:
        tokens: its tokens, without the prompt and the end token.
        log_probability: log-probability of these tokens, and of the end token unless it was forced; for beam search after the
            options have changed it.
        ended: True if it ended by itself, False if there was no more room.
    """

    tokens: tuple[int, ...]
    log_probability: float
    ended: bool

    @property
    def mean_probability(self) -> float:
        """Geometric mean of the probabilities of its tokens, in 0..1."""
        return math.exp(self.log_probability / max(1, len(self.tokens) + int(self.ended)))


def as_outputs(hypotheses: Sequence[Hypothesis]) -> Outputs:
    """Return the hypotheses of one source as arrays, which is what `decode` of a head gets."""
    longest = max(len(one.tokens) for one in hypotheses)
    tokens = np.full((len(hypotheses), longest), IGNORED, dtype=np.int64)
    for row, one in zip(tokens, hypotheses, strict=True):
        row[: len(one.tokens)] = one.tokens
    return {
        "tokens": tokens,
        "log_probability": np.array([one.log_probability for one in hypotheses]),
        "ended": np.array([one.ended for one in hypotheses]),
    }


def hypotheses_in(outputs: Outputs) -> list[Hypothesis]:
    """Return the hypotheses that `as_outputs` wrote, the best first."""
    return [
        Hypothesis(tuple(int(token) for token in tokens if token != IGNORED), float(log), bool(ended))
        for tokens, log, ended in zip(outputs["tokens"], outputs["log_probability"], outputs["ended"], strict=True)
    ]
