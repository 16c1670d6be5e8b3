"""Held-out rows share no text with the rest of train."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlptasks.data.splitting import unrelated_rows

WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h"]), min_size=1, max_size=12)


def sequences(text: str, length: int) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


@given(st.lists(WORDS, min_size=2, max_size=40), st.integers(0, 3))
@settings(deadline=None)
def test_no_five_words_are_shared_and_no_short_text_is_contained(rows: list[list[str]], seed: int) -> None:
    texts = [" ".join(words) for words in rows]
    size = len(texts) // 2
    drawn = unrelated_rows([[text] for text in texts], size, seed=seed)
    assert len(drawn) <= size
    random_rows = list(range(len(texts)))
    random.Random(seed).shuffle(random_rows)
    if drawn == set(random_rows[:size]):
        return  # too few rows are unrelated
    kept = [text for row, text in enumerate(texts) if row not in drawn]
    for row in drawn:
        words = texts[row].split()
        for other in kept:
            assert not sequences(texts[row], 5) & sequences(other, 5)
            if len(words) < 5:
                assert tuple(words) not in sequences(other, len(words))


def test_phrases_of_one_sentence_are_held_out_together() -> None:
    draw = random.Random(0)
    sentences = [[f"w{draw.randrange(5000)}" for _ in range(20)] for _ in range(100)]
    texts, owner = [], []
    for number, words in enumerate(sentences):
        for start, end in ((0, 20), (0, 9), (9, 20), (3, 9), (12, 20)):
            texts.append([" ".join(words[start:end])])
            owner.append(number)
    drawn = unrelated_rows(texts, 50, seed=1)
    assert 40 <= len(drawn) <= 50
    for one, two in pairwise(range(len(texts))):
        assert owner[one] != owner[two] or (one in drawn) == (two in drawn)


def test_text_that_many_rows_share_is_ignored() -> None:
    texts = [[f"number {number} is here; kind regards from all of us"] for number in range(200)]
    assert len(unrelated_rows(texts, 20, seed=0)) == 20


def test_copies_are_held_out_together_or_not_at_all() -> None:
    texts = [["great movie"]] * 10 + [["a very long row that stands here many times"]] * 60
    texts += [[f"row {number}"] for number in range(60)]
    for seed in range(10):
        drawn = unrelated_rows(texts, 12, seed=seed)
        assert set(range(10)) <= drawn or not drawn & set(range(10))
        assert not drawn & set(range(10, 70))


def test_rows_are_drawn_at_random_if_all_are_related() -> None:
    texts = [["one two three four five"]] * 30
    assert len(unrelated_rows(texts, 3, seed=0)) == 3


def test_text_without_spaces_is_compared_by_characters() -> None:
    texts = [["北京是中国的首都和政治中心" + "甲乙丙丁戊己庚辛壬癸"[number]] for number in range(10)] + [
        [chr(0x4E00 + 40 * number + step) for step in range(20)] for number in range(10)
    ]
    drawn = unrelated_rows(texts, 6, seed=0)
    assert drawn <= set(range(10, 20))


def test_questions_on_one_paragraph_are_held_out_together() -> None:
    texts = [
        [f"question {row}", f"a paragraph with the number {row // 4} that four questions are on"] for row in range(80)
    ]
    drawn = unrelated_rows(texts, 8, seed=0)
    assert len(drawn) == 8
    assert all(((row // 4) * 4 + step) in drawn for row in drawn for step in range(4))


@pytest.mark.parametrize("texts", [[], [[]], [[""], [""]], [[], ["a"], ["b c"]]])
def test_empty_texts_are_accepted(texts: list[list[str]]) -> None:
    assert len(unrelated_rows(texts, len(texts) // 2, seed=0)) == len(texts) // 2


def test_the_split_depends_only_on_the_seed() -> None:
    texts = [[f"text {row}"] for row in range(100)]
    assert unrelated_rows(texts, 10, seed=0) == unrelated_rows(texts, 10, seed=0) != unrelated_rows(texts, 10, seed=1)
