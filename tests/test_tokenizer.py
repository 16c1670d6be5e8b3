"""Windows: special tokens, cutting, offsets, and independence of a tokenizer's published state."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tiny
import tokenizers

from nlptasks.errors import ModelError, UsageError
from nlptasks.text.windowing import Tokenizer
from nlptasks.types import FIRST, SECOND, SPECIAL, Source

KINDS = {"wordpiece": "bert", "bytes": "roberta", "unigram": "xlm-roberta"}


@pytest.fixture(scope="module", params=KINDS)
def backend(request: pytest.FixtureRequest, backbones: object) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(f"{backbones}/{KINDS[request.param]}/tokenizer.json")


def test_short_texts_are_one_window_with_the_models_special_tokens(backend: tokenizers.Tokenizer) -> None:
    text = "Ada saw London."
    [[window]] = Tokenizer(backend, max_tokens=40).windows([Source(text)])
    assert window.ids.tolist() == backend.encode(text).ids
    assert window.parts.tolist() == [FIRST if s == 0 else SPECIAL for s in backend.encode(text).special_tokens_mask]
    assert window.opens
    assert window.closes


def test_pairs_have_the_models_template(backend: tokenizers.Tokenizer) -> None:
    [[window]] = Tokenizer(backend, max_tokens=40).windows([Source("Who left?", "Bob left.")])
    encoded = backend.encode("Who left?", "Bob left.")
    assert window.ids.tolist() == encoded.ids
    assert window.types.tolist() == encoded.type_ids
    expected = {None: SPECIAL, 0: FIRST, 1: SECOND}
    assert window.parts.tolist() == [expected[sequence] for sequence in encoded.sequence_ids]


@pytest.mark.parametrize("words", [1, 10, 29, 30, 31, 60, 500])
def test_windows_overlap_and_lose_nothing(backend: tokenizers.Tokenizer, words: int) -> None:
    text = " ".join(["b"] * words)
    tokenizer = Tokenizer(backend, max_tokens=32)
    [windows] = tokenizer.windows([Source(text)])
    whole = backend.encode(text, add_special_tokens=False)
    assert all(len(window) <= 32 for window in windows)
    assert [window.opens for window in windows] == [True] + [False] * (len(windows) - 1)
    assert [window.closes for window in windows] == [False] * (len(windows) - 1) + [True]
    covered = {tuple(span) for window in windows for span in window.offsets[window.parts == FIRST]}
    assert covered == set(whole.offsets)
    for one, two in pairwise(windows):
        shared = set(map(tuple, one.offsets[one.parts == FIRST])) & set(map(tuple, two.offsets[two.parts == FIRST]))
        assert len(shared) >= 7


def test_only_the_second_text_of_a_pair_is_cut(backend: tokenizers.Tokenizer) -> None:
    tokenizer = Tokenizer(backend, max_tokens=48)
    [windows] = tokenizer.windows([Source("Who left?", "b " * 200)])
    question = windows[0].ids[windows[0].parts == FIRST]
    assert len(windows) > 3
    assert all(np.array_equal(window.ids[window.parts == FIRST], question) for window in windows)


@pytest.mark.parametrize(
    ("first", "second"), [(3, 200), (200, 3), (200, 200), (90, 900), (13, 13), (15, 14), (0, 5), (5, 0)]
)
def test_every_token_of_a_pair_is_read_and_a_short_text_meets_all_of_the_other(
    backend: tokenizers.Tokenizer, first: int, second: int
) -> None:
    tokenizer = Tokenizer(backend, max_tokens=32)
    [windows] = tokenizer.windows([Source(" ".join(["b"] * first), " ".join(["c"] * second))])
    offsets = [[{tuple(own) for own in one.offsets[one.parts == part]} for part in (FIRST, SECOND)] for one in windows]
    assert [len(set().union(*own)) for own in zip(*offsets, strict=True)] == [first, second]
    met = {(one, two) for firsts, seconds in offsets for one in firsts for two in seconds}
    assert len(met) == first * second or min(first, second) > 14
    assert all(len(window) <= 32 for window in windows)
    assert len(windows) <= 2 + (first + second) // 8  # linear in the lengths
    numbered = {
        (window.begin + place, *own)
        for window in windows
        for place, own in enumerate(window.offsets[window.parts == SECOND].tolist())
    }
    assert len(numbered) == second  # each token of the second text has one number, whichever window it is in


def test_texts_without_tokens_have_no_window(backend: tokenizers.Tokenizer) -> None:
    assert Tokenizer(backend, max_tokens=32).windows([Source("")]) == [[]]
    assert Tokenizer(backend, max_tokens=32).windows([]) == []


@pytest.mark.parametrize("text", ["</s>", "<s> a", "a <mask> b", "<pad>"])
def test_special_tokens_in_a_text_are_text(backend: tokenizers.Tokenizer, text: str) -> None:
    [[window]] = Tokenizer(backend, max_tokens=32).windows([Source(text)])
    special = {backend.token_to_id(token) for token in ("<pad>", "<s>", "</s>", "<mask>")}
    assert not special & set(window.ids[window.parts == FIRST].tolist())


def test_lone_surrogates_are_no_error(backend: tokenizers.Tokenizer) -> None:
    [[window]] = Tokenizer(backend, max_tokens=32).windows([Source("a\ud800b")])
    assert window.offsets.max() <= 3


def test_too_short_windows_are_refused() -> None:
    _, make = tiny.ARCHITECTURES["bert"]
    with pytest.raises(ModelError, match="reads only 16 tokens"):
        Tokenizer(make(), max_tokens=16)


@pytest.mark.parametrize(
    "given",
    [
        {"second": "b", "prefix": "c"},
        {"second": "b", "continued": True},
        {"second": "b", "markup": True},
        {"markup": True, "prefix": "c"},
    ],
    ids=str,
)
def test_sources_that_contradict_themselves_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="leave one of the two out"):
        Source("a", **given)
