"""Pooled embeddings: pooling, windows merged to texts, and both losses with values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from nlptasks.backbones.info import ENCODER, ENCODER_DECODER, BackboneInfo
from nlptasks.networks.base import make_network
from nlptasks.networks.pooled_embedding import (
    PooledEmbedding,
    TextBatch,
    contrastive_loss,
    cosine_loss,
    merge_windows,
)

STATES = torch.tensor([[[1.0, 2.0], [3.0, -4.0], [9.0, 9.0]], [[-5.0, 0.5], [-1.0, 1.5], [-3.0, 4.0]]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


def info(kind: str = ENCODER) -> BackboneInfo:
    return BackboneInfo("tiny", None, kind, 2, 64, 64, 9, 2, 0)


def test_it_is_built_by_its_path() -> None:
    path = "nlptasks.networks.pooled_embedding:PooledEmbedding"
    network = make_network(path, info(), {"pooling": "max", "dimensions": 0, "loss": "cosine", "scale": 20.0})
    assert isinstance(network, PooledEmbedding)
    assert (network.outputs, network.targets) == ({"embedding": "BH"}, {"texts": "BC", "cosine": "BC"})


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("mean", [[2.0, -1.0], [-3.0, 2.0]]),
        ("cls", [[1.0, 2.0], [-5.0, 0.5]]),
        ("max", [[3.0, 2.0], [-1.0, 4.0]]),
    ],
)
def test_padding_is_not_pooled(pooling: str, expected: list[list[float]]) -> None:
    network = PooledEmbedding(info(), pooling=pooling)
    torch.testing.assert_close(network(STATES, {"mask": MASK}), {"embedding": torch.tensor(expected)})


def test_training_outputs_are_float32_under_autocast() -> None:
    network = PooledEmbedding(info(), dimensions=3)
    assert network.outputs == {"embedding": "BE"}
    with torch.autocast("cpu", torch.bfloat16):
        assert network(STATES, {"mask": MASK})["embedding"].dtype == torch.bfloat16
        found = network.training_outputs(STATES.bfloat16(), {"mask": MASK})["embedding"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, network(STATES.bfloat16().float(), {"mask": MASK})["embedding"])


def test_the_loss_merges_the_windows_of_a_text() -> None:
    network = PooledEmbedding(info())
    # The first text of the only example has two windows, of two tokens and of one.
    windows = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 9.0]], requires_grad=True)
    batch = {
        "mask": torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]),
        "texts": torch.tensor([[2], [0], [2]]),
        "example": torch.zeros(3, dtype=torch.int64),
        "cosine": torch.full((3, 1), 0.5),
    }
    total, count = network.loss({"embedding": windows}, batch)
    assert total.item() == pytest.approx((10 / math.hypot(6, 10) - 0.5) ** 2)
    assert count.item() == 1
    total.backward()
    assert windows.grad is not None
    assert windows.grad[:2].abs().sum(1).min() > 0


def test_only_an_encoder_without_a_projection_has_checkpoints() -> None:
    assert isinstance(PooledEmbedding(info()).hf_module, torch.nn.Identity)
    assert PooledEmbedding(info(), dimensions=1).hf_module is None
    assert PooledEmbedding(info(ENCODER_DECODER)).hf_module is None
    assert PooledEmbedding(info()).hf_outputs(STATES, {"mask": MASK}) == ({"last_hidden_state": STATES}, {})


def test_examples_that_lack_the_windows_of_a_text_are_left_out() -> None:
    # The first example has two windows for its first text, the second lacks a text, the third is complete.
    windows = torch.tensor([[3.0, 4.0], [0.0, 2.0], [5.0, 0.0], [1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
    mask = torch.tensor([[1, 1], [1, 0], [1, 0], [1, 1], [1, 0], [1, 1]])
    counts, example = torch.tensor([2, 0, 2, 2, 2, 2]), torch.tensor([0, 0, 0, 1, 2, 2])
    found = merge_windows(windows, mask, counts, example, example)
    expected = torch.tensor([[6.0, 10.0], [1.0, 0.0], [0.0, 1.0], [6.0, 8.0]])
    torch.testing.assert_close(found.vectors, torch.nn.functional.normalize(expected))
    assert found.first.tolist() == [True, False, True, False]
    assert found.second.tolist() == [False, True, False, True]
    assert not found.negative.any()
    assert found.target.tolist() == [0, 0, 2, 2]


def test_the_cosine_loss_is_the_squared_error() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [1.0, 0.0], [0.0, 1.0]])
    first = torch.tensor([True, False, True, False])
    cosines = torch.tensor([[1.0], [1.0], [0.25], [0.25]])
    total, count = cosine_loss(TextBatch(vectors, first, ~first, torch.zeros(4, dtype=torch.bool), cosines), 20)
    assert total.item() == pytest.approx((0.6 - 1) ** 2 + 0.25**2)
    assert count.item() == 2


def contrastive(vectors: list[list[float]], parts: list[int], keys: list[list[int]]) -> tuple[float, int]:
    part = torch.tensor(parts)
    owner = (part == 0).cumsum(0) - 1
    texts = TextBatch(torch.tensor(vectors), part == 0, part == 1, part == 2, torch.tensor(keys)[owner])
    total, count = contrastive_loss(texts, 2.0)
    return total.item(), int(count)


def cross_entropy(right: float, *others: float) -> float:
    return math.log(sum(math.exp(one) for one in (right, *others))) - right


EAST, NORTH, BETWEEN = [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]


def test_the_contrastive_loss_has_the_value_computed_by_hand() -> None:
    # Cosines: first text 0 with second texts 0.6 and 0; first text 1 with 0.8 and 1; with the negative, EAST, 1 and 0.
    vectors, parts = [EAST, BETWEEN, EAST, NORTH, NORTH], [0, 1, 2, 0, 1]
    forward = cross_entropy(1.2, 0.0, 2.0) + cross_entropy(2.0, 1.6, 0.0)
    backward = cross_entropy(1.2, 1.6) + cross_entropy(2.0, 0.0)
    total, count = contrastive(vectors, parts, [[1, 2, 3], [4, 5, 0]])
    assert total == pytest.approx((forward + backward) / 2, abs=1e-5)
    assert count == 2


def test_a_right_answer_of_another_pair_is_no_negative() -> None:
    vectors, parts = [EAST, BETWEEN, NORTH, NORTH], [0, 1, 0, 1]
    assert contrastive(vectors, parts, [[1, 2, 0], [3, 2, 0]])[0] == pytest.approx(0, abs=1e-6)  # the same answer
    assert contrastive(vectors, parts, [[1, 2, 0], [1, 3, 0]])[0] == pytest.approx(0, abs=1e-6)  # the same question
    third = [[*vectors, EAST, NORTH], [*parts, 0, 1]]
    # Text 1 has the answers 2 and 3, by the first two pairs; 3 is also the answer of the third pair.
    total, _ = contrastive(*third, [[1, 2, 0], [1, 3, 0], [4, 3, 0]])
    forward = 0.0 + 0.0 + cross_entropy(0.0, 1.2)
    backward = cross_entropy(1.2, 1.2) + 0.0 + 0.0
    assert total == pytest.approx((forward + backward) / 2, abs=1e-5)


def test_a_batch_without_complete_examples_has_no_loss() -> None:
    windows = torch.tensor([[3.0, 4.0], [0.0, 2.0]], requires_grad=True)
    mask, example = torch.ones(2, 3, dtype=torch.int64), torch.tensor([0, 1])
    for loss, target in (("cosine", torch.zeros(2, 1)), ("contrastive", torch.zeros(2, 3, dtype=torch.int64))):
        network = PooledEmbedding(info(), loss=loss)
        batch = {"mask": mask, "texts": torch.tensor([[2], [2]]), "example": example}
        total, count = network.loss(
            {"embedding": windows}, {**batch, next(iter({*network.targets} - {"texts"})): target}
        )
        assert (total.item(), count.item()) == (0, 0)
