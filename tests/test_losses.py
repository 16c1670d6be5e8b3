"""Losses have the values of PyTorch with all options; wrong options are refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nlptasks.backbones.info import BackboneInfo
from nlptasks.backbones.pretrained import load_backbone
from nlptasks.config import check_options
from nlptasks.errors import UsageError
from nlptasks.heads.class_weights import class_weights
from nlptasks.heads.ner import NerConfig, NerHead
from nlptasks.networks.base import make_network
from nlptasks.networks.losses import cross_entropy
from nlptasks.types import Row

TOLERANCE = 1e-6
LABELS = torch.tensor([[0, 2, -100], [1, 1, -100]])  # [B,S]
ROWS = [
    Row({"tokens": "Ada Smith saw London today .", "tags": "B-PER I-PER O B-LOC O O"}, "a.jsonl:1"),
    Row({"text": "Bob left", "spans": [[0, 3, "PER"]]}, "a.jsonl:2"),
]


@pytest.fixture(scope="module")
def info(backbones: Path) -> BackboneInfo:
    return load_backbone(str(backbones / "bert")).info


def configured(info: BackboneInfo, given: dict[str, Any]) -> NerConfig:
    return NerHead.configure(ROWS, NerConfig(**check_options(NerConfig, given)), info)


@pytest.mark.parametrize("weights", [(), (1.0, 1.0, 1.0), (0.2, 3.0, 1.5)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_the_mean_is_that_of_pytorch(weights: tuple[float, ...], smoothing: float) -> None:
    logits = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))  # [B,S,C]
    total, count = cross_entropy(logits, LABELS, weights=weights, smoothing=smoothing)
    theirs = nn.CrossEntropyLoss(torch.tensor(weights) if weights else None, label_smoothing=smoothing)
    expected = theirs(logits.flatten(0, 1), LABELS.flatten())
    torch.testing.assert_close(total / count, expected, atol=TOLERANCE, rtol=0)
    assert total.shape == count.shape == ()


def test_the_mean_by_the_formula() -> None:
    """Weighted, smoothed cross entropy (Szegedy et al. 2016, section 7), written out."""
    logits, weights, smoothing = torch.tensor([[1.0, 2.0], [0.5, -1.0]]), (0.5, 2.0), 0.2
    labels = torch.tensor([1, 0])
    logs = logits.log_softmax(1)
    expected = 0.0
    for row, label in zip(logs, labels, strict=True):
        expected -= (1 - smoothing) * weights[label] * row[label].item()
        expected -= smoothing / 2 * sum(weight * value.item() for weight, value in zip(weights, row, strict=True))
    total, count = cross_entropy(logits, labels, weights=weights, smoothing=smoothing)
    assert total.item() == pytest.approx(expected, abs=TOLERANCE)
    assert count.item() == pytest.approx(2.5)


def test_without_options_the_sum_equals_that_of_pytorch_bit_for_bit() -> None:
    logits = torch.randn(4, 7, 9, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(0, 9, (4, 7), generator=torch.Generator().manual_seed(2))
    labels[:, 5:] = -100
    plain = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    total, count = cross_entropy(logits, labels)
    assert torch.equal(total, plain)
    assert count.item() == 20


def test_a_batch_without_labels_has_the_sum_and_count_zero() -> None:
    for weights in ((), (1.0, 2.0)):
        total, count = cross_entropy(torch.zeros(1, 2, 2), torch.full((1, 2), -100), weights=weights, smoothing=0.1)
        assert (total.item(), count.item()) == (0, 0)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("none", {"O": 1, "PER": 1, "LOC": 1, "a:b": 1}),
        (
            "balanced",
            {"O": 12 / (3 * 6), "PER": 12 / (3 * 4), "LOC": 12 / (3 * 2), "a:b": 1},
        ),  # the last one never occurs
        ({"PER": 2.5}, {"O": 1, "PER": 2.5, "LOC": 1, "a:b": 1}),
        ({"O": 0.1, "a:b": 3}, {"O": 0.1, "PER": 1, "LOC": 1, "a:b": 3}),
    ],
)
def test_weights_of_classes(option: Any, expected: dict[str, float]) -> None:
    assert class_weights(option, {"O": 6, "PER": 4, "LOC": 2, "a:b": 0}, where="x") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"PRE": 2}, "has the unknown label 'PRE'; did you mean 'PER'?"),
        ({"XYZ": 2}, "has the unknown label 'XYZ'; known are: LOC, O, PER"),
        ("balance", "is 'balance'; use one of none, balanced, a dict of numbers by name"),
        ("PER:2", "is 'PER:2'; use one of none, balanced, a dict of numbers by name"),
        ("", "is ''; use one of none, balanced"),
        ({"PER": 0}, "has 0 for 'PER'; give a number above 0"),
        ({"PER": -1}, "has -1 for 'PER'"),
        ({"PER": float("nan")}, "has nan for 'PER'"),
        ({"PER": float("inf")}, "has inf for 'PER'"),
        ({"PER": "two"}, "is {'PER': 'two'}; use one of none"),
        ({"PER": True}, "is {'PER': True}; use one of none"),
        ({1: 2.0}, "is {1: 2.0}; use one of none"),
        (["PER"], "is ['PER']; use one of none"),
    ],
)
def test_wrong_weights_are_refused(info: BackboneInfo, option: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        configured(info, {"class_weights": option})
    assert str(caught.value).startswith(f"class_weights: {message}")


@pytest.mark.parametrize("value", [1, -0.1, float("nan"), 1.0])
def test_label_smoothing_outside_its_range_is_refused(info: BackboneInfo, value: Any) -> None:
    with pytest.raises(UsageError, match=r"^label_smoothing: is .*; give a number of at least 0, below 1"):
        configured(info, {"label_smoothing": value})


def test_the_weight_of_a_tag_is_that_of_its_label_among_all_words(info: BackboneInfo) -> None:
    config = configured(info, {"class_weights": "balanced", "label_smoothing": 0.1})
    assert config.tags == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert config.weights == pytest.approx((8 / 12, 8 / 3, 8 / 3, 8 / 9, 8 / 9))  # 8 words: 4 O, 1 LOC, 3 PER
    assert config.label_smoothing == 0.1
    assert configured(info, {"class_weights": {"O": 0.5}}).weights == (0.5, 1, 1, 1, 1)
    with pytest.raises(UsageError, match=r"^class_weights: has the unknown label 'B-PER'; did you mean 'PER'"):
        configured(info, {"class_weights": {"B-PER": 2}})


def test_the_config_survives_json(info: BackboneInfo) -> None:
    config = configured(info, {"class_weights": {"PER": 2}, "label_smoothing": 0.1})
    read = json.loads(json.dumps(asdict(config)))
    again = NerConfig(**{key: tuple(value) if isinstance(value, list) else value for key, value in read.items()})
    assert again == config


def trained_weights(info: BackboneInfo, given: dict[str, Any]) -> torch.Tensor:
    """Return the weights of the network after three steps on the same hidden states."""
    torch.manual_seed(0)
    head = NerHead(configured(info, given), info)
    network = make_network(head.network, info, head.network_options()).eval()
    states = torch.randn(2, 3, info.width)
    batch = {"mask": torch.ones(2, 3, dtype=torch.long), "labels": LABELS}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        total, count = network.loss(network.training_outputs(states, batch), batch)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def test_the_options_change_the_trained_weights(info: BackboneInfo) -> None:
    plain = trained_weights(info, {})
    assert torch.equal(plain, trained_weights(info, {"class_weights": "none", "label_smoothing": 0}))
    for given in ({"class_weights": "balanced"}, {"class_weights": {"LOC": 3}}, {"label_smoothing": 0.1}):
        assert not torch.allclose(plain, trained_weights(info, given), atol=1e-4)
