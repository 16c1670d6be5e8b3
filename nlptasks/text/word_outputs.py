"""Outputs of words: where windows overlap, a word is read in the window in which it is farthest from an edge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nlptasks.text.words import words_in
from nlptasks.types import Floats, Ints, Window


def word_outputs(words: Ints, windows: Sequence[Window], outputs: Sequence[Floats]) -> tuple[Ints, Floats]:
    """Return the indices of the words that have a token [W'], and the outputs at their first tokens [W',C].

    Args:
        words: code points of the words in the text that the backbone reads [W,2].
        windows: the windows of the text.
        outputs: the outputs for the tokens of each window [S,C].
    """
    if not windows:
        return np.zeros(0, dtype=np.int64), np.zeros((0, 1), dtype=np.float32)
    chosen = np.zeros((len(words), outputs[0].shape[-1]), dtype=np.float32)  # [W,C]
    distance = np.full(len(words), -1, dtype=np.int64)
    for window, output in zip(windows, outputs, strict=True):
        words_here, tokens = words_in(words, window)
        far = len(window)
        here = np.minimum(tokens + far * window.opens, far - 1 - tokens + far * window.closes)
        better = here > distance[words_here]
        distance[words_here[better]] = here[better]
        chosen[words_here[better]] = output[tokens[better]]
    kept = np.flatnonzero(distance >= 0)
    return kept, chosen[kept]
