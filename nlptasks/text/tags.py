"""Tag schemes for labelled spans of words: detecting them, tags to spans and back, the best legal tag sequence.

A tag is a prefix and a label, ``B-PER``, or ``O``. Every scheme says the same things with other letters:

scheme   | begins a span     | goes on | ends one | alone | example of two spans side by side, `A A` and `A`
iob1     | I, or B after one | I       | I        | I     | I-A I-A B-A
iob2     | B                 | I       | I        | B     | B-A I-A B-A
bioes    | B                 | I       | E        | S     | B-A E-A S-A   (also BILOU, BMES and BMEWO, by other letters)
io       | I or the label    | I       | I        | I     | cannot be said: one span
lenient  | B, or I after none| I       | I        | B     | B-A I-A B-A   (what others wrote: nothing is illegal)
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
"""First word, word behind the last, label."""


class TagError(ValueError):
    """Tags that no scheme, or not the declared one, can mean.

    Args:
        problem: what was, and what should have been.
        sentence: index of the sentence; `word` the index in it.
    """

    def __init__(self, problem: str, *, sentence: int = 0, word: int = 0) -> None:
        super().__init__(problem)
        self.problem, self.sentence, self.word = problem, sentence, word


@dataclass(frozen=True)
class Scheme:
    """One way to write spans as tags.

    Attributes:
        name: its name.
        follows: whether a tag may stand after another; None stands for the sentence's edge, before or after.
        starts: whether a tag opens a span, given the tag before it.
        write: prefixes for a span of n words; `touching` says that a span with the same label ends right before.
        prefixes: the letters that are prefixes of tags declared to be in this scheme, and what they mean.
        detected: whether tags can be recognized as this scheme's.
    """

    name: str
    follows: Callable[[Tag | None, Tag | None], bool]
    starts: Callable[[Tag | None, Tag], bool]
    write: Callable[[int, bool], list[str]]
    prefixes: Mapping[str, str] = field(default_factory=lambda: _PREFIXES)
    detected: bool = True


@dataclass(frozen=True)
class Tag:
    """One tag, taken apart: ``B-PER`` is prefix B and label PER; ``O`` has no label."""

    prefix: str
    label: str

    def __str__(self) -> str:
        return f"{self.prefix}-{self.label}" if self.label else OUTSIDE


def parse_tag(tag: str, prefixes: Mapping[str, str] = _PREFIXES) -> Tag:
    """A tag with its prefix in the letters B I E S; a tag without prefix is inside: ``PER`` is ``I-PER``."""
    if tag == OUTSIDE:
        return Tag(OUTSIDE, "")
    if len(tag) > 2 and tag[1] in "-_" and tag[0] in prefixes:
        return Tag(prefixes[tag[0]], tag[2:])
    return Tag(_INSIDE, tag)


def parse_tags(tags: Iterable[str], scheme: str) -> Iterator[Tag]:
    """Tags that are known to be in a scheme: in ``io``, ``E-MAIL`` is a label."""
    prefixes = SCHEMES[scheme].prefixes
    return (parse_tag(tag, prefixes) for tag in tags)


def _same(before: Tag | None, tag: Tag | None) -> bool:
    return before is not None and tag is not None and bool(tag.label) and before.label == tag.label


def _iob1_follows(before: Tag | None, tag: Tag | None) -> bool:
    return tag is None or tag.prefix in (OUTSIDE, _INSIDE) or (tag.prefix == _BEGIN and _same(before, tag))


def _iob2_follows(before: Tag | None, tag: Tag | None) -> bool:
    return tag is None or tag.prefix in (OUTSIDE, _BEGIN) or (tag.prefix == _INSIDE and _same(before, tag))


def _bioes_follows(before: Tag | None, tag: Tag | None) -> bool:
    open_before = before is not None and before.prefix in (_BEGIN, _INSIDE)
    goes_on = tag is not None and tag.prefix in (_INSIDE, _END)
    return (open_before and _same(before, tag)) if goes_on else not open_before


def _io_follows(before: Tag | None, tag: Tag | None) -> bool:
    return tag is None or tag.prefix in (OUTSIDE, _INSIDE)


def _lenient_starts(before: Tag | None, tag: Tag) -> bool:
    return tag.prefix in (_BEGIN, _SINGLE) or not _same(before, tag) or (before and before.prefix) in (_END, _SINGLE)


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
            lambda before, tag: not _same(before, tag),
            lambda n, touching: [_INSIDE] * n,
            prefixes=_ONLY_INSIDE,
        ),
        Scheme(
            "iob1",
            _iob1_follows,
            lambda before, tag: tag.prefix == _BEGIN or not _same(before, tag),
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
"""The schemes, the ones to be preferred first where tags fit several (``io`` and ``iob1`` then mean the same spans)."""


def detect_scheme(sentences: Sequence[Sequence[str]]) -> str:
    """The scheme in which all these sentences are legal.

    Raises:
        TagError: there is none; it names the first word at which the last one that fitted so far failed.
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


