"""Warnings about data: with counts and places, and none for good data."""

from __future__ import annotations

from nlptasks.backbones.info import ENCODER, BackboneInfo
from nlptasks.heads.base import read_gold
from nlptasks.heads.ner import NerConfig, NerHead
from nlptasks.training.data_warnings import warnings_of
from nlptasks.types import Row

Texts = list[tuple[str, str]]
"""Texts, and the labels of their first words."""

BACKBONE = BackboneInfo("tiny", None, ENCODER, 32, 64, 64, 300, 2, 0)

PLENTY: Texts = [(f"{name} saw {place}", "PER") for name in ("Ada", "Bob", "Cleo") for place in ("Rome", "Oslo")]
OTHER: Texts = [(f"{name} is big", "LOC") for name in ("Rome", "Oslo", "Bonn", "Paris", "Kiel")]


def rows_of(part: str, texts: Texts) -> list[Row]:
    rows = []
    for number, (text, labels) in enumerate(texts, start=2):
        tags = [f"B-{label}" if label != "O" else "O" for label in labels.split()]
        tokens = text.split()
        fields = {"tokens": tokens, "tags": (tags + ["O"] * len(tokens))[: len(tokens)]}
        rows.append(Row(fields, f"/data/{part}.csv:{number}"))
    return rows


def warned(**parts: Texts) -> list[str]:
    rows = {part: rows_of(part, texts) for part, texts in parts.items()}
    everything = [row for own in rows.values() for row in own]
    head = NerHead(NerHead.configure(everything, NerConfig(), BACKBONE), BACKBONE)
    return warnings_of(head, rows, {part: read_gold(head, own) for part, own in rows.items()})


def test_good_data_get_no_warning() -> None:
    assert warned(train=PLENTY + OTHER, dev=[("Dan saw Rome", "PER")], test=[("Eva saw Rome", "PER")]) == []


def test_rows_that_all_have_the_same_answer() -> None:
    train = [(f"Ada saw {place}", "PER") for place in ("Rome", "Oslo", "Bonn", "Paris", "Kiel")]
    assert warned(train=train) == [
        "all 5 rows of train have the same answer: train.csv:2, train.csv:3, train.csv:4 and 2 more"
    ]
    assert warned(train=[*train, ("Rome is big", "O")]) == []


def test_labels_of_few_rows() -> None:
    train = [*PLENTY, ("Rome met Oslo", "LOC O LOC"), ("Ada saw Bonn", "PER O LOC"), ("IBM paid", "ORG")]
    assert warned(train=train) == [
        "2 of 3 labels are in fewer than 5 rows of train: 'ORG' in 1 (train.csv:10), 'LOC' in 2 (train.csv:8, train.csv:9)"
    ]
    many = [*PLENTY, *((f"{label} paid", label) for label in "ABCDE")]
    [warning] = warned(train=many)
    assert warning.endswith("'A' in 1 (train.csv:8), 'B' in 1 (train.csv:9), 'C' in 1 (train.csv:10) and 2 more")


def test_labels_in_warnings_are_escaped_and_shortened() -> None:
    [warning] = warned(train=[*PLENTY, ("IBM paid", "\x1b[2J" + "x" * 500)])
    assert "'\\x1b[2Jxxx" in warning
    assert len(warning) < 200


def test_rows_of_train_that_contradict_each_other() -> None:
    train = [*PLENTY, *OTHER, ("Ada saw Rome", "PER"), ("Ada saw Rome", "O"), ("Rome is big", "PER")]
    assert warned(train=train) == [
        "2 rows of train have the same text as another row, but another answer: "
        "train.csv:14 = train.csv:2, train.csv:15 = train.csv:8"
    ]


def test_rows_of_dev_or_test_that_are_also_in_train() -> None:
    found = warned(train=PLENTY + OTHER, dev=[("Dan left", "PER"), PLENTY[1]], test=[*OTHER, ("Dan left", "PER")])
    assert found == [
        "1 of 2 rows of dev are also in train: dev.csv:3 = train.csv:3",
        "5 of 6 rows of test are also in train: "
        "test.csv:2 = train.csv:8, test.csv:3 = train.csv:9, test.csv:4 = train.csv:10 and 2 more",
    ]


def test_data_without_labels_or_with_one_row() -> None:
    assert warned(train=[("Ada left", "PER")]) == [
        "1 of 1 labels are in fewer than 5 rows of train: 'PER' in 1 (train.csv:2)"
    ]
