"""Tag schemes: detection, lossless conversion, the best legal sequence."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlptasks.text.tags import (
    SCHEMES,
    TagDecoder,
    TagError,
    detect_scheme,
    labels_of,
    spans_of,
    tag_set,
    tags_of,
)

GOLDEN = [
    ("iob2", "B-A I-A B-A O B-B", [(0, 2, "A"), (2, 3, "A"), (4, 5, "B")]),
    ("iob2", "O O", []),
    ("iob2", "", []),
    ("iob1", "I-A I-A B-A O I-B", [(0, 2, "A"), (2, 3, "A"), (4, 5, "B")]),
    ("iob1", "I-A I-B", [(0, 1, "A"), (1, 2, "B")]),
    ("bioes", "B-A E-A S-A O B-B I-B E-B", [(0, 2, "A"), (2, 3, "A"), (4, 7, "B")]),
    ("bioes", "B-A L-A U-A", [(0, 2, "A"), (2, 3, "A")]),  # BILOU
    ("bioes", "B-A M-A E-A S-A", [(0, 3, "A"), (3, 4, "A")]),  # BMES
    ("bioes", "B-A M-A E-A W-A", [(0, 3, "A"), (3, 4, "A")]),  # BMEWO
    ("io", "I-A I-A O I-B I-A", [(0, 2, "A"), (3, 4, "B"), (4, 5, "A")]),
    ("io", "PER PER O LOC", [(0, 2, "PER"), (3, 4, "LOC")]),  # no prefixes
    ("iob2", "B-PHONE-NUMBER I-PHONE-NUMBER", [(0, 2, "PHONE-NUMBER")]),
    ("iob2", "B_PER I_PER", [(0, 2, "PER")]),
    ("io", "E-MAIL I-E-MAIL O B2B", [(0, 2, "E-MAIL"), (3, 4, "B2B")]),  # declared, so only I is a prefix
]


@pytest.mark.parametrize(("scheme", "tags", "spans"), GOLDEN)
def test_tags_are_read_as_spans(scheme: str, tags: str, spans: list) -> None:
    assert spans_of(tags.split(), scheme) == spans


@pytest.mark.parametrize(
    ("sentences", "scheme"),
    [
        (["B-A I-A", "O B-B"], "iob2"),
        (["I-A I-A B-A"], "iob1"),
        (["I-A O I-B"], "io"),
        (["B-A E-A", "S-B"], "bioes"),
        (["S-A", "S-B"], "bioes"),
        (["PER O LOC"], "io"),
        (["O O"], "iob2"),
        ([], "iob2"),
    ],
)
def test_the_scheme_is_detected(sentences: list[str], scheme: str) -> None:
    assert detect_scheme([tags.split() for tags in sentences]) == scheme


@pytest.mark.parametrize(
    ("sentences", "place"),
    [
        (["B-A O", "O I-A B-B"], (1, 1)),  # IOB2, or IOB1, but not both
        (["B-A I-B"], (0, 1)),
        (["B-A E-A", "I-A"], (1, 0)),
        (["PER O E-MAIL"], (0, 2)),  # without a declared scheme, it may be the end of a MAIL
    ],
)
def test_tags_of_no_scheme_are_refused_with_their_position(sentences: list[str], place: tuple[int, int]) -> None:
    with pytest.raises(TagError) as caught:
        detect_scheme([tags.split() for tags in sentences])
    assert (caught.value.sentence, caught.value.word) == place


def test_the_message_names_the_illegal_tag() -> None:
    with pytest.raises(TagError, match="'I-PER' after 'O', which is illegal in iob2"):
        spans_of(["O", "I-PER"], "iob2")
    with pytest.raises(TagError, match=r"'B-A'.*illegal in bioes"):  # a span may not stay open
        spans_of(["B-A"], "bioes")


def some_spans(draw: st.DrawFn, *, touching: bool) -> tuple[list, int]:
    spans, at = [], 0
    for _ in range(draw(st.integers(0, 6))):
        start = at + draw(st.integers(0 if touching else 1, 3))
        at = start + draw(st.integers(1, 4))
        spans.append((start, at, draw(st.sampled_from(["A", "B", "PHONE-NUMBER"]))))
    return spans, at + draw(st.integers(0, 3))


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_spans_survive_a_conversion_to_tags(scheme: str, data: st.DataObject) -> None:
    spans, length = some_spans(data.draw, touching=scheme != "io")
    tags = tags_of(spans, length, scheme)
    assert spans_of(tags, scheme) == spans
    assert tags_of(spans_of(tags, scheme), length, scheme) == tags
    assert set(tags) <= set(tag_set(labels_of(tags, scheme), scheme))


@pytest.mark.parametrize("scheme", SCHEMES)
@given(seed=st.integers(0, 10_000), words=st.integers(1, 5))
@settings(deadline=None)  # 9**5 sequences take a while on a busy machine
def test_the_decoder_finds_the_best_of_all_legal_sequences(scheme: str, seed: int, words: int) -> None:
    tags = tag_set(["A", "B"], scheme)
    scores = np.random.default_rng(seed).normal(size=(words, len(tags))).astype(np.float32)

    def legal(path: tuple[int, ...]) -> bool:
        try:
            spans_of([tags[index] for index in path], scheme)
        except TagError:
            return False
        return True

    paths = [path for path in itertools.product(range(len(tags)), repeat=words) if legal(path)]
    best = max(paths, key=lambda path: sum(scores[word, index] for word, index in enumerate(path)))
    assert tuple(TagDecoder(tags, scheme).best(scores)) == best


def test_the_decoder_accepts_an_empty_sequence() -> None:
    assert len(TagDecoder(("O", "B-A", "I-A"), "iob2").best(np.zeros((0, 3), dtype=np.float32))) == 0


def test_a_span_that_stays_open_is_named_at_its_last_tag() -> None:
    with pytest.raises(TagError, match="'B-A' after 'O', which is illegal in bioes") as caught:
        spans_of(["O", "B-A"], "bioes")
    assert caught.value.word == 1
