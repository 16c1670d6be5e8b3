"""Word segmentation of plain text, and alignment of words and tokens."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nlptasks.text.words import close_unspaced, first_tokens, join_words, readable, widened, words

GOLDEN = [
    ("Ada Lovelace lived in London.", "Ada|Lovelace|lived|in|London|."),
    ('Ada\'s (London), U.S. "Inc"', 'Ada|\'s|(|London|)|,|U.S.|"|Inc|"'),
    ("1. Mr. Wu, Acme Inc. of St. Ives\n12. fell .5 Co.", "1.|Mr.|Wu|,|Acme|Inc.|of|St.|Ives|12.|fell|.5|Co|."),
    ("Russian-U.S. talks in 1996. They", "Russian-U.S.|talks|in|1996|.|They"),
    ("J. Smith at 3:2, e.g. Ph.D.", "J.|Smith|at|3:2|,|e.g.|Ph.D."),
    ("well—no -- wait...", "well|—|no|--|wait|..."),
    ("don't 's ''hi''", "don't|'s|''|hi|''"),
    ("AT&T x@y.org 100% 1996-08-22", "AT&T|x@y.org|100|%|1996-08-22"),
    ("北京abc東京", "北|京|abc|東|京"),
    ("สวัสดี", None),
    ("a\tb\r\nc\u00a0d\u3000e", "a|b|c|d|e"),
    ("cafe\u0301, nai\u0308ve", "cafe\u0301|,|nai\u0308ve"),
    ("👨‍👩‍👧! 🇩🇪. 👍🏽", "👨‍👩‍👧|!|🇩🇪|.|👍🏽"),
    ("", ""),
    (" \n\t", ""),
    ("(U.S.)", "(|U.S.|)"),
    ("'", "'"),
    ("\x00 \u200b \ufeff a\u200b", "a\u200b"),
    ("น้ำ", "น้ำ"),
    ("葛\U000e0100城", "葛\U000e0100|城"),
]


@pytest.mark.parametrize(("text", "expected"), GOLDEN)
def test_words(text: str, expected: str | None) -> None:
    found = [text[start:end] for start, end in words(text)]
    if expected is None:
        assert "".join(found) == text
    else:
        assert found == (expected.split("|") if expected else [])


def visible(text: str) -> bool:
    return any(char.isprintable() and not char.isspace() for char in text)


@given(st.text())
@example("a\u200db . \u0301")
@example("'\u0301s'\u0301")
def test_words_cover_the_text_in_order_and_never_split_a_character(text: str) -> None:
    at = 0
    for start, end in words(text):
        assert at <= start < end
        assert not visible(text[at:start])
        assert not any(char.isspace() for char in text[start:end])
        glued = start > 0 and not text[start - 1].isspace()
        assert not (glued and unicodedata.category(text[start]).startswith("M"))
        at = end
    assert not visible(text[at:])


@given(st.lists(st.text(min_size=1)))
def test_spans_of_joined_words_are_exact(given_words: list[str]) -> None:
    text, spans = join_words(given_words)
    assert [text[start:end] for start, end in spans] == given_words
    source, places = close_unspaced(text, spans)
    assert [source[start:end] for start, end in places] == given_words


def test_characters_of_an_unspaced_script_are_written_without_spaces() -> None:
    text, spans = join_words(["我", "爱", "Paris", "和", "北京"])
    assert close_unspaced(text, spans)[0] == "我爱 Paris 和北京"


def test_lone_surrogates_are_replaced_without_changing_offsets() -> None:
    assert readable("a\ud800b\udfff") == "a\ufffdb\ufffd"


def test_first_tokens_with_missing_shared_and_overlapping_tokens() -> None:
    spans = np.array([(0, 2), (3, 4), (4, 6), (7, 9), (10, 12)])
    offsets = np.array([(0, 1), (1, 2), (3, 6), (9, 10), (9, 11), (11, 12)])
    assert first_tokens(spans, offsets).tolist() == [0, 2, 2, -1, 4]
    assert first_tokens(spans, np.zeros((0, 2), dtype=np.int64)).tolist() == [-1] * 5
    assert first_tokens(spans[:0], offsets).tolist() == []


@pytest.mark.parametrize("unit", ["a", "a ", "a. ", "北", "(.", "a.b.", "'s", "—x"])
@pytest.mark.parametrize("before", ["", "x"])
def test_words_of_a_long_text_are_complete(before: str, unit: str) -> None:
    text = before + unit * 100_000
    assert sum(end - start for start, end in words(text)) == len(text.replace(" ", ""))


@pytest.mark.parametrize(
    ("text", "span", "wide"),
    [
        ("ab cd", (0, 2), "ab"),
        ("ab cd", (1, 4), "b c"),
        ("ab cd ", (2, 6), "cd"),
        ("cafe\u0301 x", (0, 4), "cafe\u0301"),
        ("cafe\u0301 x", (4, 5), "e\u0301"),
        ("\U0001f44d\U0001f3fd ok", (0, 1), "\U0001f44d\U0001f3fd"),
        ("\U0001f469\u200d\U0001f52c!", (2, 3), "\U0001f469\u200d\U0001f52c"),
        ("ab", (1, 1), ""),
    ],
)
def test_a_span_is_widened_to_whole_characters(text: str, span: tuple[int, int], wide: str) -> None:
    start, end = widened(text, *span)
    assert text[start:end] == wide


@pytest.mark.parametrize(
    ("given_words", "text"),
    [(["A社", "東京"], "A社東京"), (["東A", "京"], "東A 京"), (["社A", "A社", "B"], "社A A社 B")],
)
def test_only_the_characters_beside_a_space_decide_whether_it_is_written(given_words: list[str], text: str) -> None:
    assert close_unspaced(*join_words(given_words))[0] == text


def test_the_first_token_of_a_word_is_found_behind_a_shorter_overlapping_one() -> None:
    spans = np.array([(0, 2), (2, 3)])
    assert first_tokens(spans, np.array([(0, 3), (1, 2)])).tolist() == [0, 0]
