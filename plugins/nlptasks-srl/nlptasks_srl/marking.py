"""The sentence of a predicate, with a marker before and after the predicate.

The predicate is marked in the text itself, so that any backbone sees it. Given words are one sentence. A text is split into
sentences: roles end there, and otherwise a long text would be read as a whole for each of its predicates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nlptasks import IGNORED, Floats, Ints, Outputs, Span, Window, words_in

_STOP = re.compile(r"[.!?\u2026\u3002\uff01\uff1f]+")
_CLOSING = re.compile(r"[\"'\u201d\u2019\u00bb)\]}]+")
_REACH = 150
"""Words on each side of a predicate that are read for its roles."""
_EMPTY_LINE = re.compile(r"\n\s*\n")


@dataclass(frozen=True, eq=False)
class Clause:
    """A sentence with one marked word that is, or may be, a predicate.

    Attributes:
        first: index of its first word in the text.
        at: index of the marked word in the sentence.
        source: the text that the backbone reads.
        places: code points of its words there, without the markers [W,2].
    """

    first: int
    at: int
    source: str
    places: Ints

    def shows(self, window: Window) -> tuple[Ints, Ints]:
        """Return the words with a token in a window, and the first token of each [W'].

        There are none if the window does not show the marked word, since then nothing is known of its roles.
        """
        words, tokens = words_in(self.places, window)
        return (words, tokens) if self.at in words else (words[:0], tokens[:0])


def mark(text: str, places: Sequence[Span], at: int, markers: tuple[str, str]) -> tuple[str, Ints]:
    """Mark a word in a text.

    Args:
        text: the text.
        places: code points of its words.
        at: index of the word.
        markers: the words before and after it, separated by a space.

    Returns:
        The marked text, and the code points of the same words in it [W,2].
    """
    before, after = f"{markers[0]} ", f" {markers[1]}"
    start, end = places[at]
    moved = np.array(places, dtype=np.int64)  # [W,2]
    moved[at:] += len(before)
    moved[at + 1 :] += len(after)
    return f"{text[:start]}{before}{text[start:end]}{after}{text[end:]}", moved


def clause_of(text: str, places: Sequence[Span], sentence: Span, at: int, markers: tuple[str, str]) -> Clause:
    """Return the clause of a word.

    Args:
        text: the text.
        places: code points of its words.
        sentence: the word's sentence, as a span of words.
        at: index of the word in the text.
        markers: as for `mark`.
    """
    first, after = sentence
    begin = places[first][0]
    own = [(start - begin, end - begin) for start, end in places[first:after]]
    source, moved = mark(text[begin : places[after - 1][1]], own, at - first, markers)
    return Clause(first, at - first, source, moved)


def around(sentence: Span, at: int) -> Span:
    """Return the part of a sentence that is read for the roles of a word, so that the cost of a text without stops is bounded.

    Args:
        sentence: the sentence, as a span of words.
        at: index of the word.
    """
    return max(sentence[0], at - _REACH), min(sentence[1], at + _REACH + 1)


def sentences(text: str, places: Sequence[Span]) -> list[Span]:
    """Split a text into sentences, which are spans of words.

    A sentence ends at an empty line, and at stops (with closing quotes and brackets) unless a lower-case letter follows.
    """
    starts = [0]
    ended = False
    for number in range(1, len(places)):
        before, here = text[slice(*places[number - 1])], text[slice(*places[number])]
        between = text[places[number - 1][1] : places[number][0]]
        ended = bool(_STOP.fullmatch(before)) or (ended and bool(_CLOSING.fullmatch(before)))
        goes_on = here[0].islower() or (not between and _CLOSING.fullmatch(here))
        if _EMPTY_LINE.search(between) or (ended and not goes_on):
            starts.append(number)
            ended = False
    return list(zip(starts, [*starts[1:], len(places)], strict=True)) if places else []


def word_logits(clause: Clause, windows: Sequence[Window], outputs: Sequence[Outputs]) -> tuple[Ints, Floats]:
    """Return the words that were read, and their logits from the window where each is farthest from a cut.

    Args:
        clause: the clause.
        windows: its windows.
        outputs: ``logits`` [S,C] for each window.

    Returns:
        Indices of the words in the clause, in order [W'], and their logits [W',C].
    """
    chosen = np.zeros((len(clause.places), outputs[0]["logits"].shape[-1]), dtype=np.float32)  # [W,C]
    distance = np.full(len(clause.places), -1, dtype=np.int64)  # [W] tokens to the nearest cut
    for window, output in zip(windows, outputs, strict=True):
        words, tokens = clause.shows(window)  # [W']
        size = len(window)
        to_left = tokens + size * window.opens  # an edge of the text is no cut
        to_right = size - 1 - tokens + size * window.closes
        here = np.minimum(to_left, to_right)
        better = here > distance[words]
        distance[words[better]] = here[better]
        chosen[words[better]] = output["logits"][tokens[better]]
    read = np.flatnonzero(distance >= 0)
    return read, chosen[read]


def word_labels(clause: Clause, classes: Ints, window: Window) -> Ints:
    """Return the class of each token that is the first of a word, `IGNORED` for other tokens [S].

    Args:
        clause: the clause.
        classes: the class of each of its words [W].
        window: one of its windows.
    """
    labels = np.full(len(window), IGNORED, dtype=np.int64)
    words, tokens = clause.shows(window)
    labels[tokens] = classes[words]
    return labels


def by_input(windows: Sequence[Window], outputs: Sequence[Outputs]) -> list[tuple[list[Window], list[Outputs]]]:
    """Return the windows and outputs of each model input of an example."""
    found: list[tuple[list[Window], list[Outputs]]] = []
    for window, output in zip(windows, outputs, strict=True):
        if window.opens:
            found.append(([], []))
        found[-1][0].append(window)
        found[-1][1].append(output)
    return found
