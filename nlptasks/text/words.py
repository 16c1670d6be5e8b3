"""Word segmentation of plain text, and the alignment of words with a tokenizer's tokens.

The rules do not depend on the backbone, so every head is trained and predicts on the same words:

1. White space separates words.
2. In scripts written without spaces, each character is a word, with its combining marks.
3. Leading and trailing punctuation is split off (``(London),`` is four words). ``U.S.`` and initials keep their period. So do
   ``Mr.``, ``Inc.`` and a list number at the start of a line, if more text follows. ``.5`` keeps its point.
4. A clitic is a word: ``Ada's`` is ``Ada`` and ``'s``.
5. Dashes and ellipses (``--``, ``...``, an em dash) are always words.

No word starts at a combining mark or inside an emoji sequence. Offsets are code points of the caller's string.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from nlptasks.types import FIRST, Ints, Span, Window

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
_PERIOD_BELONGS = re.compile(r"(?:[^\W\d_]+-)?(?:[^\W\d_]{1,3}\.)+[^\W\d_]{1,3}\.|[^\W\d_]\.")
_LIST_NUMBER = re.compile(r"\d{1,3}\.")
_ABBREVIATION = re.compile(
    r"(?:mr|mrs|ms|dr|prof|st|jr|sr|gen|sen|rep|gov|lt|col|capt|sgt|rev|inc|corp|ltd|co|bros|vs)\.", re.IGNORECASE
)
# In characters. Without these limits, the time for one very long word would be quadratic.
_LONGEST_CLITIC, _LONGEST_ABBREVIATION = 3, 24
_EXTENDING = "\u200d\u0e33\u0eb3"  # the emoji joiner, and vowels of Thai and Lao outside the category of marks
_SURROGATES = re.compile("[\ud800-\udfff]")


def words(text: str) -> list[Span]:
    """Return the words of a plain text as spans, in order and without overlap."""
    spans: list[Span] = []
    for chunk in _CHUNKS.finditer(text):
        start, end = chunk.span()
        if chunk.group().isalnum() and chunk.group().isascii():  # fast path: no rule applies
            spans.append((start, end))
        elif not any(char.isprintable() for char in chunk.group()):
            continue  # only control and invisible characters
        elif _ends_in_own_period(text, start, end):
            spans.append((start, end))
        else:
            spans.extend((start + left, start + right) for left, right in _chunk_words(chunk.group()))
    return spans


def join_words(given: Iterable[str]) -> tuple[str, list[Span]]:
    """Join words by single spaces. Return the text and the span of each word."""
    spans: list[Span] = []
    start = 0
    joined = list(given)
    for word in joined:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return " ".join(joined), spans


def close_unspaced(text: str, spans: Sequence[Span]) -> tuple[str, list[Span]]:
    """Remove the spaces between two characters of a script written without spaces. Return the text and the new spans.

    With the spaces, a tokenizer would split a Chinese sentence into other tokens in training than in plain text.
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
    """Replace lone surrogates, which no tokenizer accepts, by U+FFFD. Offsets do not change."""
    return _SURROGATES.sub("\ufffd", text)


def first_tokens(spans: Ints, offsets: Ints) -> Ints:
    """Return the index of the first token of each word [W], or -1 for a word without tokens.

    Args:
        spans: spans of the words, in order [W,2].
        offsets: spans of the tokens, in order [S,2]; tokens of the same character may share its span or overlap.
    """
    if not len(spans) or not len(offsets):
        return np.full(len(spans), -1, dtype=np.int64)
    ends = np.maximum.accumulate(offsets[:, 1])  # [S] sorted, for the binary search
    first = np.searchsorted(ends, spans[:, 0], side="right")  # [W] the first token that ends after the word starts
    inside = np.append(offsets[:, 0], np.iinfo(np.int64).max)[first] < spans[:, 1]
    return np.where(inside, first, -1)


def words_in(spans: Ints, window: Window) -> tuple[Ints, Ints]:
    """Return the words with tokens in a window: their indices [W'], and the index of the first token of each [W'].

    Args:
        spans: spans of all words of the text, in order [W,2].
        window: a window of this text.
    """
    content = np.flatnonzero(window.parts == FIRST)
    if not len(content):
        return content, content
    offsets = window.offsets[content]
    first = int(np.searchsorted(spans[:, 1], offsets[:, 0].min(), side="right"))
    after = int(np.searchsorted(spans[:, 0], offsets[:, 1].max(), side="left"))
    tokens = first_tokens(spans[first:after], offsets)
    here = np.flatnonzero(tokens >= 0)
    return first + here, content[tokens[here]]


