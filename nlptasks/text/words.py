"""Words of plain text, words that are given, and where they stand among a tokenizer's tokens.

Words are ours, not the tokenizer's, so that a head learns and predicts on the same units whatever the backbone:

1. White space separates.
2. Scripts written without spaces are split by character, combining marks stay with theirs.
3. Outer punctuation is peeled off (``(London),`` is four words), but not the stop of ``U.S.`` or of an initial, nor, within a
   text, that of ``Mr.`` or ``Inc.``, nor that of a list's number at the beginning of a line, nor the point of ``.5``.
4. A clitic is a word: ``Ada's`` is ``Ada`` and ``'s``.
5. Dashes and dots of their own (``--``, ``...``, an em dash) are words wherever they stand.

A boundary never falls before a combining mark or inside an emoji sequence. Offsets are code points of the caller's string.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from nlptasks.types import FIRST, Ints, Window

Span = tuple[int, int]
"""Start and end, in code points or in words, the end not included."""

# Scripts written without spaces: Thai, Lao, Tibetan, Burmese, Khmer, kana, Han and its extensions.
_UNSPACED = (
    "\u0e00-\u0e7f\u0e80-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005\u3007\u3040-\u309f\u30a0-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_PIECES = re.compile(
    rf"[{_UNSPACED}]|\u2014+|\u2015+|\u2026+|\.\.+|--+|(?:(?!\.\.|--)[^{_UNSPACED}\u2014\u2015\u2026])+"
)
_CHUNKS = re.compile(r"\S+")
_CLITIC = re.compile(r"(?<=.)['\u2019](?:s|S)$")
_ONLY_CLITIC = re.compile(r"['\u2019](?:s|S|t|m|d|ll|re|ve)$")
_STOP_BELONGS = re.compile(r"(?:[^\W\d_]+-)?(?:[^\W\d_]{1,3}\.)+[^\W\d_]{1,3}\.|[^\W\d_]\.")
_LIST_NUMBER = re.compile(r"\d{1,3}\.")
_ABBREVIATION = re.compile(
    r"(?:mr|mrs|ms|dr|prof|st|jr|sr|gen|sen|rep|gov|lt|col|capt|sgt|rev|inc|corp|ltd|co|bros|vs)\.", re.IGNORECASE
)
_LONGEST_CLITIC, _LONGEST_ABBREVIATION = 3, 24  # characters; so a word of 100,000 is not searched again and again
_EXTENDING = "\u200d\u0e33\u0eb3"  # the joiner of emoji; vowels of Thai and Lao that are no mark by category
_SURROGATES = re.compile("[\ud800-\udfff]")


def words(text: str) -> list[Span]:
    """The words of a plain text, as spans in code points, in order, never overlapping."""
    spans: list[Span] = []
    for chunk in _CHUNKS.finditer(text):
        start, end = chunk.span()
        if chunk.group().isalnum() and chunk.group().isascii():  # the common case, without any rule
            spans.append((start, end))
        elif not any(char.isprintable() for char in chunk.group()):
            continue  # control characters and invisible ones are no word
        elif _is_whole(text, start, end):
            spans.append((start, end))
        else:
            spans.extend((start + left, start + right) for left, right in _chunk_words(chunk.group()))
    return spans


def join_words(given: Iterable[str]) -> tuple[str, list[Span]]:
    """Given words joined by one space, and where each one stands."""
    spans: list[Span] = []
    start = 0
    joined = list(given)
    for word in joined:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return " ".join(joined), spans


def close_unspaced(text: str, spans: Sequence[Span]) -> tuple[str, list[Span]]:
    """Given words as they would be written: without a space between two characters of a script that has none.

    Tokenizers made for raw text read a Chinese sentence in words of several characters, with spaces between the characters
    they would not: the model would be trained on other tokens than it meets in plain text.
    """
    parts: list[str] = []
    placed: list[Span] = []
    length = 0
    for start, end in spans:
        word = text[start:end]
        if parts and not (_is_unspaced(parts[-1][-1:]) and _is_unspaced(word[:1])):
            parts.append(" ")
            length += 1
        parts.append(word)
        placed.append((length, length + len(word)))
        length += len(word)
    return "".join(parts), placed


def readable(text: str) -> str:
    """The text with lone surrogates, which no tokenizer accepts, replaced one for one by U+FFFD: offsets stay."""
    return _SURROGATES.sub("\ufffd", text)


def first_tokens(spans: Ints, offsets: Ints) -> Ints:
    """The first token of each word, -1 for a word that has none here.

    Args:
        spans: the words' code points, in order [W,2].
        offsets: the tokens' code points, in order [S,2]; tokens of one character may share it or overlap.

    Returns:
        Indices into the tokens [W].
    """
    if not len(spans) or not len(offsets):
        return np.full(len(spans), -1, dtype=np.int64)
    ends = np.maximum.accumulate(offsets[:, 1])  # [S], so that it can be searched
    first = np.searchsorted(ends, spans[:, 0], side="right")  # [W] the first token that ends behind the word's start
    inside = np.append(offsets[:, 0], np.iinfo(np.int64).max)[first] < spans[:, 1]
    return np.where(inside, first, -1)


def words_in(spans: Ints, window: Window) -> tuple[Ints, Ints]:
    """The words that have a token in a window of the text that they are words of.

    Args:
        spans: the words' code points, in order [W,2].
        window: the window.

    Returns:
        The words' numbers, and the index of each one's first token in the window [W'].
    """
    content = np.flatnonzero(window.parts == FIRST)
    if not len(content):
        return content, content
    offsets = window.offsets[content]
    first = int(np.searchsorted(spans[:, 1], offsets[:, 0].min(), side="right"))
    behind = int(np.searchsorted(spans[:, 0], offsets[:, 1].max(), side="left"))
    tokens = first_tokens(spans[first:behind], offsets)
    here = np.flatnonzero(tokens >= 0)
    return first + here, content[tokens[here]]


def widened(text: str, start: int, end: int) -> Span:
    """A span as the least one of whole written characters around it, without white space at its ends."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    while 0 < start < end and not _may_split(text, start):
        start -= 1
    while start < end < len(text) and not _may_split(text, end):
        end += 1
    return start, end


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: white space, control characters, characters of no width."""
    return not any(char.isprintable() and not char.isspace() for char in text)


def split_at(spans: Sequence[Span], cuts: Iterable[int]) -> list[Span]:
    """The spans, each split where a cut falls inside it."""
    ordered = sorted(set(cuts))
    pieces: list[Span] = []
    at = 0
    for start, end in spans:
        while at < len(ordered) and ordered[at] <= start:
            at += 1
        while at < len(ordered) and ordered[at] < end:
            pieces.append((start, ordered[at]))
            start = ordered[at]
            at += 1
        pieces.append((start, end))
    return pieces


def is_mostly_unspaced(text: str) -> bool:
    """Whether most letters of a text are of scripts written without spaces."""
    return 2 * len(_UNSPACED_CHARACTER.findall(text)) > sum(map(str.isalpha, text))


def split_unspaced(text: str) -> str:
    """The text with spaces around every character of a script written without spaces; its punctuation is left out."""
    return _UNSPACED_CHARACTER.sub(r" \g<0> ", "".join(" " if _is_punctuation(char) else char for char in text))


def _is_unspaced(char: str) -> bool:
    return _UNSPACED_CHARACTER.match(char) is not None


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether the stop at the end of these characters is theirs by what stands around them."""
    if text[end - 1] != "." or not _CHUNKS.search(text, end):
        return False
    begins_line = start == 0 or text[start - 1] in "\r\n"
    return bool(_ABBREVIATION.fullmatch(text, start, end) or (begins_line and _LIST_NUMBER.fullmatch(text, start, end)))


def _chunk_words(chunk: str) -> Iterator[Span]:
    """The words of a text without white space."""
    for start, end in _whole_characters(chunk, (piece.span() for piece in _PIECES.finditer(chunk))):
        yield from ((start + left, start + right) for left, right in _peeled(chunk[start:end]))


def _whole_characters(chunk: str, spans: Iterable[Span]) -> list[Span]:
    """The spans, a span that would begin inside a written character joined to the one before it."""
    whole: list[Span] = []
    for start, end in spans:
        if whole and not _may_split(chunk, start):
            whole[-1] = (whole[-1][0], end)
        else:
            whole.append((start, end))
    return whole


def _peeled(piece: str) -> list[Span]:
    """A piece without its outer punctuation, and each peeled mark (a run of the same is one)."""
    start, end = 0, len(piece)
    before: list[Span] = []
    after: list[Span] = []
    while start < end and not _ONLY_CLITIC.match(piece, start, end):
        run = _run(piece, start, end, step=1)
        if not run or (piece[start] == "." and piece[start + 1 : start + 2].isdigit()):
            break
        before.append((start, start + run))
        start += run
    while start < end and not _keeps_its_end(piece, start, end):
        clitic = _CLITIC.search(piece, max(start, end - _LONGEST_CLITIC), end)
        run = end - clitic.start() if clitic else _run(piece, start, end, step=-1)
        if not run:
            break
        after.append((end - run, end))
        end -= run
    return _whole_characters(piece, [*before, *([(start, end)] if start < end else []), *reversed(after)])


def _keeps_its_end(piece: str, start: int, end: int) -> bool:
    """Whether this is an abbreviation with its stop, or a clitic alone."""
    if end - start > _LONGEST_ABBREVIATION:
        return False
    return bool(_STOP_BELONGS.fullmatch(piece, start, end) or _ONLY_CLITIC.fullmatch(piece, start, end))


def _run(piece: str, start: int, end: int, *, step: int) -> int:
    """How many of the same punctuation mark stand at the left (step 1) or right (step -1) edge."""
    edge = start if step > 0 else end - 1
    if not _is_punctuation(piece[edge]):
        return 0
    length = 1
    while length < end - start and piece[edge + step * length] == piece[edge]:
        length += 1
    return length


def _may_split(text: str, at: int) -> bool:
    """Whether a word may begin here: not before a mark that belongs to the character before, nor behind a joiner."""
    return not _extends(text[at]) and text[at - 1] != "\u200d"


@lru_cache(maxsize=4096)
def _is_punctuation(char: str) -> bool:
    return unicodedata.category(char).startswith("P")


@lru_cache(maxsize=4096)
def _extends(char: str) -> bool:
    return char in _EXTENDING or unicodedata.category(char).startswith("M") or "\U0001f3fb" <= char <= "\U0001f3ff"
