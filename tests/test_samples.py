"""The sample data are an honest test: no entity of test stands in train."""

from __future__ import annotations

import json

from nlptasks.heads.base import sample_folder
from nlptasks.registry import head_class


def test_no_entity_of_test_stands_in_train() -> None:
    folder = sample_folder(head_class("ner"))
    rows = {
        part: [json.loads(line) for line in (folder / f"{part}.jsonl").read_text().splitlines()]
        for part in ("train", "dev", "test")
    }
    train = " ".join(row["text"].lower() for row in rows["train"])
    entities = {row["text"][start:end].lower() for row in rows["test"] for start, end, _ in row["spans"]}
    assert len(entities) > 50
    assert [entity for entity in entities if f" {entity} " in f" {train} "] == []
    assert {part: len(own) for part, own in rows.items()} == {"train": 340, "dev": 64, "test": 96}