def widened(text: str, start: int, end: int) -> Span:
    """Strip white space from a span, and extend it to whole characters with their combining marks."""
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
    """Return True if a text contains only white space, control and zero-width characters."""
    return not any(char.isprintable() and not char.isspace() for char in text)


def is_mostly_unspaced(text: str) -> bool:
    """Return True if most letters of a text belong to scripts written without spaces."""
    return 2 * len(_UNSPACED_CHARACTER.findall(text)) > sum(map(str.isalpha, text))


def split_unspaced(text: str) -> str:
    """Put spaces around each character of a script written without spaces, and replace punctuation by spaces."""
    return _UNSPACED_CHARACTER.sub(r" \g<0> ", "".join(" " if _is_punctuation(char) else char for char in text))


def _is_unspaced(char: str) -> bool:
    return _UNSPACED_CHARACTER.match(char) is not None


def _ends_in_own_period(text: str, start: int, end: int) -> bool:
    """Return True for an abbreviation or a list number whose period, by its context, does not end a sentence."""
    if text[end - 1] != "." or not _CHUNKS.search(text, end):
        return False
    starts_line = start == 0 or text[start - 1] in "\r\n"
    return bool(_ABBREVIATION.fullmatch(text, start, end) or (starts_line and _LIST_NUMBER.fullmatch(text, start, end)))


def _chunk_words(chunk: str) -> Iterator[Span]:
    """Return the words of a text without white space."""
    for start, end in _merge_split_characters(chunk, (piece.span() for piece in _PIECES.finditer(chunk))):
        yield from ((start + left, start + right) for left, right in _split_punctuation(chunk[start:end]))


def _merge_split_characters(chunk: str, spans: Iterable[Span]) -> list[Span]:
    """Merge each span that starts inside a character sequence with the span before it."""
    merged: list[Span] = []
    for start, end in spans:
        if merged and not _may_split(chunk, start):
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


def _split_punctuation(piece: str) -> list[Span]:
    """Split leading and trailing punctuation off a piece; a run of equal marks is one word."""
    start, end = 0, len(piece)
    before: list[Span] = []
    after: list[Span] = []
    while start < end and not _ONLY_CLITIC.match(piece, start, end):
        run = _run_length(piece, start, end, step=1)
        if not run or (piece[start] == "." and piece[start + 1 : start + 2].isdigit()):
            break
        before.append((start, start + run))
        start += run
    while start < end and not _keeps_end(piece, start, end):
        clitic = _CLITIC.search(piece, max(start, end - _LONGEST_CLITIC), end)
        run = end - clitic.start() if clitic else _run_length(piece, start, end, step=-1)
        if not run:
            break
        after.append((end - run, end))
        end -= run
    return _merge_split_characters(piece, [*before, *([(start, end)] if start < end else []), *reversed(after)])


def _keeps_end(piece: str, start: int, end: int) -> bool:
    """Return True for an abbreviation with its period, or a single clitic."""
    if end - start > _LONGEST_ABBREVIATION:
        return False
    return bool(_PERIOD_BELONGS.fullmatch(piece, start, end) or _ONLY_CLITIC.fullmatch(piece, start, end))


def _run_length(piece: str, start: int, end: int, *, step: int) -> int:
    """Return the number of equal punctuation marks at the left (step 1) or right (step -1) end."""
    edge = start if step > 0 else end - 1
    if not _is_punctuation(piece[edge]):
        return 0
    length = 1
    while length < end - start and piece[edge + step * length] == piece[edge]:
        length += 1
    return length


def _may_split(text: str, at: int) -> bool:
    """Return True if a word may start here: not at a combining mark, nor after an emoji joiner."""
    return not _extends(text[at]) and text[at - 1] != "\u200d"


@lru_cache(maxsize=4096)
def _is_punctuation(char: str) -> bool:
    return unicodedata.category(char).startswith("P")


@lru_cache(maxsize=4096)
def _extends(char: str) -> bool:
    return char in _EXTENDING or unicodedata.category(char).startswith("M") or "\U0001f3fb" <= char <= "\U0001f3ff"
