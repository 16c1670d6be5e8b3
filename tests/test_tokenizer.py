"""Windows: special tokens, cuts, offsets, contradicting options, and tokenizers that are refused."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tiny
import tokenizers
from tokenizers import normalizers

from nlptasks.backbones.pretrained import embedded_folder
from nlptasks.errors import ModelError, UsageError
from nlptasks.text.windows import Tokenizer, check_expansion
from nlptasks.types import FIRST, SECOND, SPECIAL, Beginning, End, ModelInput, Parts

KINDS = {"wordpiece": "bert", "bytes": "roberta", "unigram": "xlm-roberta"}


@pytest.fixture(scope="module", params=KINDS)
def backend(request: pytest.FixtureRequest, backbones: object) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(f"{backbones}/{KINDS[request.param]}/tokenizer.json")


def test_a_short_text_is_one_window_with_special_tokens(backend: tokenizers.Tokenizer) -> None:
    text = "Ada saw London."
    [[window]] = Tokenizer(backend, max_tokens=40).windows([ModelInput((text,))])
    assert window.ids.tolist() == backend.encode(text).ids
    assert window.parts.tolist() == [FIRST if s == 0 else SPECIAL for s in backend.encode(text).special_tokens_mask]
    assert window.opens
    assert window.closes


def test_pairs_use_the_template_of_the_tokenizer(backend: tokenizers.Tokenizer) -> None:
    [[window]] = Tokenizer(backend, max_tokens=40).windows([ModelInput(("Who left?", "Bob left."))])
    encoded = backend.encode("Who left?", "Bob left.")
    assert window.ids.tolist() == encoded.ids
    assert window.types.tolist() == encoded.type_ids
    expected = {None: SPECIAL, 0: FIRST, 1: SECOND}
    assert window.parts.tolist() == [expected[sequence] for sequence in encoded.sequence_ids]


@pytest.mark.parametrize("words", [1, 10, 29, 30, 31, 60, 500])
def test_windows_overlap_and_contain_every_token(backend: tokenizers.Tokenizer, words: int) -> None:
    text = " ".join(["b"] * words)
    tokenizer = Tokenizer(backend, max_tokens=32)
    [windows] = tokenizer.windows([ModelInput((text,))])
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
    [windows] = tokenizer.windows([ModelInput(("Who left?", "b " * 200))])
    question = windows[0].ids[windows[0].parts == FIRST]
    assert len(windows) > 3
    assert all(np.array_equal(window.ids[window.parts == FIRST], question) for window in windows)


@pytest.mark.parametrize(
    ("first", "second"), [(3, 200), (200, 3), (200, 200), (90, 900), (13, 13), (15, 14), (0, 5), (5, 0)]
)
def test_every_token_of_a_pair_is_read_and_a_short_text_is_paired_with_all_of_the_other(
    backend: tokenizers.Tokenizer, first: int, second: int
) -> None:
    tokenizer = Tokenizer(backend, max_tokens=32)
    [windows] = tokenizer.windows([ModelInput((" ".join(["b"] * first), " ".join(["c"] * second)))])
    offsets = [[{tuple(own) for own in one.offsets[one.parts == part]} for part in (FIRST, SECOND)] for one in windows]
    assert [len(set().union(*own)) for own in zip(*offsets, strict=True)] == [first, second]
    paired = {(one, two) for firsts, seconds in offsets for one in firsts for two in seconds}
    assert len(paired) == first * second or min(first, second) > 14
    assert all(len(window) <= 32 for window in windows)
    assert len(windows) <= 2 + (first + second) // 8  # linear in the lengths
    numbered = {
        (window.begin + place, *own)
        for window in windows
        for place, own in enumerate(window.offsets[window.parts == SECOND].tolist())
    }
    assert len(numbered) == second  # each token of the second text has one number, whichever window it is in


def test_texts_without_tokens_have_no_window(backend: tokenizers.Tokenizer) -> None:
    assert Tokenizer(backend, max_tokens=32).windows([ModelInput(("",))]) == [[]]
    assert Tokenizer(backend, max_tokens=32).windows([]) == []


@pytest.mark.parametrize("text", ["</s>", "<s> a", "a <mask> b", "<pad>"])
def test_special_tokens_in_a_text_are_text(backend: tokenizers.Tokenizer, text: str) -> None:
    [[window]] = Tokenizer(backend, max_tokens=32).windows([ModelInput((text,))])
    special = {backend.token_to_id(token) for token in ("<pad>", "<s>", "</s>", "<mask>")}
    assert not special & set(window.ids[window.parts == FIRST].tolist())


def test_lone_surrogates_are_accepted(backend: tokenizers.Tokenizer) -> None:
    [[window]] = Tokenizer(backend, max_tokens=32).windows([ModelInput(("a\ud800b",))])
    assert window.offsets.max() <= 3


def test_too_short_windows_are_refused() -> None:
    _, make = tiny.ARCHITECTURES["bert"]
    with pytest.raises(ModelError, match="reads only 16 tokens"):
        Tokenizer(make(), max_tokens=16)


@pytest.mark.parametrize(
    "given",
    [
        {"texts": ("a", "b"), "prefix": "c"},
        {"texts": ("a", "b"), "replaced": ((1, 2),)},
        {"texts": ("a", "b"), "cut": Beginning()},
        {"texts": ("a", "b"), "cut": Parts()},
        {"texts": ("a", "b"), "cut": End()},
        {"texts": ("a", "b"), "markup": True},
        {"texts": ("a",), "markup": True, "prefix": "c"},
    ],
    ids=str,
)
def test_model_inputs_with_contradicting_options_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="remove one of the two"):
        ModelInput(**given)


@pytest.mark.parametrize("texts", ["a", (), ("a", "b", "c")])
def test_model_inputs_have_one_or_two_texts(texts: Any) -> None:
    with pytest.raises(UsageError, match="pass a tuple of one or two strings"):
        ModelInput(texts)


def replacing(*replacements: tuple[Any, str]) -> tokenizers.Tokenizer:
    """Return a tokenizer whose normalizer does these replacements one after the other."""
    backend = tiny.ARCHITECTURES["bert"][1]()
    steps = [normalizers.Replace(pattern, content) for pattern, content in replacements]
    backend.normalizer = normalizers.Sequence([backend.normalizer, normalizers.Sequence(steps)])
    return backend


def test_tokenizers_that_expand_a_text_without_limit_are_refused() -> None:
    backend = replacing(*[("a", "a" * 100)] * 4)
    with pytest.raises(
        ModelError,
        match=r"x: has replacements that can make a text 100000000 times as long; use a backbone with another",
    ):
        check_expansion(backend, where="x")


@pytest.mark.parametrize(
    ("replacements", "refused"),
    [
        ([("a", "a" * 64)], False),
        ([("a", "a" * 65)], True),
        ([("a", "a" * 8)] * 2, False),
        ([("a", "a" * 8), ("b", "b" * 9)], True),
        ([("``", '"'), ("a" * 10, "b" * 100)], False),
        ([(tokenizers.Regex("a{100}"), "b" * 65)], True),  # a regular expression may match a single character
        ([("a", "")] * 9, False),
    ],
)
def test_the_limit_of_replacements_is_their_product(replacements: list[tuple[Any, str]], refused: bool) -> None:
    with pytest.raises(ModelError) if refused else nullcontext():
        check_expansion(replacing(*replacements), where="x")


def test_common_tokenizers_are_not_refused(backend: tokenizers.Tokenizer) -> None:
    check_expansion(backend, where="tiny")
    check_expansion(tokenizers.Tokenizer.from_file(f"{embedded_folder()}/tokenizer.json"), where="minilm")


def test_a_pair_that_fits_is_one_window(backend: tokenizers.Tokenizer) -> None:
    tokenizer = Tokenizer(backend, max_tokens=32)
    for first, second in ((20, 3), (3, 20)):
        [windows] = tokenizer.windows([ModelInput((" ".join(["b"] * first), " ".join(["c"] * second)))])
        assert [[(one.parts == part).sum() for part in (FIRST, SECOND)] for one in windows] == [[first, second]]


@pytest.mark.parametrize("prefix", ["a b", "a b ", "a b: "])
def test_a_prefix_is_in_every_window_whole(backend: tokenizers.Tokenizer, prefix: str) -> None:
    [windows] = Tokenizer(backend, max_tokens=32).windows([ModelInput((" c" * 100,), prefix=prefix, cut=Parts())])
    length = len(backend.encode(prefix.rstrip(), add_special_tokens=False).ids)
    beginnings = [window.ids[window.parts == FIRST][:length].tolist() for window in windows]
    assert beginnings == [backend.encode(prefix.rstrip(), add_special_tokens=False).ids] * len(windows)
    assert len(windows) > 2
