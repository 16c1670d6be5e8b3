"""The sentiment head: which labels stand where on the scale, and polarity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlptasks.backbones.backbone import BackboneInfo, read_config
from nlptasks.errors import DataError, UsageError
from nlptasks.heads.sentiment import Sentiment, SentimentHead
from nlptasks.types import Row, Window


def configured(*labels: Any, **options: Any) -> Any:
    rows = [Row({"text": "x", "label": label}, f"data.jsonl:{line}") for line, label in enumerate(labels, start=1)]
    return SentimentHead.configure(rows, options)


@pytest.fixture(scope="module")
def info(backbones: Path) -> BackboneInfo:
    config = read_config((backbones / "bert" / "config.json").read_bytes(), where="bert")
    return BackboneInfo("bert", None, config, 64, 0, True)


def answer(head: SentimentHead, *logits: float) -> Sentiment:
    zeros = np.zeros(2, dtype=np.int64)
    windows = [Window(zeros, zeros, zeros, np.zeros((2, 2), dtype=np.int64))]
    return head.decode(head.read(Row({"text": "x"}, "x:1")), windows, [{"logits": np.array(logits, np.float32)}])


@pytest.mark.parametrize(
    ("labels", "places"),
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
def test_common_scales_are_known(labels: list[Any], places: dict[str, float]) -> None:
    config = configured(*labels)
    assert config.labels == tuple(places)
    assert dict(zip(config.labels, config.polarities, strict=True)) == pytest.approx(places)


@pytest.mark.parametrize(
    "labels", [[0, 1, 2], [1, 2], [2, 3, 4], [0, 4], ["LABEL_0", "LABEL_1"], ["good", "meh"], ["positive", "Positive"]]
)
def test_ambiguous_scales_are_refused(labels: list[Any]) -> None:
    with pytest.raises(DataError, match=r"data.jsonl:1: the order of the labels .* is not known; .*HEAD.scale="):
        configured(*labels)


def test_a_scale_can_be_given() -> None:
    config = configured("ok", "good", "bad", scale="bad,ok,good")
    assert (config.labels, config.polarities) == (("bad", "ok", "good"), (-1.0, 0.0, 1.0))
    with pytest.raises(UsageError, match="has the labels bad, good, those found are bad, good, ok"):
        configured("ok", "good", "bad", scale="bad,good")


def test_several_labels_are_refused() -> None:
    with pytest.raises(DataError, match="has several labels for a text, expected one on a scale"):
        configured(["positive"], ["negative"])


def test_polarity_is_the_mean_place(info: BackboneInfo) -> None:
    head = SentimentHead(configured("negative", "neutral", "positive"), backbone=info)
    result = answer(head, 0.0, 0.0, float(np.log(2)))
    assert (result.label, result.score) == ("positive", pytest.approx(0.5))
    assert result.polarity == pytest.approx(0.5 - 0.25)
    assert answer(head, 30.0, 0.0, 0.0).polarity == pytest.approx(-1)
    assert answer(head, 0.0, 30.0, 0.0).polarity == pytest.approx(0)
    assert head.decode(head.read(Row({"text": ""}, "x:1")), [], []) == Sentiment(None, None, {}, None)


def test_the_error_is_a_share_of_the_scale(info: BackboneInfo) -> None:
    head = SentimentHead(configured(1, 2, 3, 4, 5), backbone=info)
    examples = [head.read(Row({"text": "x", "label": label}, "x:1")) for label in (1, 5, 3, 3)]
    found = [Sentiment(label, 1.0, {}, 0.0) for label in ("1", "1", "4")] + [Sentiment(None, None)]
    metrics = head.metrics(examples, found)
    assert metrics["mae"] == pytest.approx((0 + 1 + 0.25 + 1) / 4)
    assert metrics["accuracy"] == 0.25
