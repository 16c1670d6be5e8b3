"""Tag schemes for labelled spans of words: detection, conversion between tags and spans, Viterbi decoding.

A tag is ``O``, or a prefix and a label, like ``B-PER``. Each scheme uses the prefixes in its own way:

scheme   | first word           | inside | last | single word | two adjacent spans: `A A` and `A`
iob1     | I; B after same label| I      | I    | I           | I-A I-A B-A
iob2     | B                    | I      | I    | B           | B-A I-A B-A
bioes    | B                    | I      | E    | S           | B-A E-A S-A   (also BILOU, BMES and BMEWO, with other letters)
io       | I, or no prefix      | I      | I    | I           | not possible: they become one span
lenient  | B; I after no span   | I      | I    | B           | B-A I-A B-A   (for foreign checkpoints: every tag is legal)
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nlptasks.types import Floats, Ints

OUTSIDE = "O"
_BEGIN, _INSIDE, _END, _SINGLE = "B", "I", "E", "S"
_PREFIXES = {"B": _BEGIN, "I": _INSIDE, "E": _END, "S": _SINGLE, "L": _END, "U": _SINGLE, "M": _INSIDE, "W": _SINGLE}
_ONLY_INSIDE = {"I": _INSIDE}

LabelledSpan = tuple[int, int, str]
"""First word, word after the last, and label."""


class TagError(ValueError):
    """Tags that are illegal in the declared scheme, or in every scheme.

    Args:
        problem: the message.
        sentence: index of the sentence.
        word: index of the word in it.
    """

    def __init__(self, problem: str, *, sentence: int = 0, word: int = 0) -> None:
        super().__init__(problem)
        self.problem, self.sentence, self.word = problem, sentence, word


@dataclass(frozen=True)
class Scheme:
    """One way to write spans as tags.

    Attributes:
        name: its name.
        follows: returns True if a tag may follow another; None is the start or the end of the sentence.
        starts: returns True if a tag starts a span, given the tag before it.
        write: returns the prefixes of a span of n words; `touching` is True if a span of the same label ends right before it.
        prefixes: the letters used as prefixes, and their meaning as B, I, E or S.
        detected: True if `detect_scheme` considers this scheme.
    """

    name: str
    follows: Callable[[Tag | None, Tag | None], bool]
    starts: Callable[[Tag | None, Tag], bool]
    write: Callable[[int, bool], list[str]]
    prefixes: Mapping[str, str] = field(default_factory=lambda: _PREFIXES)
    detected: bool = True


@dataclass(frozen=True)
class Tag:
    """A parsed tag: ``B-PER`` has the prefix B and the label PER; ``O`` has no label."""

    prefix: str
    label: str

    def __str__(self) -> str:
        return f"{self.prefix}-{self.label}" if self.label else OUTSIDE


def parse_tag(tag: str, prefixes: Mapping[str, str] = _PREFIXES) -> Tag:
    """Parse a tag. The prefix becomes B, I, E or S; a tag without prefix gets I."""
    if tag == OUTSIDE:
        return Tag(OUTSIDE, "")
    if len(tag) > 2 and tag[1] in "-_" and tag[0] in prefixes:
        return Tag(prefixes[tag[0]], tag[2:])
    return Tag(_INSIDE, tag)


def parse_tags(tags: Iterable[str], scheme: str) -> Iterator[Tag]:
    """Parse tags of a known scheme: in ``io``, ``E-MAIL`` is a label."""
    prefixes = SCHEMES[scheme].prefixes
    return (parse_tag(tag, prefixes) for tag in tags)


def _same_label(before: Tag | None, tag: Tag | None) -> bool:
    return before is not None and tag is not None and bool(tag.label) and before.label == tag.label


def _iob1_follows(before: Tag | None, tag: Tag | None) -> bool:
    return tag is None or tag.prefix in (OUTSIDE, _INSIDE) or (tag.prefix == _BEGIN and _same_label(before, tag))


def _iob2_follows(before: Tag | None, tag: Tag | None) -> bool:
    return tag is None or tag.prefix in (OUTSIDE, _BEGIN) or (tag.prefix == _INSIDE and _same_label(before, tag))


def _bioes_follows(before: Tag | None, tag: Tag | None) -> bool:
    open_before = before is not None and before.prefix in (_BEGIN, _INSIDE)
    continues = tag is not None and tag.prefix in (_INSIDE, _END)
    return (open_before and _same_label(before, tag)) if continues else not open_before


def _io_follows(before: Tag | None, tag: Tag | None) -> bool:
    return tag is None or tag.prefix in (OUTSIDE, _INSIDE)


def _lenient_starts(before: Tag | None, tag: Tag) -> bool:
    ended = before is not None and before.prefix in (_END, _SINGLE)
    return ended or tag.prefix in (_BEGIN, _SINGLE) or not _same_label(before, tag)


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            "iob2",
            _iob2_follows,
            lambda before, tag: tag.prefix == _BEGIN,
            lambda n, touching: [_BEGIN] + [_INSIDE] * (n - 1),
        ),
        Scheme(
            "bioes",
            _bioes_follows,
            lambda before, tag: tag.prefix in (_BEGIN, _SINGLE),
            lambda n, touching: [_SINGLE] if n == 1 else [_BEGIN] + [_INSIDE] * (n - 2) + [_END],
        ),
        Scheme(
            "io",
            _io_follows,
            lambda before, tag: not _same_label(before, tag),
            lambda n, touching: [_INSIDE] * n,
            prefixes=_ONLY_INSIDE,
        ),
        Scheme(
            "iob1",
            _iob1_follows,
            lambda before, tag: tag.prefix == _BEGIN or not _same_label(before, tag),
            lambda n, touching: [_BEGIN if touching else _INSIDE] + [_INSIDE] * (n - 1),
        ),
        Scheme(
            "lenient",
            lambda before, tag: True,
            _lenient_starts,
            lambda n, touching: [_BEGIN] + [_INSIDE] * (n - 1),
            detected=False,
        ),
    )
}
"""The schemes by name. If tags fit several, the first is used; tags that fit ``io`` and ``iob1`` mean the same spans in both."""


def detect_scheme(sentences: Sequence[Sequence[str]]) -> str:
    """Return the scheme in which all these sentences are legal.

    Raises:
        TagError: there is none; the error names the word at which the last candidate failed.
    """
    possible = [name for name, scheme in SCHEMES.items() if scheme.detected]
    for number, tags in enumerate(sentences):
        parsed = [parse_tag(tag) for tag in tags]
        breaks = {name: _first_break(parsed, name) for name in possible}
        left = [name for name in possible if breaks[name] is None]
        if not left:
            name = max(possible, key=lambda scheme: breaks[scheme] or 0)
            word = breaks[name] or 0
            raise TagError(
                f"{_describe(tags, word)}, which is illegal in {name}, as the tags before are",
                sentence=number,
                word=word,
            )
        possible = left
    return possible[0]


def _first_break(tags: Iterable[Tag], scheme: str) -> int | None:
    """Return the index of the first illegal tag (the last tag if the sentence may not end there), None if all are legal."""
    follows = SCHEMES[scheme].follows
    before: Tag | None = None
    index = 0
    for index, tag in enumerate(tags):
        if not follows(before, tag):
            return index
        before = tag
    return None if before is None or follows(before, None) else index


def spans_of(tags: Sequence[str], scheme: str) -> list[LabelledSpan]:
    """Convert tags to spans.

    Raises:
        TagError: a tag is illegal in this scheme.
    """
    parsed = list(parse_tags(tags, scheme))
    wrong = _first_break(parsed, scheme)
    if wrong is not None:
        raise TagError(f"{_describe(tags, wrong)}, which is illegal in {scheme}", word=wrong)
    starts = SCHEMES[scheme].starts
    spans: list[LabelledSpan] = []
    before: Tag | None = None
    for index, tag in enumerate(parsed):
        if tag.label:
            if starts(before, tag):
                spans.append((index, index + 1, tag.label))
            else:
                spans[-1] = (spans[-1][0], index + 1, tag.label)
        before = tag
    return spans


def tags_of(spans: Iterable[LabelledSpan], length: int, scheme: str) -> list[str]:
    """Convert spans, which must not overlap, to the tags of a sentence of `length` words."""
    tags = [OUTSIDE] * length
    last: LabelledSpan = (0, 0, "")
    for span in sorted(spans):
        start, end, label = span
        touching = last[1] == start and last[2] == label
        tags[start:end] = [f"{prefix}-{label}" for prefix in SCHEMES[scheme].write(end - start, touching)]
        last = span
    return tags


def in_words(words: Sequence[tuple[int, int]], spans: Iterable[LabelledSpan]) -> list[LabelledSpan]:
    """Convert spans of code points to spans of whole words; drop a span without words, or that shares a word with the last.

    Args:
        words: start and end of each word in code points, in order.
        spans: start and end in code points, and labels, in order.
    """
    starts, ends = [start for start, _ in words], [end for _, end in words]
    found: list[LabelledSpan] = []
    for start, end, label in spans:
        first, after = bisect_right(ends, start), bisect_left(starts, end)
        if first < after and (not found or found[-1][1] <= first):
            found.append((first, after, label))
    return found


def scheme_of_classes(tags: Sequence[str]) -> str:
    """Return the scheme to decode a foreign tagger with, given its classes.

    iob1 and iob2 have the same classes, but ``I-A`` after ``O`` is legal only in iob1: so these taggers are ``lenient``.
    """
    prefixes = {tag.prefix for tag in map(parse_tag, tags) if tag.label}
    if prefixes & {_END, _SINGLE}:
        return "bioes"
    return "lenient" if _BEGIN in prefixes else "io"


def tag_set(labels: Iterable[str], scheme: str) -> tuple[str, ...]:
    """Return all tags of these labels, ``O`` first: the classes of a tagger."""
    prefixes = sorted(
        {prefix for n in (1, 3) for touching in (False, True) for prefix in SCHEMES[scheme].write(n, touching)}
    )
    return (OUTSIDE, *(f"{prefix}-{label}" for label in labels for prefix in prefixes))


def labels_of(tags: Iterable[str], scheme: str) -> tuple[str, ...]:
    """Return the labels of these tags, sorted."""
    return tuple(sorted({tag.label for tag in parse_tags(tags, scheme)} - {""}))


class TagDecoder:
    """Viterbi decoder (Forney 1973): finds the best tag sequence that is legal in a scheme.

    Args:
        tags: the classes, in order [C].
        scheme: name of the scheme.
    """

    def __init__(self, tags: Sequence[str], scheme: str) -> None:
        follows = SCHEMES[scheme].follows
        parsed = list(parse_tags(tags, scheme))
        self._start = self._costs([follows(None, tag) for tag in parsed])  # [C]
        self._end = self._costs([follows(tag, None) for tag in parsed])  # [C]
        self._transitions = self._costs([[follows(one, two) for two in parsed] for one in parsed])  # [C,C]

    def best(self, scores: Floats) -> Ints:
        """Return the class of each word [W] in the legal sequence with the highest sum of scores.

        Args:
            scores: log-probabilities of the classes [W,C].
        """
        greedy: Ints = scores.argmax(axis=1)  # [W] nearly always legal, and then the best
        if not len(scores) or self._is_legal(greedy):
            return greedy
        total = scores[0] + self._start  # [C]
        previous = np.zeros(scores.shape, dtype=np.int64)  # [W,C]
        for word in range(1, len(scores)):
            paths = total[:, None] + self._transitions  # [C,C]
            previous[word] = paths.argmax(axis=0)
            total = paths.max(axis=0) + scores[word]
        best = np.zeros(len(scores), dtype=np.int64)
        best[-1] = (total + self._end).argmax()
        for word in range(len(scores) - 1, 0, -1):
            best[word - 1] = previous[word, best[word]]
        return best

    def _is_legal(self, path: Ints) -> bool:
        costs = self._start[path[0]] + self._end[path[-1]] + self._transitions[path[:-1], path[1:]].sum()
        return bool(costs == 0)

    @staticmethod
    def _costs(legal: Sequence[object]) -> npt.NDArray[np.float64]:
        return np.where(np.asarray(legal, dtype=bool), 0.0, -np.inf)


def _describe(tags: Sequence[str], word: int) -> str:
    before = f"after {tags[word - 1]!r}" if word else "at the start"
    return f"tag {tags[word]!r} {before}"
