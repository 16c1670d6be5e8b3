"""Model folders: written completely or not at all, checked at every load."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import nlptasks
import nlptasks.models.model
from nlptasks.errors import ModelError, UsageError
from nlptasks.models.folder import ModelFolder
from nlptasks.registry import head_class, tasks
from nlptasks.storage.atomic import sealed, unsealed, written_beside


@pytest.fixture
def model_folder(trained: Path, tmp_path: Path) -> Path:
    place = tmp_path / "model"
    shutil.copytree(trained, place)
    return place


def listed_files(trained: Path) -> list[str]:
    return [*json.loads((trained / "nlptasks.json").read_text())["files"]]


def test_the_folder_contains_exactly_the_listed_files(trained: Path) -> None:
    assert {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()} == {
        *listed_files(trained),
        "nlptasks.json",
    }
    assert {"README.md", "training.json", "backbone/config.json", "heads/ner.safetensors"} <= set(listed_files(trained))


def test_saving_what_was_loaded_gives_the_same_weights(trained: Path, tmp_path: Path) -> None:
    model = nlptasks.Model.load(trained)
    model.save(tmp_path / "again")
    for name in ("backbone/model.safetensors", "heads/ner.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (trained / name).read_bytes()
    again = nlptasks.Model.load(tmp_path / "again")
    assert again.records == model.records
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no nlptasks\.json, so it is no model; give the folder"):
        nlptasks.Model.load(tmp_path)
    with pytest.raises(ModelError, match="is no folder"):
        nlptasks.Model.load(tmp_path / "none")


def test_a_head_is_found_by_name_or_by_its_task(trained: Path) -> None:
    stored = ModelFolder.open(trained)
    assert stored.head_name("ner") == "ner"
    with pytest.raises(UsageError, match="has no head 'nre'; did you mean 'ner'"):
        stored.head_name("nre")


def test_a_used_folder_is_only_overwritten_on_request(trained: Path, tmp_path: Path) -> None:
    model = nlptasks.Model.load(trained)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty; use another `output`, or `overwrite=True`"):
        model.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    model.save(tmp_path / "new")
    with pytest.raises(UsageError, match="is a file"):
        model.save(tmp_path / "notes.txt")


def test_an_output_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(place: Path) -> list[Path]:
        raise PermissionError("Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", failing)
    with pytest.raises(UsageError, match=r"cannot be read \(Permission denied\); use another `output`"):
        nlptasks.models.model.check_output(tmp_path, overwrite=True)


def test_overwriting_replaces_everything(model_folder: Path) -> None:
    model = nlptasks.Model.load(model_folder)
    (model_folder / "stray").write_text("")
    model.save(model_folder, overwrite=True)
    assert not (model_folder / "stray").exists()
    assert [path.name for path in model_folder.parent.iterdir()] == ["model"]


def test_a_failed_write_leaves_nothing_behind(model_folder: Path) -> None:
    before = (model_folder / "nlptasks.json").read_bytes()

    def write() -> None:
        with written_beside(model_folder, ModelError) as place:
            (place / "half").write_text("half")
            raise OSError("No space left on device")

    with pytest.raises(ModelError, match="cannot be written"):
        write()
    assert (model_folder / "nlptasks.json").read_bytes() == before
    assert [path.name for path in model_folder.parent.iterdir()] == ["model"]


def test_the_old_model_is_restored_if_the_last_step_fails(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nlptasks.Model.load(model_folder)
    rename, calls = os.rename, []

    def failing(one: Path, two: Path) -> None:
        calls.append(two)
        if len(calls) == 2:
            raise OSError("Device or resource busy")
        rename(one, two)

    monkeypatch.setattr("nlptasks.storage.atomic.os.rename", failing)
    with pytest.raises(ModelError, match="cannot be written"):
        model.save(model_folder, overwrite=True)
    monkeypatch.undo()
    assert nlptasks.Model.load(model_folder)
    assert [path.name for path in model_folder.parent.iterdir()] == ["model"]


def test_the_working_folder_is_refused(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="cannot be replaced as a whole"):
        nlptasks.Model.load(trained).save(".")


@pytest.mark.parametrize("name", ["type", "values", "train", "float"])
def test_heads_may_have_any_name(trained: Path, tmp_path: Path, name: str) -> None:
    model = nlptasks.Model.load(trained)
    own = ({name: found["ner"]} for found in (model.heads, model.networks, model.records))
    other = nlptasks.models.model.Model(model.backbone, *own)
    other.save(tmp_path / "m")
    assert list(nlptasks.Model.load(tmp_path / "m").heads) == [name]


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", 0), ("temperature", -1), ("label_smoothing", 2), ("tags", 5)]
)
def test_values_out_of_range_are_refused_when_a_model_is_loaded(model_folder: Path, name: str, value: object) -> None:
    manifest = unsealed((model_folder / "nlptasks.json").read_bytes())
    manifest["heads"]["ner"]["config"][name] = value
    (model_folder / "nlptasks.json").write_bytes(sealed(manifest))
    with pytest.raises(ModelError, match=rf"is damaged \({name} of the head ner is {value}"):
        nlptasks.Model.load(model_folder)
    with pytest.raises(ModelError, match="is damaged"):
        ModelFolder.open(model_folder).heads()


@pytest.mark.parametrize("task", tasks())
def test_temperatures_must_be_positive(task: str) -> None:
    cls = head_class(task).Config
    for item in fields(cls):
        if item.name == "temperature" and not item.metadata["given"]:
            assert cls(temperature=0.5).temperature == 0.5
            for value in (0, -1.0, float("nan"), float("inf")):
                with pytest.raises(UsageError, match="temperature: is"):
                    cls(temperature=value)
