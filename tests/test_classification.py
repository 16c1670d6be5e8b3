"""The classification head: rows of every shape, one label or several, pairs, windows, thresholds, metrics."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import tiny
import torch

import nlptasks
from nlptasks.backbones.backbone import BackboneInfo, read_config
from nlptasks.config import TrainSettings
from nlptasks.data.readers import read_csv
from nlptasks.errors import DataError, DataErrors, ModelError, UsageError
from nlptasks.heads.classification import ClassificationConfig, ClassificationHead, Label, Labels
from nlptasks.heads.losses import binary_cross_entropy, example_means, of_first_windows
from nlptasks.metrics.labelling import best_thresholds, label_scores, label_set_scores
from nlptasks.pipeline import pipeline
from nlptasks.testing import checks
from nlptasks.text.windowing import Tokenizer
from nlptasks.types import Reading, Row, Window


def row(**fields: Any) -> Row:
    return Row(fields, "data.jsonl:7")


def rows_of(*fields: dict[str, Any]) -> list[Row]:
    return [Row(own, f"data.jsonl:{number}") for number, own in enumerate(fields, start=1)]


@pytest.fixture(scope="module")
def info(backbones: Path) -> BackboneInfo:
    config = read_config((backbones / "bert" / "config.json").read_bytes(), where="bert")
    return BackboneInfo("bert", None, config, 64, 0, True)


def made(info: BackboneInfo, **config: Any) -> ClassificationHead:
    return ClassificationHead(ClassificationConfig(**config), backbone=info).eval()


def window(tokens: int = 4) -> Window:
    zeros = np.zeros(tokens, dtype=np.int64)
    return Window(zeros, zeros, zeros, np.zeros((tokens, 2), dtype=np.int64))


def decoded(head: ClassificationHead, *logits: list[float]) -> Any:
    outputs = [{"logits": np.array(own, np.float32)} for own in logits]
    return head.decode(head.read(row(text="a")), [window()] * len(logits), outputs)


# Rows.


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["b", "a", "b"], ("a", "b")),
        ([10, 9, 2], ("2", "9", "10")),
        ([True, False, True], ("false", "true")),
        (["NA", "None", "null"], ("NA", "None", "null")),
        (["007", "1e5", "7"], ("007", "1e5", "7")),
    ],
)
def test_labels_are_taken_as_they_are(values: list[Any], labels: tuple[str, ...]) -> None:
    rows = rows_of(*({"text": "x", "label": value} for value in values))
    assert ClassificationHead.configure(rows, {}).labels == labels


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, "1"], "data.jsonl:2: has '1', but data.jsonl:1 has 1"),
        ([1, True], "data.jsonl:2: has True, but data.jsonl:1 has 1"),
        (["a", ["a", "b"]], r"data.jsonl:2: has \['a', 'b'\], but data.jsonl:1 has 'a'"),
        ([1, 1.0], "data.jsonl:2: has the label 1.0, expected a name or a whole number"),
        (["a", ""], "data.jsonl:2: has an empty label"),
        (["a", {"b": 1}], "data.jsonl:2: has the label {'b': 1}"),
        ([["a", None]], "data.jsonl:1: has the label None"),
        ([["a", 1]], "data.jsonl:1: has labels of several kinds"),
        ([[], []], "have no label at all|has no label at all"),
    ],
)
def test_mixed_and_odd_labels_are_refused(values: list[Any], message: str) -> None:
    rows = rows_of(*({"text": "x", "label": value} for value in values))
    with pytest.raises(DataError, match=message):
        ClassificationHead.configure(rows, {})


def test_a_label_that_training_has_not_seen_is_refused_with_the_nearest(info: BackboneInfo) -> None:
    head = made(info, labels=("billing", "returns"))
    with pytest.raises(
        DataError, match=r"data.jsonl:7: label 'biling' is not in the training data; did you mean 'billing'\?"
    ):
        head.read(row(text="x", label="biling"))


@pytest.mark.parametrize("text", ["", "  ", "\n\t"])
def test_an_empty_text_is_refused_where_there_is_something_to_learn(info: BackboneInfo, text: str) -> None:
    head = made(info, labels=("a", "b"))
    with pytest.raises(DataErrors) as caught:
        head.read_gold([row(text=text, label="a"), row(text="x", label="a"), row(text=text, label="b")])
    assert str(caught.value) == "data.jsonl:7 and 1 more: has an empty text; remove the row"
    assert head.read(row(text=text)).gold is None


def test_what_is_missing_or_too_much_is_named(info: BackboneInfo) -> None:
    one, pairs = made(info, labels=("a", "b")), made(info, labels=("a", "b"), pairs=True)
    for head, fields, message in (
        (one, {"txt": "x"}, "has no 'text', only txt; name the column: --columns text=NAME"),
        (one, {"text": 5}, "text is 5, expected a string"),
        (one, {"text": "x", "text_pair": "y"}, "has a 'text_pair', unlike the training data"),
        (pairs, {"text": "x"}, "has no 'text_pair', unlike the training data"),
        (one, {"text": "x", "labels": ["a", "b"]}, r"has \['a', 'b'\], expected one label as in training"),
    ):
        with pytest.raises(DataError, match=message):
            head.read(row(**fields))
    with pytest.raises(DataError, match=r"data.jsonl:2: has no 'text_pair', but data.jsonl:1 has one"):
        ClassificationHead.configure(
            rows_of({"text": "x", "text_pair": "y", "label": "a"}, {"text": "x", "label": "b"}), {}
        )
    with pytest.raises(DataError, match="has no gold answer among text, label"):
        one.read_gold([row(text="x", label=None)])


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("a,b", ("a", "b")),
        ("a", ("a",)),
        ('["a", "b, c"]', ("a", "b, c")),
        (" b , a , b ", ("b", "a")),
        ("", ()),
        ([], ()),
        (["a", "a"], ("a",)),
    ],
)
def test_lists_of_labels_are_read_from_text_too(info: BackboneInfo, cell: Any, labels: tuple[str, ...]) -> None:
    head = made(info, labels=("a", "b", "b, c"), several=True)
    assert head.read(row(text="x", labels=cell)).gold == labels


def test_the_separator_can_be_given() -> None:
    rows = rows_of({"text": "x", "labels": "a, b;c"}, {"text": "y", "labels": "c"})
    config = ClassificationHead.configure(rows, {"separator": ";"})
    assert (config.labels, config.several) == (("a, b", "c"), True)


def test_csv_needs_no_types(tmp_path: Path, info: BackboneInfo) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\nNA,0\n"a, b",1\n', encoding="utf-8")
    rows = list(read_csv(path))
    head = ClassificationHead(ClassificationHead.configure(rows, {}), backbone=info)
    assert [(one.source.first, one.gold) for one in head.read_gold(rows)] == [("NA", ("0",)), ("a, b", ("1",))]


@pytest.mark.parametrize(
    ("given", "weights"),
    [({}, ()), ({"class_weights": "balanced"}, (0.75, 1.5)), ({"class_weights": "b:3"}, (1.0, 3.0))],
)
def test_class_weights(given: dict[str, str], weights: tuple[float, ...]) -> None:
    rows = rows_of(*({"text": "x", "label": label} for label in "aab"))
    assert ClassificationHead.configure(rows, given).weights == weights


@pytest.mark.parametrize(
    "given", [{"separator": ""}, {"separator": 5}, {"label_smoothing": None}, {"label_smoothing": True}]
)
def test_odd_options_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ClassificationHead.configure(rows_of({"text": "x", "label": "a"}, {"text": "y", "label": "b"}), given)


def test_options_are_checked_by_their_names() -> None:
    rows = rows_of({"text": "x", "label": "a"}, {"text": "y", "label": "b"})
    with pytest.raises(UsageError, match=r"classification.class_weights: has the unknown label 'c'"):
        ClassificationHead.configure(rows, {"class_weights": "c:2"})
    with pytest.raises(
        UsageError,
        match=r"classification.sepp: is no option of this head; known are: class_weights, label_smoothing, separator",
    ):
        ClassificationHead.configure(rows, {"sepp": "x"})


# Results.


def test_a_label_has_its_probability_and_everybody_elses(info: BackboneInfo) -> None:
    result = decoded(made(info, labels=("a", "b", "c")), [0.0, 2.0, 1.0])
    total = 1 + np.e + np.e**2
    assert result.label == "b"
    assert result.score == pytest.approx(np.e**2 / total)
    assert list(result.scores) == ["b", "c", "a"]
    assert sum(result.scores.values()) == pytest.approx(1)


def test_logits_of_windows_are_averaged(info: BackboneInfo) -> None:
    head = made(info, labels=("a", "b"))
    assert decoded(head, [3.0, 0.0], [0.0, 4.0], [0.0, 2.0]) == decoded(head, [1.0, 2.0])


def test_the_temperature_makes_less_sure_and_changes_no_label(info: BackboneInfo) -> None:
    one = decoded(made(info, labels=("a", "b")), [0.0, 2.0])
    two = decoded(made(info, labels=("a", "b"), temperature=2.0), [0.0, 2.0])
    assert (one.label, two.label) == ("b", "b")
    assert two.score == pytest.approx(1 / (1 + np.exp(-1)))
    assert two.score < one.score


def test_several_labels_reach_their_thresholds(info: BackboneInfo) -> None:
    head = made(info, labels=("a", "b", "c"), several=True)
    assert decoded(head, [1.0, -1.0, 2.0]).labels == ("c", "a")
    assert decoded(head, [-1.0, -1.0, -2.0]).labels == ()
    strict = made(info, labels=("a", "b", "c"), several=True, thresholds=(0.9, 0.2, 0.5))
    assert decoded(strict, [1.0, -1.0, 2.0]).labels == ("c", "b")
    assert decoded(strict, [1.0, -1.0, 2.0]).scores["b"] == pytest.approx(1 / (1 + np.e))


def test_a_text_without_tokens_has_no_label_and_no_score(info: BackboneInfo) -> None:
    example = made(info, labels=("a", "b")).read(row(text=""))
    assert made(info, labels=("a", "b")).decode(example, [], []) == Label(None, None, {})
    assert made(info, labels=("a", "b"), several=True).decode(example, [], []) == Labels((), {})


# Losses.


def test_windows_count_as_one_example() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 0.0]])  # [B,C]
    example = torch.tensor([0, 0, 1])  # [B]
    assert example_means(logits, example).tolist() == [[2.0, 3.0], [5.0, 0.0]]
    assert of_first_windows(torch.tensor([7, 8, 9]), example).tolist() == [7, 9]


def test_binary_cross_entropy_is_torchs_mean() -> None:
    logits, targets = torch.randn(5, 3), torch.randint(0, 2, (5, 3))
    total, count = binary_cross_entropy(logits, targets)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets.float())
    torch.testing.assert_close(total / count, wanted)
    total, count = binary_cross_entropy(logits, targets, weights=(1.0, 2.0, 3.0), smoothing=0.2)
    soft = targets * 0.8 + 0.1
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, soft, pos_weight=torch.tensor([1.0, 2.0, 3.0])
    )
    torch.testing.assert_close(total / count, wanted)


# Metrics.


def test_scores_of_one_label_are_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    labels = ("a", "b", "c", "never")
    gold = [labels[index] for index in draw.integers(0, 3, 200)]
    found = [label if draw.random() < 0.6 else labels[draw.integers(0, 3)] for label in gold]
    scores = label_scores(gold, found, labels)
    assert scores["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(gold, found))
    for way in ("macro", "micro", "weighted"):
        assert scores[f"{way}_f1"] == pytest.approx(sklearn.metrics.f1_score(gold, found, average=way))
    assert scores["mcc"] == pytest.approx(sklearn.metrics.matthews_corrcoef(gold, found))
    assert scores["b.support"] == gold.count("b")
    assert (scores["never.f1"], scores["never.support"]) == (0.0, 0.0)
    by_hand = sum(g == f == "b" for g, f in zip(gold, found, strict=True)) / gold.count("b")
    assert scores["b.recall"] == pytest.approx(by_hand)


def test_no_label_is_a_wrong_one() -> None:
    assert label_scores(["a", "b"], ["a", None], ("a", "b"))["accuracy"] == 0.5
    assert label_scores(["a"], [None], ("a", "b"))["macro_f1"] == 0.0


def test_scores_of_several_labels_by_hand() -> None:
    gold, found = [{"a", "b"}, {"a"}, set()], [("a",), ("b",), ()]
    scores = label_set_scores(gold, found, [[0.9, 0.3], [0.2, 0.6], [0.1, 0.1]], ("a", "b"))
    assert scores["micro_f1"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 2))  # right: a; too much: b; missed: b, a
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert scores["a.average_precision"] == 1.0
    assert scores["b.average_precision"] == 0.5
    assert scores["average_precision"] == 0.75
    assert scores["a.recall"] == 0.5


def test_one_label_that_a_text_has_or_not() -> None:
    scores = label_set_scores([("a",), (), ("a",), ()], [("a",), ("a",), (), ()], [[0.9], [0.6], [0.4], [0.1]], ["a"])
    assert (scores["a.support"], scores["a.precision"], scores["a.recall"]) == (2, 0.5, 0.5)
    assert (scores["micro_f1"], scores["macro_f1"], scores["accuracy"]) == (0.5, 0.5, 0.5)


def test_without_gold_labels_thresholds_are_one_half() -> None:
    assert best_thresholds(np.array([[0.1, 0.9], [0.2, 0.3]]), np.zeros((2, 2), dtype=int)) == (0.5, 0.5)
    assert best_thresholds(np.zeros((0, 2)), np.zeros((0, 2), dtype=int)) == (0.5, 0.5)


@pytest.mark.filterwarnings("error")
def test_rows_of_one_label_alone_have_scores() -> None:
    assert label_scores(["a", "a"], ["a", "a"], ("a", "b"))["mcc"] == 0.0


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\u200b", "\x01\x02", "\ufeff"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "xlm-roberta"])
def test_a_text_that_cannot_be_seen_has_no_label(backbones: Path, architecture: str, text: str) -> None:
    subject = checks.make_subject("classification", backbones / architecture)
    example = subject.head.read(row(text=text))
    [windows] = subject.tokenizer.windows(subject.head.sources(example))
    outputs = [{"logits": np.arange(5, dtype=np.float32)} for _ in windows]
    assert subject.head.decode(example, windows, outputs) == Label(None, None, {})


def test_an_imported_head_reads_texts_and_pairs(info: BackboneInfo) -> None:
    head = made(info, labels=("a", "b"), pairs=None)
    assert head.read(row(text="x")).source.second is None
    assert head.read(row(text="x", text_pair="y")).source.second == "y"


def test_thresholds_are_those_with_the_highest_f1() -> None:
    draw = np.random.default_rng(3)
    right = (draw.random((300, 4)) < [0.5, 0.2, 0.05, 0.01]).astype(int)
    found = np.clip(right * 0.3 + draw.random((300, 4)) * 0.7, 0, 1)
    thresholds = best_thresholds(found, right)
    for column in range(3):
        reached = [
            sklearn.metrics.f1_score(right[:, column], found[:, column] >= threshold)
            for threshold in (thresholds[column], *found[:, column])
        ]
        assert reached[0] == max(reached)
    assert right[:, 3].sum() < 10
    assert thresholds[3] not in thresholds[:3]  # of all labels together


def test_fitting_thresholds_and_a_temperature_goes_through_the_config(info: BackboneInfo) -> None:
    head = made(info, labels=("a", "b"), several=True)
    draw = np.random.default_rng(4)
    readings = []
    for _ in range(300):
        gold = [label for label in "ab" if draw.random() < 0.4]
        logits = np.array([6.0 if label in gold else -2.0 for label in "ab"]) + draw.normal(size=2) * 4
        example = head.read(row(text="x", labels=gold))
        readings.append(Reading(example, [window()], [{"logits": logits.astype(np.float32)}]))
    head.config = head.calibrate(readings)
    assert head.config.temperature > 1.2
    before = head.metrics(
        [one.example for one in readings], [head.decode(one.example, one.windows, one.outputs) for one in readings]
    )
    head.config = head.fit_thresholds(readings)
    after = head.metrics(
        [one.example for one in readings], [head.decode(one.example, one.windows, one.outputs) for one in readings]
    )
    assert len(head.config.thresholds) == 2
    assert after["micro_f1"] > before["micro_f1"]
    one = made(info, labels=("a", "b"))
    assert one.fit_thresholds(iter(())) == one.config


# Checkpoints of others.


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"id2label": {0: "a", 2: "b"}}, "numbers its labels 0, 2, expected 0 to 1 without gaps"),
        ({"id2label": {-1: "a", 0: "b"}}, "numbers its labels -1, 0, expected 0 to 1"),
        ({"id2label": {0: "a", 1: "a"}}, "has the label 'a' twice"),
        ({"id2label": {0: "score"}}, "describes a regression"),
        ({"id2label": {0: "a", 1: "b"}, "problem_type": "regression"}, "describes a regression"),
    ],
)
def test_configs_that_say_no_labels_are_refused(info: BackboneInfo, says: dict[str, Any], message: str) -> None:
    config = info.config.__class__(**{**info.config.to_dict(), **says})
    with pytest.raises(ModelError, match=message):
        ClassificationHead.from_hugging_face(replace(info, config=config), {})


# From end to end.

NAMES = ("Ada", "Bob", "Cleo", "Dan")


def test_several_labels_pass_every_check_of_a_head(backbones: Path, tmp_path: Path) -> None:
    subject = checks.make_subject("classification", backbones / "bert")
    rows = rows_of(
        *({"text": f"{one} saw {two}", "labels": sorted({one, two})} for one in NAMES for two in NAMES[:3]),
    )
    config = ClassificationHead.configure(rows, {})
    head = ClassificationHead(config, backbone=subject.backbone.info)
    subject = checks.Subject("classification", subject.backbone, head, rows, subject.tokenizer)
    checks.check_outputs(subject)
    checks.check_learning(subject, steps=60)
    checks.check_export(subject, tmp_path / "model", checks.check_saving(subject, tmp_path / "model"))


@pytest.mark.parametrize("kind", ["several", "pairs"])
def test_training_on_several_labels_and_on_pairs(backbones: Path, tmp_path: Path, kind: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    if kind == "several":
        rows = [{"text": f"{one} saw {two}", "labels": sorted({one, two})} for one in NAMES for two in NAMES] * 2
    else:
        rows = [{"text": f"{one} left", "text_pair": f"{two} left", "label": two} for one in NAMES for two in NAMES] * 2
    for part in ("train", "dev"):
        (data / f"{part}.jsonl").write_text("".join(json.dumps(own) + "\n" for own in rows))
    settings = TrainSettings(
        backbone=str(backbones / "bert"), epochs=60, patience=60, lr=3e-3, batch_tokens=64, precision="fp32"
    )
    result = nlptasks.train(f"topics:classification={data}", output=tmp_path / "model", settings=settings)
    topics = result.heads["topics"]
    assert topics.main_metric == {"several": "micro_f1", "pairs": "accuracy"}[kind]
    assert topics.metrics["dev"][topics.main_metric] > 0.9
    found = pipeline("topics", model=tmp_path / "model")(
        [{key: value for key, value in own.items() if not key.startswith("label")} for own in rows]
    )
    if kind == "several":
        assert np.mean([set(one.labels) == set(own["labels"]) for one, own in zip(found, rows, strict=True)]) > 0.8
        log = tiny.log_of(tmp_path / "model")
        assert len(log["fitted"]["thresholds"]) == 4
    else:
        assert np.mean([one.label == own["label"] for one, own in zip(found, rows, strict=True)]) > 0.9


def test_a_long_text_is_read_to_its_end(backbones: Path, tmp_path: Path) -> None:
    """Only the last words tell the label, many windows behind the first."""
    subject = checks.make_subject("classification", backbones / "bert")
    tokenizer = Tokenizer(subject.tokenizer._backend, max_tokens=32)
    example = subject.head.read(row(text="a " * 200 + "London"))
    [windows] = tokenizer.windows(subject.head.sources(example))
    assert len(windows) > 5
    outputs = [{"logits": np.zeros(5, np.float32)} for _ in windows]
    outputs[-1]["logits"] = np.array([0, 0, 9, 0, 0], np.float32)
    assert subject.head.decode(example, windows, outputs).label == subject.head.labels[2]


def test_one_label_is_a_list_of_one_and_the_other_way_round(info: BackboneInfo) -> None:
    one, several = made(info, labels=("a", "b")), made(info, labels=("a", "b"), several=True)
    assert one.read(row(text="x", labels=["a"])).gold == several.read(row(text="x", label="a")).gold == ("a",)
    with pytest.raises(DataError, match="expected one label as in training"):
        one.read(row(text="x", labels=[]))
