"""The classification head: row formats, one label or several, pairs, windows, thresholds, metrics."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import tiny
import torch

import nlptasks
from nlptasks.backbones.info import BackboneInfo
from nlptasks.backbones.pretrained import load_backbone
from nlptasks.config import TrainSettings, check_options
from nlptasks.data.readers import read_csv
from nlptasks.errors import DataError, DataErrors, ModelError, UsageError
from nlptasks.heads.base import read_gold
from nlptasks.heads.classification import ClassificationConfig, ClassificationHead, Label, Labels
from nlptasks.metrics.base import Counts, Metrics, merge
from nlptasks.metrics.calibration import SigmoidLikelihood, SoftmaxLikelihood, fit_temperature
from nlptasks.metrics.labelling import (
    best_thresholds,
    label_counts,
    label_scores,
    label_set_counts,
    label_set_scores,
)
from nlptasks.networks.base import make_network
from nlptasks.networks.losses import binary_cross_entropy, cross_entropy, example_means, of_first_windows
from nlptasks.networks.sequence_classifier import SequenceClassifier
from nlptasks.pipeline import pipeline
from nlptasks.testing import checks
from nlptasks.text.windows import Tokenizer
from nlptasks.types import HeadOutputs, Row, Window


def row(**fields: Any) -> Row:
    return Row(fields, "data.jsonl:7")


def rows_of(*fields: dict[str, Any]) -> list[Row]:
    return [Row(own, f"data.jsonl:{number}") for number, own in enumerate(fields, start=1)]


@pytest.fixture(scope="module")
def info(backbones: Path) -> BackboneInfo:
    return load_backbone(str(backbones / "bert")).info


Head = ClassificationHead[ClassificationConfig]


def made(info: BackboneInfo, **config: Any) -> Head:
    return ClassificationHead(ClassificationConfig(**config), info)


def configured(info: BackboneInfo, rows: Sequence[Row], **options: Any) -> ClassificationConfig:
    config = ClassificationConfig(**check_options(ClassificationConfig, options))
    return ClassificationHead.configure(rows, config, info)


def window(tokens: int = 4) -> Window:
    zeros = np.zeros(tokens, dtype=np.int64)
    return Window(zeros, zeros, zeros, np.zeros((tokens, 2), dtype=np.int64))


def decoded(head: Head, *logits: list[float]) -> Any:
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
def test_labels_keep_their_spelling(info: BackboneInfo, values: list[Any], labels: tuple[str, ...]) -> None:
    rows = rows_of(*({"text": "x", "label": value} for value in values))
    assert configured(info, rows).labels == labels


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
        ([[], []], "data.jsonl: no row has a label; label some, or check `columns`"),
    ],
)
def test_mixed_and_invalid_labels_are_refused(info: BackboneInfo, values: list[Any], message: str) -> None:
    rows = rows_of(*({"text": "x", "label": value} for value in values))
    with pytest.raises(DataError, match=message):
        configured(info, rows)


def test_an_unknown_label_is_refused_with_the_nearest_known_one(info: BackboneInfo) -> None:
    head = made(info, labels=("billing", "returns"))
    with pytest.raises(
        DataError, match=r"data.jsonl:7: label 'biling' is not in the training data; did you mean 'billing'\?"
    ):
        head.read(row(text="x", label="biling"))


@pytest.mark.parametrize("text", ["", "  ", "\n\t"])
def test_an_empty_text_with_a_label_is_refused(info: BackboneInfo, text: str) -> None:
    head = made(info, labels=("a", "b"))
    with pytest.raises(DataErrors) as caught:
        read_gold(head, [row(text=text, label="a"), row(text="x", label="a"), row(text=text, label="b")])
    assert str(caught.value) == "data.jsonl:7 and 1 more: has an empty text; remove the row"
    assert head.read(row(text=text)).gold is None


def test_missing_and_additional_fields_are_named(info: BackboneInfo) -> None:
    one, pairs = made(info, labels=("a", "b")), made(info, labels=("a", "b"), pairs=True)
    for head, fields, message in (
        (one, {"txt": "x"}, 'has no \'text\', only txt; name the column: `columns={"text": "NAME"}`'),
        (one, {"text": 5}, "text is 5, expected a string"),
        (one, {"text": "x", "text_pair": "y"}, "has a 'text_pair', unlike the training data"),
        (pairs, {"text": "x"}, "has no 'text_pair', unlike the training data"),
        (one, {"text": "x", "labels": ["a", "b"]}, r"has \['a', 'b'\], expected one label as in training"),
    ):
        with pytest.raises(DataError, match=message):
            head.read(row(**fields))
    with pytest.raises(DataError, match=r"data.jsonl:2: has no 'text_pair', but data.jsonl:1 has one"):
        configured(info, rows_of({"text": "x", "text_pair": "y", "label": "a"}, {"text": "x", "label": "b"}))
    with pytest.raises(DataError, match="has no gold answer among text, label"):
        read_gold(one, [row(text="x", label=None)])


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
def test_lists_of_labels_are_read_from_text(info: BackboneInfo, cell: Any, labels: tuple[str, ...]) -> None:
    head = made(info, labels=("a", "b", "b, c"), several=True)
    assert head.read(row(text="x", labels=cell)).gold == labels


def test_the_separator_is_an_option(info: BackboneInfo) -> None:
    rows = rows_of({"text": "x", "labels": "a, b;c"}, {"text": "y", "labels": "c"})
    config = configured(info, rows, separator=";")
    assert (config.labels, config.several) == (("a, b", "c"), True)


def test_csv_needs_no_types(tmp_path: Path, info: BackboneInfo) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\nNA,0\n"a, b",1\n', encoding="utf-8")
    rows = list(read_csv(path))
    head = ClassificationHead(configured(info, rows), info)
    assert [(one.texts, one.gold) for one in read_gold(head, rows)] == [(("NA",), ("0",)), (("a, b",), ("1",))]


@pytest.mark.parametrize(
    ("given", "weights"),
    [({}, ()), ({"class_weights": "balanced"}, (0.75, 1.5)), ({"class_weights": {"b": 3}}, (1.0, 3.0))],
)
def test_class_weights(info: BackboneInfo, given: dict[str, Any], weights: tuple[float, ...]) -> None:
    rows = rows_of(*({"text": "x", "label": label} for label in "aab"))
    assert configured(info, rows, **given).weights == weights


@pytest.mark.parametrize(
    "given", [{"separator": ""}, {"separator": 5}, {"label_smoothing": None}, {"label_smoothing": True}]
)
def test_wrong_values_of_options_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(given))):
        ClassificationConfig(**given)


def test_messages_name_the_option(info: BackboneInfo) -> None:
    rows = rows_of({"text": "x", "label": "a"}, {"text": "y", "label": "b"})
    with pytest.raises(UsageError, match=r"^class_weights: has the unknown label 'c'"):
        configured(info, rows, class_weights={"c": 2})
    known = "class_weights, label_smoothing, separator"
    with pytest.raises(UsageError, match=rf"^sepp: is no option of this head; known are: {known}"):
        configured(info, rows, sepp="x")


# Results.


def test_a_result_has_the_probability_of_every_label(info: BackboneInfo) -> None:
    result = decoded(made(info, labels=("a", "b", "c")), [0.0, 2.0, 1.0])
    total = 1 + np.e + np.e**2
    assert result.label == "b"
    assert result.score == pytest.approx(np.e**2 / total)
    assert list(result.scores) == ["b", "c", "a"]
    assert sum(result.scores.values()) == pytest.approx(1)


def test_logits_of_windows_are_averaged(info: BackboneInfo) -> None:
    head = made(info, labels=("a", "b"))
    assert decoded(head, [3.0, 0.0], [0.0, 4.0], [0.0, 2.0]) == decoded(head, [1.0, 2.0])


def test_the_temperature_lowers_the_confidence_and_keeps_the_label(info: BackboneInfo) -> None:
    one = decoded(made(info, labels=("a", "b")), [0.0, 2.0])
    two = decoded(made(info, labels=("a", "b"), temperature=2.0), [0.0, 2.0])
    assert (one.label, two.label) == ("b", "b")
    assert two.score == pytest.approx(1 / (1 + np.exp(-1)))
    assert two.score < one.score


def test_labels_that_reach_their_thresholds_are_given(info: BackboneInfo) -> None:
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


def network_of(head: Head, info: BackboneInfo) -> SequenceClassifier:
    network = make_network(head.network, info, head.network_options())
    assert isinstance(network, SequenceClassifier)
    return network.eval()


@pytest.mark.parametrize("several", [False, True])
def test_the_loss_reads_the_mean_logits_of_each_example(info: BackboneInfo, several: bool) -> None:
    head = made(info, labels=("a", "b", "c"), several=several, weights=(1.0, 2.0, 3.0), label_smoothing=0.1)
    gold = [("c",), ("a", "b") if several else ("a",)]
    texts = [head.read(row(text="x", labels=list(labels))) for labels in gold]
    targets = [head.targets(text, window())["labels"] for text in (texts[0], texts[0], texts[1])]
    batch = {"labels": torch.from_numpy(np.stack(targets)), "example": torch.tensor([0, 0, 1])}
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))  # [B,C]
    means = torch.stack([logits[:2].mean(0), logits[2]])  # [E,C]
    total, count = network_of(head, info).loss({"logits": logits}, batch)
    if several:
        right = torch.tensor([[0, 0, 1], [1, 1, 0]])
        wanted = binary_cross_entropy(means, right, weights=(1.0, 2.0, 3.0), smoothing=0.1)
    else:
        wanted = cross_entropy(means, torch.tensor([2, 0]), weights=(1.0, 2.0, 3.0), smoothing=0.1)
    torch.testing.assert_close((total, count), wanted)


@pytest.mark.parametrize(("several", "size"), [(False, 1), (True, 3)])
def test_a_target_has_a_fixed_size_for_each_window(info: BackboneInfo, several: bool, size: int) -> None:
    head = made(info, labels=("a", "b", "c"), several=several)
    example = head.read(row(text="x", label="b"))
    for tokens in (2, 9):
        [(name, target)] = head.targets(example, window(tokens)).items()
        assert (name, target.dtype, target.shape) == ("labels", np.int64, (size,))
    assert network_of(head, info).targets == {"labels": "BL"}


def test_binary_cross_entropy_is_the_mean_of_pytorch() -> None:
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


def scores_of(gold: Sequence[str], found: Sequence[str | None], labels: Sequence[str]) -> dict[str, float]:
    return label_scores(merge(map(label_counts, gold, found)), labels)


def set_scores_of(
    gold: Sequence[Collection[str]],
    found: Sequence[Collection[str]],
    scores: Sequence[Sequence[float]],
    labels: Sequence[str],
) -> dict[str, float]:
    named = [dict(zip(labels, own, strict=True)) for own in scores]
    return label_set_scores(merge(map(label_set_counts, gold, found, named)), labels)


def by_label(labels: Sequence[str], columns: Sequence[Any]) -> dict[str, float]:
    return {
        f"{label}.{name}": column[index]
        for name, column in zip(("precision", "recall", "f1", "support"), columns, strict=True)
        for index, label in enumerate(labels)
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("classes", "rows", "accuracy"), [(3, 200, 0.6), (2, 50, 0.9), (40, 500, 1.0), (7, 30, 0.1)])
@pytest.mark.parametrize("unanswered", [0.0, 0.1])
def test_scores_of_one_label_are_those_of_scikit_learn(
    classes: int, rows: int, accuracy: float, unanswered: float
) -> None:
    draw = np.random.default_rng(classes)
    labels = [f"label {index}" for index in range(classes + 1)]  # the last never occurs
    right = np.concatenate([np.arange(classes), draw.integers(0, classes, rows - classes)])
    found = np.where(draw.random(rows) < accuracy, right, draw.integers(0, classes, rows))
    found = np.where(draw.random(rows) < unanswered, -1, found)
    occurring = sorted({*right.tolist(), *found.tolist()} - {-1})
    wanted = {
        "accuracy": sklearn.metrics.accuracy_score(right, found),
        "mcc": sklearn.metrics.matthews_corrcoef(right, found),
        "support": rows,
    }
    for average in ("macro", "micro", "weighted"):
        options = {"labels": occurring, "average": average, "zero_division": 0}
        wanted[f"{average}_f1"] = sklearn.metrics.f1_score(right, found, **options)
    columns = sklearn.metrics.precision_recall_fscore_support(right, found, labels=range(len(labels)), zero_division=0)
    wanted |= by_label(labels, columns)
    names = [*labels, None]
    scores = scores_of([names[index] for index in right], [names[index] for index in found], labels)
    assert scores == pytest.approx(wanted, abs=1e-12, rel=0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("classes", "rows"), [(4, 200), (1, 60), (30, 300)])
def test_scores_of_several_labels_are_those_of_scikit_learn(classes: int, rows: int) -> None:
    draw = np.random.default_rng(classes)
    labels = [f"label {index}" for index in range(classes)]
    right = (draw.random((rows, classes)) < 0.3).astype(int)
    scores = np.round(np.clip(0.4 * right + 0.6 * draw.random(right.shape), 0, 1), 2)  # some are equal
    found = (scores > 0.5).astype(int)
    if classes > 1:
        right[:, -1] = found[:, -1] = 0  # this label never occurs
    occurring = np.flatnonzero(right.any(0) | found.any(0))
    precisions = {
        index: sklearn.metrics.average_precision_score(right[:, index], scores[:, index])
        for index in np.flatnonzero(right.any(0))
    }
    padded = [np.pad(one, ((0, 0), (0, 1))) for one in (right, found)]  # so one label is not read as two classes
    wanted = {
        "accuracy": (right == found).all(1).mean(),
        "support": rows,
        "average_precision": np.mean(list(precisions.values())),
        **{f"{labels[index]}.average_precision": value for index, value in precisions.items()},
    }
    for average in ("macro", "micro", "weighted"):
        options = {"labels": occurring, "average": average, "zero_division": 0}
        wanted[f"{average}_f1"] = sklearn.metrics.f1_score(*padded, **options)
    columns = sklearn.metrics.precision_recall_fscore_support(*padded, labels=range(classes), zero_division=0)
    wanted |= by_label(labels, columns)
    sets = [[[label for label, own in zip(labels, row, strict=True) if own] for row in one] for one in (right, found)]
    assert set_scores_of(*sets, scores.tolist(), labels) == pytest.approx(wanted, abs=1e-12, rel=0)


def test_counts_may_be_merged_in_parts() -> None:
    draw = np.random.default_rng(0)
    gold, found = (draw.choice(["a", "b", "c"], 60).tolist() for _ in range(2))
    counts = list(map(label_counts, gold, found))
    parts = [merge(counts[:7]), merge(counts[7:]), Counts()]
    assert label_scores(merge(parts), "abc") == scores_of(gold, found, "abc")
    sets = [label_set_counts(set(g), set(f), {"a": 0.1}) for g, f in zip(gold, found, strict=True)]
    assert label_set_scores(merge([merge(sets[:7]), merge(sets[7:])]), "abc") == label_set_scores(merge(sets), "abc")


def test_a_missing_label_is_wrong() -> None:
    assert scores_of(["a", "b"], ["a", None], ("a", "b"))["accuracy"] == 0.5
    assert scores_of(["a"], [None], ("a", "b"))["macro_f1"] == 0.0


def test_scores_of_several_labels_by_hand() -> None:
    gold, found = [{"a", "b"}, {"a"}, set()], [("a",), ("b",), ()]
    scores = set_scores_of(gold, found, [[0.9, 0.3], [0.2, 0.6], [0.1, 0.1]], ("a", "b"))
    assert scores["micro_f1"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 2))  # right: a; wrong: b; missed: b, a
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert scores["a.average_precision"] == 1.0
    assert scores["b.average_precision"] == 0.5
    assert scores["average_precision"] == 0.75
    assert scores["a.recall"] == 0.5


def test_scores_of_a_single_optional_label() -> None:
    gold, found = [("a",), (), ("a",), ()], [("a",), ("a",), (), ()]
    scores = set_scores_of(gold, found, [[0.9], [0.6], [0.4], [0.1]], ["a"])
    assert (scores["a.support"], scores["a.precision"], scores["a.recall"]) == (2, 0.5, 0.5)
    assert (scores["micro_f1"], scores["macro_f1"], scores["accuracy"]) == (0.5, 0.5, 0.5)


@pytest.mark.filterwarnings("error")
def test_rows_without_any_label_have_scores() -> None:
    scores = set_scores_of([(), ()], [(), ()], [[0.1, 0.2], [0.3, 0.4]], ("a", "b"))
    assert (scores["micro_f1"], scores["accuracy"], scores["support"], scores["average_precision"]) == (0, 1, 2, 0)
    assert (scores["a.f1"], scores["a.support"]) == (0, 0)


def test_without_gold_labels_thresholds_are_one_half() -> None:
    assert best_thresholds(np.array([[0.1, 0.9], [0.2, 0.3]]), np.zeros((2, 2), dtype=int)) == (0.5, 0.5)
    assert best_thresholds(np.zeros((0, 2)), np.zeros((0, 2), dtype=int)) == (0.5, 0.5)


def test_no_threshold_separates_equal_probabilities() -> None:
    # Among the three equal probabilities the right one comes first. With that one alone, F1 would be highest.
    found = np.array([[0.9], [0.9], [0.9], [0.9], [0.2], [0.1]])
    assert best_thresholds(found, np.array([[1], [0], [0], [0], [1], [0]])) == (pytest.approx(0.15),)


@pytest.mark.filterwarnings("error")
def test_rows_that_all_have_the_same_label_have_scores() -> None:
    assert scores_of(["a", "a"], ["a", "a"], ("a", "b"))["mcc"] == 0.0


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\u200b", "\x01\x02", "\ufeff"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "xlm-roberta"])
def test_an_invisible_text_has_no_label(backbones: Path, architecture: str, text: str) -> None:
    backbone = load_backbone(str(backbones / architecture))
    head = made(backbone.info, labels=("a", "b", "c"))
    example = head.read(row(text=text))
    [windows] = backbone.tokenizer().windows(head.inputs(example))
    outputs = [{"logits": np.arange(3, dtype=np.float32)} for _ in windows]
    assert head.decode(example, windows, outputs) == Label(None, None, {})


def test_an_imported_head_reads_texts_and_pairs(info: BackboneInfo) -> None:
    head = made(info, labels=("a", "b"), pairs=None)
    assert head.read(row(text="x")).texts == ("x",)
    assert head.read(row(text="x", text_pair="y")).texts == ("x", "y")


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


def outputs_of(head: Head, gold: Sequence[str], logits: Sequence[float]) -> HeadOutputs[Any]:
    example = head.read(row(text="x", labels=list(gold)))
    return HeadOutputs(example, [window()], [{"logits": np.array(logits, np.float32)}])


def metrics_of(head: Head, outputs: Sequence[HeadOutputs[Any]]) -> Metrics:
    results = [head.decode(one.example, one.windows, one.outputs) for one in outputs]
    return head.metrics(merge(head.count(one.example, result) for one, result in zip(outputs, results, strict=True)))


def test_a_fitted_temperature_and_thresholds_improve_the_result(info: BackboneInfo) -> None:
    config = ClassificationConfig(labels=("a", "b"), several=True)
    head = ClassificationHead(config, info)
    draw = np.random.default_rng(4)
    outputs = []
    for _ in range(300):
        gold = [label for label in "ab" if draw.random() < 0.4]
        logits = np.array([6.0 if label in gold else -2.0 for label in "ab"]) + draw.normal(size=2) * 4
        outputs.append(outputs_of(head, gold, logits.tolist()))
    config = replace(config, temperature=fit_temperature(head.calibration.likelihood(outputs)))
    assert config.temperature > 1.2
    head = ClassificationHead(config, info)
    before = metrics_of(head, outputs)
    fitted = head.calibration.thresholds(outputs)
    assert [*fitted] == ["thresholds"]
    assert len(fitted["thresholds"]) == 2
    after = metrics_of(ClassificationHead(replace(config, **fitted), info), outputs)
    assert (before.main, after.main) == ("micro_f1", "micro_f1")
    assert after.score > before.score


def test_a_single_label_needs_no_threshold_and_reads_no_outputs(info: BackboneInfo) -> None:
    outputs = iter([outputs_of(made(info, labels=("a", "b")), "a", [1.0, 2.0])])
    assert made(info, labels=("a", "b")).calibration.thresholds(outputs) == {}
    assert next(outputs, None) is not None


def test_the_likelihood_is_that_of_the_gold_labels(info: BackboneInfo) -> None:
    one = made(info, labels=("a", "b", "c"))
    found = one.calibration.likelihood([outputs_of(one, "c", [1, 2, 3]), outputs_of(one, "a", [4, 5, 6])])
    assert isinstance(found, SoftmaxLikelihood)
    assert (found.logits.tolist(), found.gold.tolist()) == ([[1, 2, 3], [4, 5, 6]], [2, 0])
    several = made(info, labels=("a", "b", "c"), several=True)
    found = several.calibration.likelihood([outputs_of(several, "ca", [1, 2, 3]), outputs_of(several, "", [4, 5, 6])])
    assert isinstance(found, SigmoidLikelihood)
    assert (found.logits.tolist(), found.gold.tolist()) == ([[1, 2, 3], [4, 5, 6]], [[1, 0, 1], [0, 0, 0]])
    for head in (one, several):
        assert head.calibration.likelihood([]).nll(1.0) == 0


def test_confidences_are_scores_with_their_correctness(info: BackboneInfo) -> None:
    one, several = made(info, labels=("a", "b")), made(info, labels=("a", "b"), several=True)
    example, empty = one.read(row(text="x", label="b")), Label(None, None)
    assert one.calibration.confidences(example, Label("b", 0.7, {"b": 0.7, "a": 0.3})) == [(0.7, True)]
    assert one.calibration.confidences(example, Label("a", 0.7, {"a": 0.7, "b": 0.3})) == [(0.7, False)]
    assert one.calibration.confidences(example, empty) == []
    found = Labels(("a",), {"a": 0.9, "b": 0.4})
    assert several.calibration.confidences(example, found) == [(0.9, False), (0.4, True)]


def test_the_presenter_shows_texts_and_labels(info: BackboneInfo) -> None:
    pairs = made(info, labels=("a", "b"), pairs=True)
    example = pairs.read(row(text="One.", text_pair="Two.", label="a"))
    shown = pairs.presenter.render(example, Label("a", 0.75, {"a": 0.75, "b": 0.25}))
    assert shown == [("One. / Two. ", ""), (" 0.75", "a")]
    assert pairs.presenter.render(example, Label(None, None)) == [("One. / Two. ", ""), (" none", "")]
    assert (pairs.presenter.labels, pairs.presenter.gold_labels(example)) == (("a", "b"), ("a",))
    assert [*pairs.presenter.example_row()] == ["text", "text_pair"]


# Hugging Face checkpoints.


@pytest.mark.parametrize("several", [False, True])
def test_a_config_survives_a_checkpoint(info: BackboneInfo, several: bool) -> None:
    config = ClassificationConfig(labels=("b", "a"), several=several, pairs=None)
    entries, lost = ClassificationHead.hugging_face.to_checkpoint(config, info)
    assert lost == []
    again = replace(info, config={**info.config, **entries})
    assert ClassificationHead.hugging_face.to_config(again, {}) == config
    _, lost = ClassificationHead.hugging_face.to_checkpoint(replace(config, thresholds=(0.1, 0.2)), info)
    assert lost == ["the thresholds of its labels: other libraries use one half"]


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
def test_checkpoints_without_usable_labels_are_refused(info: BackboneInfo, says: dict[str, Any], message: str) -> None:
    checkpoint = replace(info, config={**info.config, **says})
    with pytest.raises(ModelError, match=message):
        ClassificationHead.hugging_face.to_config(checkpoint, {})


# End to end.

NAMES = ("Ada", "Bob", "Cleo", "Dan")


def test_a_head_with_several_labels_passes_all_checks(backbones: Path, tmp_path: Path) -> None:
    subject = checks.make_head("classification", backbones / "bert")
    rows = rows_of(
        *({"text": f"{one} saw {two}", "labels": sorted({one, two})} for one in NAMES for two in NAMES[:3]),
    )
    info = subject.backbone.info
    head = ClassificationHead(configured(info, rows), info)
    several = replace(subject, head=head, network=network_of(head, info), rows=rows)
    checks.check_reading(several)
    checks.check_outputs(several)
    checks.check_counting(several)
    checks.check_learning(several, steps=60)
    checks.check_export(several, tmp_path / "model", checks.check_saving(several, tmp_path / "model"))


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


def test_a_long_text_is_read_to_its_end(backbones: Path) -> None:
    """Only the last words decide the label, many windows after the first."""
    backbone = load_backbone(str(backbones / "bert"))
    head = made(backbone.info, labels=("a", "b", "c"))
    tokenizer = Tokenizer(backbone.info.vocabulary(), max_tokens=32)
    example = head.read(row(text="a " * 200 + "London"))
    [windows] = tokenizer.windows(head.inputs(example))
    assert len(windows) > 5
    outputs = [{"logits": np.zeros(3, np.float32)} for _ in windows]
    outputs[-1]["logits"] = np.array([0, 9, 0], np.float32)
    assert head.decode(example, windows, outputs).label == "b"


def test_one_label_and_a_list_of_one_label_are_the_same(info: BackboneInfo) -> None:
    one, several = made(info, labels=("a", "b")), made(info, labels=("a", "b"), several=True)
    assert one.read(row(text="x", labels=["a"])).gold == several.read(row(text="x", label="a")).gold == ("a",)
    with pytest.raises(DataError, match="expected one label as in training"):
        one.read(row(text="x", labels=[]))


@pytest.mark.parametrize(("count", "own"), [(9, False), (10, True)])
def test_a_label_with_ten_gold_rows_has_its_own_threshold(count: int, own: bool) -> None:
    right = np.array([[1, 0]] * count + [[0, 1]] * 90 + [[0, 0]] * 40)
    found = np.where(right == 1, [0.3, 0.9], [0.1, 0.7])
    first, second = best_thresholds(found, right)
    assert second == pytest.approx(0.8)
    assert (first == pytest.approx(0.2)) == own
