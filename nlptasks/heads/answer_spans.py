"""The spans of a context that may be answers, with their scores, merged from overlapping windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from nlptasks.errors import ModelError
from nlptasks.metrics.calibration import checked
from nlptasks.text.words import is_blank
from nlptasks.types import SECOND, SPECIAL, Floats, Ints, Outputs, Span, Window

START_LOGITS, END_LOGITS = "start_logits", "end_logits"
"""Names of the outputs [S]."""


@dataclass(frozen=True)
class AnswerSpans:
    """All spans of a context. The score of each one is from the window where it is farthest from an edge.

    Attributes:
        logits: score of the span from token i to token i + k, relative to the score of no answer, at [i,k]: [n,L].
        offsets: code points of each token of the context [n,2].
    """

    logits: Floats
    offsets: Ints

    @classmethod
    def merged(cls, context: str, windows: Sequence[Window], outputs: Sequence[Outputs], longest: int) -> AnswerSpans:
        """Return the spans of at most `longest` tokens. Spans that begin or end with an invisible token get -inf."""
        parts = [answer_tokens(window) for window in windows]
        size = max((window.begin + len(own) for window, (own, _) in zip(windows, parts, strict=True)), default=0)
        longest = max(1, min(longest, size))
        logits, distance = np.full((size, longest), -np.inf, np.float32), np.full((size, longest), -1)  # [n,L]
        offsets = np.zeros((size, 2), np.int64)
        for window, (content, null), output in zip(windows, parts, outputs, strict=True):
            n = len(content)
            start, end = (checked(output[name])[content] - output[name][null] for name in (START_LOGITS, END_LOGITS))
            blank = [is_blank(context[left:right]) for left, right in window.offsets[content]]
            start[blank] = end[blank] = -np.inf
            beyond = np.full(longest - 1, -np.inf, np.float32)
            sums = start[:, None] + sliding_window_view(np.append(end, beyond), longest) if n else logits[:0]  # [n,L]
            first, length = np.arange(n)[:, None], np.arange(longest)
            far = np.minimum(first + size * window.opens, n - 1 - first - length + size * window.closes)
            own = slice(window.begin, window.begin + n)
            better = far > distance[own]
            logits[own], distance[own] = np.where(better, sums, logits[own]), np.maximum(far, distance[own])
            offsets[own] = window.offsets[content]
        return cls(logits, offsets)

    def index(self, span: Span) -> Span | None:
        """Return the index in `logits` of a span in code points; None if it is too long or has no token."""
        tokens = tokens_of(span, self.offsets)
        if tokens is None or tokens[1] - tokens[0] >= self.logits.shape[1]:
            return None
        return tokens[0], tokens[1] - tokens[0]


def answer_tokens(window: Window) -> tuple[Ints, int]:
    """Return the indices of the tokens of the context, and of the token that stands for no answer.

    Raises:
        ModelError: there is no special token.
    """
    special = np.flatnonzero(window.parts == SPECIAL)
    if not len(special):
        problem = "puts no special token around a question and its context, for 'no answer' to point to"
        raise ModelError("tokenizer", problem, "use a backbone whose tokenizer.json does")
    return np.flatnonzero(window.parts == SECOND), int(special[0])


def tokens_of(span: Span, offsets: Ints) -> Span | None:
    """Return the first and the last token that overlap a span in code points; None if none does.

    Args:
        span: a span in code points.
        offsets: code points of the tokens [n,2].
    """
    inside = np.flatnonzero((offsets[:, 1] > span[0]) & (offsets[:, 0] < span[1]))
    return (int(inside[0]), int(inside[-1])) if len(inside) else None


def is_whole(span: Span, window: Window, content: Ints) -> bool:
    """Return True if no part of a span in code points is missing from a window.

    Args:
        span: a span of the context in code points.
        window: a window that has a part of it.
        content: indices of the tokens of the context in the window.
    """
    begins = window.opens or window.offsets[content[0], 0] <= span[0]
    return bool(begins and (window.closes or window.offsets[content[-1], 1] >= span[1]))
