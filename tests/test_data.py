"""Data sets: files of the parts, and parts held out of train."""

from __future__ import annotations

from pathlib import Path

import pytest

from nlptasks.data.datasets import CALIBRATION, check_trainable, load_data, load_part, with_calibration, with_dev
from nlptasks.data.readers import TABLES
from nlptasks.errors import DataError
from nlptasks.types import Row

ROWS = "".join(f'{{"text": "{i}"}}\n' for i in range(40))


def text_of(row: Row) -> list[str]:
    return [row.fields["text"]]


def folder_of(place: Path, **files: str) -> Path:
    for name, content in files.items():
        (place / name.replace("__", ".")).write_text(content)
    return place


def test_parts_are_found_by_their_names(tmp_path: Path) -> None:
    place = folder_of(tmp_path, train__jsonl=ROWS, validation__jsonl=ROWS, test__jsonl=ROWS, README__md="")
    data = load_data(place, TABLES, {})
    assert list(data.parts) == ["train", "dev", "test"]
    assert with_dev(data, text_of, seed=0) is data
    assert len(next(iter(data.files.values()))) == 64


def test_dev_is_a_random_tenth_of_train(tmp_path: Path) -> None:
    data = load_data(folder_of(tmp_path, train__jsonl=ROWS), TABLES, {})
    split = with_dev(data, text_of, seed=0)
    texts = {part: [row.fields["text"] for row in rows] for part, rows in split.parts.items()}
    assert (len(texts["train"]), len(texts["dev"])) == (36, 4)
    assert sorted(texts["train"] + texts["dev"]) == sorted(row.fields["text"] for row in data.parts["train"])
    assert split.split == "dev is 4 rows of train, drawn with seed 0"
    assert with_dev(data, text_of, seed=0).parts == split.parts
    assert with_dev(data, text_of, seed=1).parts != split.parts


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no train, dev or test file"),
        ({"train__jsonl": ""}, "has no examples"),
        ({"train__jsonl": "\n\n"}, "has no examples"),
        ({"train__csv": "text,label\n"}, "has no examples"),
        ({"train__jsonl": ROWS, "train__csv": "a\nb\n"}, "has two files for train: train.csv and train.jsonl"),
        ({"dev__jsonl": ROWS}, "has no train part"),
        ({"train__jsonl": '{"text": "a"}\n'}, "is the only row"),
    ],
)
def test_folders_without_enough_training_data_are_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(DataError) as caught:
        check_trainable(load_data(folder_of(tmp_path, **files), TABLES, {}))
    assert message in str(caught.value)


def test_the_part_to_evaluate(tmp_path: Path) -> None:
    place = folder_of(tmp_path, train__jsonl=ROWS, validation__jsonl=ROWS)
    assert load_part(place, None, TABLES, {})[0] == "dev"
    assert load_part(place, "validation", TABLES, {})[0] == "dev"
    (place / "train.jsonl").write_text("broken")  # other parts are not read
    assert len(load_part(place, "dev", TABLES, {})[1]) == 40
    with pytest.raises(DataError, match="has no part test, only train, dev"):
        load_part(place, "test", TABLES, {})
    single = place / "validation.jsonl"
    assert load_part(single, None, TABLES, {})[0] == "all"
    with pytest.raises(DataError, match="is one file and has no part 'test'"):
        load_part(single, "test", TABLES, {})


def test_a_twentieth_of_train_is_held_out_to_fit_temperatures(tmp_path: Path) -> None:
    many = "".join(f'{{"text": "{number}"}}\n' for number in range(400))
    data = with_dev(load_data(folder_of(tmp_path, train__jsonl=many), TABLES, {}), text_of, seed=0)
    held = with_calibration(data, text_of, seed=0)
    assert {part: len(rows) for part, rows in held.parts.items()} == {"train": 342, "dev": 40, CALIBRATION: 18}
    texts = {part: {row.fields["text"] for row in rows} for part, rows in held.parts.items()}
    assert not texts["train"] & texts[CALIBRATION]
    assert {row.fields["text"] for row in data.parts["train"]} == texts["train"] | texts[CALIBRATION]
    assert held.split == (
        "dev is 40 rows of train, drawn with seed 0; calibration is 18 rows of train, drawn with seed 0"
    )


def test_nothing_is_held_out_of_few_rows(tmp_path: Path) -> None:
    few = "".join(f'{{"text": "{number}"}}\n' for number in range(199))
    data = load_data(folder_of(tmp_path, train__jsonl=few, dev__jsonl=few), TABLES, {})
    assert with_calibration(data, text_of, seed=0) is data
    many = "".join(f'{{"text": "{number}"}}\n' for number in range(30000))
    data = load_data(folder_of(tmp_path, train__jsonl=many, dev__jsonl=few), TABLES, {})
    assert len(with_calibration(data, text_of, seed=0).parts[CALIBRATION]) == 1000
