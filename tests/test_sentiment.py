"""The sentiment head: positions of labels on a scale, and polarity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlptasks.backbones.info import BackboneInfo
from nlptasks.backbones.pretrained import load_backbone
from nlptasks.errors import DataError, UsageError
from nlptasks.heads.sentiment import Sentiment, SentimentConfig, SentimentHead
from nlptasks.metrics.base import merge
from nlptasks.types import Row, Window


@pytest.fixture(scope="module")
def info(backbones: Path) -> BackboneInfo:
    return load_backbone(str(backbones / "bert")).info


def configured(info: BackboneInfo, *labels: Any, **options: Any) -> SentimentConfig:
    rows = [Row({"text": "x", "label": label}, f"data.jsonl:{line}") for line, label in enumerate(labels, start=1)]
    return SentimentHead.configure(rows, SentimentConfig(**options), info)


def answer(head: SentimentHead, *logits: float) -> Sentiment:
    zeros = np.zeros(2, dtype=np.int64)
    windows = [Window(zeros, zeros, zeros, np.zeros((2, 2), dtype=np.int64))]
    return head.decode(head.read(Row({"text": "x"}, "x:1")), windows, [{"logits": np.array(logits, np.float32)}])


@pytest.mark.parametrize(
    ("labels", "positions"),
    [
        (["positive", "negative"], {"negative": -1, "positive": 1}),
        (["pos", "neg"], {"neg": -1, "pos": 1}),
        (["Positive", "NEUTRAL", "Negative"], {"Negative": -1, "NEUTRAL": 0, "Positive": 1}),
        (["neutral", "positive"], {"neutral": 0, "positive": 1}),
        ([1, 0], {"0": -1, "1": 1}),
        (["1", "-1", "0"], {"-1": -1, "0": 0, "1": 1}),
        ([True, False], {"false": -1, "true": 1}),
        ([5, 1, 3, 2, 4], {"1": -1, "2": -0.5, "3": 0, "4": 0.5, "5": 1}),
        ([5, 1, 4], {"1": -1, "4": 0.5, "5": 1}),
        (["1 star", "5 stars", "3 stars"], {"1 star": -1, "3 stars": 0, "5 stars": 1}),
        ([10, 1], {"1": -1, "10": 1}),
        (["very_positive", "negative", "Very Negative"], {"Very Negative": -1, "negative": -0.5, "very_positive": 1}),
    ],
)
def test_common_scales_are_known(info: BackboneInfo, labels: list[Any], positions: dict[str, float]) -> None:
    config = configured(info, *labels)
    assert config.labels == tuple(positions)
    assert dict(zip(config.labels, config.polarities, strict=True)) == pytest.approx(positions)


@pytest.mark.parametrize(
    "labels", [[0, 1, 2], [1, 2], [2, 3, 4], [0, 4], ["LABEL_0", "LABEL_1"], ["good", "meh"], ["positive", "Positive"]]
)
def test_ambiguous_scales_are_refused(info: BackboneInfo, labels: list[Any]) -> None:
    with pytest.raises(DataError, match=r"data.jsonl:1: the order of the labels .* is not known; .*`options="):
        configured(info, *labels)


def test_the_scale_is_an_option(info: BackboneInfo) -> None:
    config = configured(info, "ok", "good", "bad", scale=("bad", "ok", "good"))
    assert (config.labels, config.polarities) == (("bad", "ok", "good"), (-1.0, 0.0, 1.0))
    with pytest.raises(UsageError, match=r"^scale: has the labels bad, good, those found are bad, good, ok"):
        configured(info, "ok", "good", "bad", scale=("bad", "good"))


def test_class_weights_follow_the_order_of_the_scale(info: BackboneInfo) -> None:
    weights = {"bad": 2.0, "good": 3.0}
    config = configured(info, "ok", "good", "bad", scale=("ok", "good", "bad"), class_weights=weights)
    assert (config.labels, config.weights) == (("ok", "good", "bad"), (1.0, 3.0, 2.0))
    assert configured(info, "positive", "negative").weights == ()


def test_several_labels_are_refused(info: BackboneInfo) -> None:
    with pytest.raises(DataError, match="has several labels for a text, expected one on a scale"):
        configured(info, ["positive"], ["negative"])


def test_a_checkpoint_keeps_the_order_of_its_classes(info: BackboneInfo) -> None:
    checkpoint = replace(info, config={**info.config, "id2label": {0: "positive", 1: "negative", 2: "neutral"}})
    config = SentimentHead.hugging_face.to_config(checkpoint, {})
    assert (config.labels, config.polarities) == (("positive", "negative", "neutral"), (1.0, -1.0, 0.0))
    assert SentimentHead.hugging_face.to_checkpoint(config, info)[1] == []
    config = SentimentHead.hugging_face.to_config(checkpoint, {"scale": ("neutral", "negative", "positive")})
    assert config.polarities == (1.0, 0.0, -1.0)
    _, lost = SentimentHead.hugging_face.to_checkpoint(config, info)
    assert lost == ["the order of its labels: set its scale to import it again"]


def test_polarity_is_the_mean_position(info: BackboneInfo) -> None:
    head = SentimentHead(configured(info, "negative", "neutral", "positive"), info)
    result = answer(head, 0.0, 0.0, float(np.log(2)))
    assert (result.label, result.score) == ("positive", pytest.approx(0.5))
    assert result.polarity == pytest.approx(0.5 - 0.25)
    assert answer(head, 30.0, 0.0, 0.0).polarity == pytest.approx(-1)
    assert answer(head, 0.0, 30.0, 0.0).polarity == pytest.approx(0)
    assert head.decode(head.read(Row({"text": ""}, "x:1")), [], []) == Sentiment(None, None, {}, None)


def test_the_error_is_a_share_of_the_scale(info: BackboneInfo) -> None:
    head = SentimentHead(configured(info, 1, 2, 3, 4, 5), info)
    examples = [head.read(Row({"text": "x", "label": label}, "x:1")) for label in (1, 5, 3, 3)]
    found = [Sentiment(label, 1.0, {}, 0.0) for label in ("1", "1", "4")] + [Sentiment(None, None)]
    metrics = head.metrics(merge(map(head.count, examples, found)))
    assert metrics.values["mae"] == pytest.approx((0 + 1 + 0.25 + 1) / 4)
    assert metrics.values["accuracy"] == 0.25
    assert metrics.main == "accuracy"
