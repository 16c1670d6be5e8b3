"""Batches: every row once, within the budget, in an order that depends only on seed and epoch."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlptasks.backbones.info import ENCODER, BackboneInfo
from nlptasks.inference.batching import Instance, collate, collate_instances, epoch_batches, length_batches, pad
from nlptasks.types import IGNORED, Window


@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=400),
    budget=st.integers(1, 1000),
    epoch=st.integers(0, 3),
)
def test_every_row_is_in_one_batch_within_the_budget(lengths: list[int], budget: int, epoch: int) -> None:
    batches = epoch_batches(lengths, budget, seed=1, epoch=epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


def test_the_order_depends_only_on_seed_and_epoch() -> None:
    lengths = [random.Random(1).randint(1, 50) for _ in range(300)]
    first = epoch_batches(lengths, 100, seed=1, epoch=2)
    random.seed(99)
    state = random.getstate()
    assert epoch_batches(lengths, 100, seed=1, epoch=2) == first
    assert random.getstate() == state
    assert epoch_batches(lengths, 100, seed=1, epoch=3) != first
    assert epoch_batches(lengths, 100, seed=2, epoch=2) != first


def test_batches_of_similar_lengths_waste_little() -> None:
    lengths = [random.Random(i).randint(1, 60) for i in range(2000)]
    batches = epoch_batches(lengths, 512, seed=0, epoch=0)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert sum(lengths) / padded > 0.95


def test_length_batches_keep_the_order() -> None:
    assert length_batches([3, 3, 3, 9, 1], 6, range(5)) == [[0, 1], [2], [3], [4]]


def test_padding() -> None:
    padded = pad([np.array([1, 2]), np.array([3])], -100, 3)
    assert padded.tolist() == [[1, 2, -100], [3, -100, -100]]
    assert padded.dtype == np.int64


@pytest.mark.parametrize(("longest", "multiple", "size"), [(5, 1, 5), (5, 8, 8), (8, 8, 8), (57, 8, 62), (62, 8, 62)])
def test_lengths_are_multiples_up_to_the_longest_window(longest: int, multiple: int, size: int) -> None:
    info = BackboneInfo("tiny", None, ENCODER, 32, 62, 62, vocabulary_size=300, token_types=2, pad_id=9)
    row = np.arange(longest)
    window = Window(row, row * 0, row * 0, np.zeros((longest, 2), dtype=np.int64))
    arrays = collate([window, window], info, multiple=multiple)
    assert {name: array.shape for name, array in arrays.items()} == dict.fromkeys(("ids", "mask", "types"), (2, size))
    assert arrays["mask"].sum() == 2 * longest
    assert (arrays["ids"][:, longest:] == 9).all()


def test_targets_are_padded_with_the_value_that_losses_ignore() -> None:
    info = BackboneInfo("tiny", None, ENCODER, 32, 62, 62, vocabulary_size=300, token_types=2, pad_id=9)

    def instance(index: int, length: int) -> Instance:
        row = np.arange(length)
        window = Window(row, row * 0, row * 0, np.zeros((length, 2), dtype=np.int64))
        return Instance(index, [window], [{"labels": row}], 0)

    arrays = collate_instances([instance(4, 2), instance(7, 3)], info)
    assert arrays["labels"].tolist() == [[0, 1, IGNORED], [0, 1, 2]]
    assert arrays["example"].tolist() == [0, 1]
