"""What the backbone reads for a predicate: its sentence, with a marker before and behind it.

The predicate is shown in the text itself, so that any backbone sees it. Given words are one sentence; a text is divided where a
sentence ends, since roles do not go beyond, and a long text would be read as a whole for each of its predicates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nlptasks import IGNORED, Floats, Ints, Outputs, Window, words_in

Place = tuple[int, int]
"""Code points of a word: the first, and that behind the last."""

_STOP = re.compile(r"[.!?\u2026\u3002\uff01\uff1f]+")
_CLOSING = re.compile(r"[\"'\u201d\u2019\u00bb)\]}]+")
_REACH = 150
"""Words on each side of a predicate that its roles are looked for in."""
_EMPTY_LINE = re.compile(r"\n\s*\n")


@dataclass(frozen=True, eq=False)
class Clause:
    """A sentence with one word marked that is, or may be, a predicate.

    Attributes:
        first: the number of its first word among those of the text.
        at: the number of the marked word among its own.
        source: what the backbone reads.
        places: code points of its words there, without the markers [W,2].
    """

    first: int
    at: int
    source: str
    places: Ints

    def shows(self, window: Window) -> tuple[Ints, Ints]:
        """The words that have a token in a window and each one's first token [W']; none if the marked word is not there.

        Where it is not to be seen, nothing can be said of its roles.
        """
        words, tokens = words_in(self.places, window)
        return (words, tokens) if self.at in words else (words[:0], tokens[:0])


def mark(text: str, places: Sequence[Place], at: int, markers: tuple[str, str]) -> tuple[str, Ints]:
    """A text with one of its words marked, and where its words then stand.

    Args:
        text: the text.
        places: code points of its words.
        at: number of the word, from 0.
        markers: what is put before it and behind it, with a space between.

    Returns:
        The text, and the code points of the same words [W,2].
    """
    before, behind = f"{markers[0]} ", f" {markers[1]}"
    start, end = places[at]
    moved = np.array(places, dtype=np.int64)  # [W,2]
    moved[at:] += len(before)
    moved[at + 1 :] += len(behind)
    return f"{text[:start]}{before}{text[start:end]}{behind}{text[end:]}", moved


def clause_of(
    text: str, places: Sequence[Place], sentence: tuple[int, int], at: int, markers: tuple[str, str]
) -> Clause:
    """The clause of a word.

    Args:
        text: the text.
        places: code points of its words.
        sentence: number of the first word of the word's sentence, and of the first behind it.
        at: number of the word in the text.
        markers: as for `mark`.
    """
    first, behind = sentence
    begin = places[first][0]
    own = [(start - begin, end - begin) for start, end in places[first:behind]]
    source, moved = mark(text[begin : places[behind - 1][1]], own, at - first, markers)
    return Clause(first, at - first, source, moved)


def around(sentence: tuple[int, int], at: int) -> tuple[int, int]:
    """The part of a sentence that a word's roles are looked for in: a text without stops is not read as a whole for each of them.

    Args:
        sentence: number of its first word, and of the first behind it.
        at: number of the word.
    """
    return max(sentence[0], at - _REACH), min(sentence[1], at + _REACH + 1)


def sentences(text: str, places: Sequence[Place]) -> list[tuple[int, int]]:
    """The sentences of a text, each as its first word and that behind its last.

    A sentence ends at an empty line, and at a word of stops (with what it closes) unless a small letter follows.
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
    """The words that were read, and their logits, each from the window in which it stands farthest from a cut.

    Args:
        clause: the clause.
        windows: its windows.
        outputs: for each, ``logits`` [S,C].

    Returns:
        The words' numbers in the clause, in order [W'], and their logits [W',C].
    """
    chosen = np.zeros((len(clause.places), outputs[0]["logits"].shape[-1]), dtype=np.float32)  # [W,C]
    distance = np.full(len(clause.places), -1, dtype=np.int64)  # [W] tokens to the nearest cut
    for window, output in zip(windows, outputs, strict=True):
        words, tokens = clause.shows(window)  # [W']
        size = len(window)
        to_left = tokens + size * window.opens  # an edge of the text itself is no cut
        to_right = size - 1 - tokens + size * window.closes
        here = np.minimum(to_left, to_right)
        better = here > distance[words]
        distance[words[better]] = here[better]
        chosen[words[better]] = output["logits"][tokens[better]]
    read = np.flatnonzero(distance >= 0)
    return read, chosen[read]


def word_labels(clause: Clause, classes: Ints, window: Window) -> Ints:
    """The class of each token that is the first of a word, `IGNORED` for the others [S].

    Args:
        clause: the clause.
        classes: of each of its words [W].
        window: one of its windows.
    """
    labels = np.full(len(window), IGNORED, dtype=np.int64)
    words, tokens = clause.shows(window)
    labels[tokens] = classes[words]
    return labels


def by_source(windows: Sequence[Window], outputs: Sequence[Outputs]) -> list[tuple[list[Window], list[Outputs]]]:
    """The windows of several sources, and their outputs, source by source."""
    found: list[tuple[list[Window], list[Outputs]]] = []
    for window, output in zip(windows, outputs, strict=True):
        if window.opens:
            found.append(([], []))
        found[-1][0].append(window)
        found[-1][1].append(output)
    return found
