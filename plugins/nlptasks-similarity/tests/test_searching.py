"""Search by meaning: ranking, errors, and blocks that change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nlptasks_similarity import Hit, Search

import nlptasks
import nlptasks.pipeline
from nlptasks import DataError, UsageError
from nlptasks.pipeline import Pipeline
from nlptasks.testing import checks, make_tiny


@pytest.fixture(scope="module")
def minilm() -> Pipeline:
    return nlptasks.pipeline.pipeline("similarity", model="minilm")


TEXTS = [
    "The cat sleeps on the warm stove.",
    "Prices have risen by five per cent this year.",
    "He plays the piano every evening.",
    "The train to Lisbon leaves at nine.",
    "",
    "Tomatoes need sun and water.",
]


def test_search_ranks_by_meaning_without_training(minilm: Pipeline) -> None:
    index = Search(minilm, TEXTS)
    assert len(index) == 6
    queries = {"a kitten taking a nap": 0, "inflation": 1, "making music": 2, "rail travel": 3, "gardening": 5}
    found = index.search(list(queries), top_k=2)
    assert [hits[0].index for hits in found] == list(queries.values())
    assert all(len(hits) == 2 and hits[0].score >= hits[1].score for hits in found)
    one = index.search("inflation", top_k=99)
    assert [type(hit) for hit in one] == [Hit] * 5  # the empty text is not found
    assert one[0].text == TEXTS[1]
    assert one[0].score == pytest.approx(minilm({"first": "inflation", "second": TEXTS[1]}).score, abs=1e-6)


def test_search_accepts_an_iterator_and_queries_without_tokens(minilm: Pipeline) -> None:
    index = Search(minilm, iter(TEXTS[:2]))
    assert index.texts == tuple(TEXTS[:2])
    assert index.search(["", "cat"], top_k=1) == [[], index.search("cat", top_k=1)]
    assert index.search([]) == []
    assert Search(minilm, [""]).search("cat") == []


def test_equal_texts_are_found_in_their_order(minilm: Pipeline) -> None:
    index = Search(minilm, ["same"] * 5)
    assert [hit.index for hit in index.search("same", top_k=3)] == [0, 1, 2]


def test_wrong_arguments_of_a_search_are_refused(minilm: Pipeline) -> None:
    with pytest.raises(UsageError, match="Search: got no texts; pass at least one"):
        Search(minilm, [])
    with pytest.raises(UsageError, match="Search: got one text, 'abc'; pass a list of texts"):
        Search(minilm, "abc")
    with pytest.raises(DataError, match="text 2: text is 5, expected a string"):
        Search(minilm, ["a", 5])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="head 'other': is no head for similarity"):
        Search(minilm, ["a"], head="other")
    index = Search(minilm, ["a"])
    for top_k in (0, -1, 1.5, True):
        with pytest.raises(UsageError, match=r"top_k: is .*; pass a whole number of at least 1"):
            index.search("a", top_k=top_k)  # type: ignore[call-overload]
    with pytest.raises(DataError, match="query 1: text is None, expected a string"):
        index.search([None])  # type: ignore[list-item]


def test_search_needs_one_head_for_similarity(tmp_path: Path) -> None:
    make_tiny("bert", tmp_path / "backbone")
    own, other = (checks.make_head(task, tmp_path / "backbone") for task in ("similarity", "qa"))
    [record], [other_record] = own.model().records.values(), other.model().records.values()
    heads, networks = {"one": own.head, "two": own.head}, {"one": own.network, "two": own.network}
    model = nlptasks.Model(
        own.backbone,
        {**heads, "qa": other.head},
        {**networks, "qa": other.network},
        {"one": record, "two": record, "qa": other_record},
    )
    model.save(tmp_path / "model")
    every = nlptasks.pipeline.pipeline(["one", "two", "qa"], model=tmp_path / "model")
    with pytest.raises(UsageError, match="has 2 heads for similarity; name one: one, two"):
        Search(every, ["a"])
    # The head for questions cannot read a bare text, and it is not run.
    assert Search(every, ["a cat", "a dog"], head="two").search("a cat", top_k=1)[0].index == 0
    with pytest.raises(UsageError, match="has no head for similarity, only qa"):
        Search(nlptasks.pipeline.pipeline(["qa"], model=tmp_path / "model"), ["a"])


@given(
    arrays(np.float32, (40, 3), elements=st.sampled_from([-1.0, 0.0, 0.5, 1.0])),
    arrays(np.float32, (3, 3), elements=st.sampled_from([-1.0, 0.0, 1.0])),
    st.integers(1, 50),
    st.integers(1, 50),
)
def test_blocks_do_not_change_what_is_found(vectors: Any, queries: Any, top_k: int, block: int) -> None:
    index = Search.__new__(Search)
    index.vectors = vectors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nlptasks_similarity.searching._BLOCK", block)
        found = list(index._nearest(queries, top_k))
    for query, (places, scores) in zip(queries, found, strict=True):
        cosines = vectors @ query
        expected = sorted(range(40), key=lambda place: (-cosines[place], place))[:top_k]
        assert places.tolist() == expected
        assert scores.tolist() == cosines[expected].tolist()