def first_illegal(tags: Sequence[str], scheme: str) -> int | None:
    """Index of the first tag that cannot stand there (the last one if the sentence may not end so), None if all can."""
    return _first_break(parse_tags(tags, scheme), scheme)


def _first_break(tags: Iterable[Tag], scheme: str) -> int | None:
    follows = SCHEMES[scheme].follows
    before: Tag | None = None
    index = 0
    for index, tag in enumerate(tags):
        if not follows(before, tag):
            return index
        before = tag
    return None if before is None or follows(before, None) else index


def spans_of(tags: Sequence[str], scheme: str) -> list[LabelledSpan]:
    """The spans that legal tags mean.

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
    """Spans, which must not overlap, written as the tags of a sentence of `length` words."""
    tags = [OUTSIDE] * length
    ended: LabelledSpan = (0, 0, "")
    for span in sorted(spans):
        start, end, label = span
        touching = ended[1] == start and ended[2] == label
        tags[start:end] = [f"{prefix}-{label}" for prefix in SCHEMES[scheme].write(end - start, touching)]
        ended = span
    return tags


def in_words(words: Sequence[tuple[int, int]], spans: Iterable[LabelledSpan]) -> list[LabelledSpan]:
    """Spans in code points as spans in whole words; one that has no word, or only words of the one before, is left out.

    Args:
        words: code points of each word, in order.
        spans: code points and labels, in order.
    """
    starts, ends = [start for start, _ in words], [end for _, end in words]
    found: list[LabelledSpan] = []
    for start, end, label in spans:
        first, behind = bisect_right(ends, start), bisect_left(starts, end)
        if first < behind and (not found or found[-1][1] <= first):
            found.append((first, behind, label))
    return found


def scheme_of_classes(tags: Sequence[str]) -> str:
    """The scheme in which a foreign tagger's answers are to be read, by its classes alone.

    ``I-A`` after ``O`` is right in iob1 and wrong in iob2, and their classes are the same: so nothing is taken for illegal.
    """
    prefixes = {tag.prefix for tag in map(parse_tag, tags) if tag.label}
    if prefixes & {_END, _SINGLE}:
        return "bioes"
    return "lenient" if _BEGIN in prefixes else "io"


def tag_set(labels: Iterable[str], scheme: str) -> tuple[str, ...]:
    """Every tag of these labels, ``O`` first: the classes of a tagger."""
    prefixes = sorted(
        {prefix for n in (1, 3) for touching in (False, True) for prefix in SCHEMES[scheme].write(n, touching)}
    )
    return (OUTSIDE, *(f"{prefix}-{label}" for label in labels for prefix in prefixes))


def labels_of(tags: Iterable[str], scheme: str) -> tuple[str, ...]:
    """The labels of these tags, sorted."""
    return tuple(sorted({tag.label for tag in parse_tags(tags, scheme)} - {""}))


class TagDecoder:
    """The best legal tag sequence (Viterbi, Forney 1973), for scores that are independent but for what may follow what.

    Args:
        tags: the classes, in order [C].
        scheme: what may follow what.
    """

    def __init__(self, tags: Sequence[str], scheme: str) -> None:
        follows = SCHEMES[scheme].follows
        parsed = list(parse_tags(tags, scheme))
        self._opening = self._costs([follows(None, tag) for tag in parsed])  # [C]
        self._closing = self._costs([follows(tag, None) for tag in parsed])  # [C]
        self._moves = self._costs([[follows(one, two) for two in parsed] for one in parsed])  # [C,C]

    def best(self, scores: Floats) -> Ints:
        """The legal sequence of classes with the highest sum of scores.

        Args:
            scores: log-probabilities, or anything else that adds up [W,C].

        Returns:
            The class of each word [W].
        """
        free: Ints = scores.argmax(axis=1)  # [W] legal as it is, nearly always, and then it is the best one
        if not len(scores) or self._is_legal(free):
            return free
        total = scores[0] + self._opening  # [C]
        came_from = np.zeros(scores.shape, dtype=np.int64)  # [W,C]
        for word in range(1, len(scores)):
            paths = total[:, None] + self._moves  # [C,C]
            came_from[word] = paths.argmax(axis=0)
            total = paths.max(axis=0) + scores[word]
        best = np.zeros(len(scores), dtype=np.int64)
        best[-1] = (total + self._closing).argmax()
        for word in range(len(scores) - 1, 0, -1):
            best[word - 1] = came_from[word, best[word]]
        return best

    def _is_legal(self, path: Ints) -> bool:
        costs = self._opening[path[0]] + self._closing[path[-1]] + self._moves[path[:-1], path[1:]].sum()
        return bool(costs == 0)

    @staticmethod
    def _costs(legal: Sequence[object]) -> npt.NDArray[np.float64]:
        return np.where(np.asarray(legal, dtype=bool), 0.0, -np.inf)


def _describe(tags: Sequence[str], word: int) -> str:
    before = f"after {tags[word - 1]!r}" if word else "at the start"
    return f"tag {tags[word]!r} {before}"
