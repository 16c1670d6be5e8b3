"""Adding, renaming, removing and merging heads: other heads do not change, and a crash leaves the model unchanged."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
from click.testing import CliRunner

import nlptasks
from nlptasks.cli.main import main
from nlptasks.config import TrainSettings
from nlptasks.errors import BackendError, ModelError, UsageError
from nlptasks.models import editing
from nlptasks.models.folder import ModelFolder
from nlptasks.models.huggingface import import_checkpoint, to_hugging_face
from nlptasks.models.model import Model, load_model
from nlptasks.pipeline import pipeline
from nlptasks.testing.backbones import save_tokenizer, unigram
from nlptasks.training.callbacks import NoOpCallback

TEXTS = ["Ada Smith saw London.", "Bob left Paris and Rome, and saw Berlin.", "", "a b c " * 100]
QUICK = {"epochs": 1, "lr": 3e-3, "batch_tokens": 64, "precision": "fp32"}


def run(*words: object) -> Any:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result


def refused(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(word) for word in words])
    return result.exit_code, result.stderr.strip().splitlines()[-1]


@pytest.fixture
def model(both: Path, tmp_path: Path) -> Path:
    """A copy of the model with three heads that may be changed."""
    shutil.copytree(both, tmp_path / "model")
    return tmp_path / "model"


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_added_heads_do_not_change_others(trained: Path, both: Path) -> None:
    before, after = digests(trained), digests(both)
    own = ("backbone/", "heads/ner.")
    assert {name: after[name] for name in before if name.startswith(own)} == {
        name: digest for name, digest in before.items() if name.startswith(own)
    }
    assert {name for name in after if name not in before} == {"heads/mood.safetensors", "heads/topic.safetensors"}
    assert pipeline("ner", model=both)(TEXTS) == pipeline("ner", model=trained)(TEXTS)
    together = pipeline(model=both)(TEXTS)
    assert [found["ner"] for found in together] == pipeline("ner", model=trained)(TEXTS)
    for name in ("mood", "topic"):
        assert [found[name] for found in together] == pipeline(name, model=both)(TEXTS)


def test_an_added_head_owns_the_layers_of_its_record(both: Path) -> None:
    stored = ModelFolder.open(both)
    assert {name: record.branch for name, record in stored.records.items()} == {"ner": 0, "mood": 1, "topic": 0}
    model = Model.load(both)
    assert {name: branch.begin for name, branch in model.branches.items()} == {"mood": 1}
    log = json.loads((both / "training.json").read_text())
    assert list(log) == ["ner", "mood", "topic"]
    assert log["mood"]["settings"]["tune"] == "top:1"
    card = (both / "README.md").read_text()
    assert "A model with 3 heads, which run in one pass" in card
    assert "## Head `mood`\n\nFor the task `sentiment`" in card
    assert "It owns the top layer of the backbone." in card


def test_half_of_the_layers_are_owned_by_default(trained: Path, moods: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "model")
    run("train", f"sentiment={moods}", "--add-to", tmp_path / "model", "--epochs", 1)
    assert ModelFolder.open(tmp_path / "model").records["sentiment"].branch == 1  # of two layers


def test_a_model_with_owned_layers_is_saved_and_loaded(both: Path, tmp_path: Path) -> None:
    Model.load(both).save(tmp_path / "again")
    assert pipeline(model=tmp_path / "again")(TEXTS) == pipeline(model=both)(TEXTS)


def test_a_head_with_its_own_layers_is_written_as_a_checkpoint(both: Path, tmp_path: Path) -> None:
    run("to-hf", both, "mood", "-o", tmp_path / "hf")
    found = pipeline("sentiment", model=tmp_path / "hf", options={"sentiment": {"scale": ("negative", "positive")}})(
        TEXTS
    )
    expected = pipeline("mood", model=both)(TEXTS)
    assert [one.label for one in found] == [one.label for one in expected]
    assert [one.score for one in found][:2] == pytest.approx([one.score for one in expected][:2], abs=1e-4)


@pytest.mark.parametrize("name", ["bart", "t5-v1.1"])
def test_a_head_that_generates_text_is_added_to_a_stored_encoder_decoder(
    moods: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"source": f"ada {n}", "target": f"Ada {n}"}) + "\n" for n in range(9))
    )
    tiny.make_writer(tiny.WRITERS[name]()).save_pretrained(tmp_path / "backbone")  # t5-v1.1 has its own output layer
    save_tokenizer(unigram(), tmp_path / "backbone")
    settings = TrainSettings(backbone=str(tmp_path / "backbone"), tune="head", **QUICK)
    nlptasks.train(f"mood:sentiment={moods}", output=tmp_path / "added", settings=settings)
    nlptasks.train(f"translation={tmp_path / 'pairs.jsonl'}", output=tmp_path / "new", settings=settings)
    shutil.rmtree(tmp_path / "backbone")
    more = TrainSettings(tune="head", **QUICK)
    nlptasks.train(f"translation={tmp_path / 'pairs.jsonl'}", add_to=tmp_path / "added", settings=more)
    # It starts with all pretrained weights, and with the special tokens of the checkpoint.
    configs = [ModelFolder.open(tmp_path / place).records["translation"].config for place in ("added", "new")]
    assert configs[0] == configs[1]
    found = [(tmp_path / place / "heads/translation.safetensors").read_bytes() for place in ("added", "new")]
    assert found[0] == found[1]
    results = pipeline(model=tmp_path / "added")("ada 3")
    assert results["translation"] == pipeline("translation", model=tmp_path / "new")("ada 3")
    assert results["mood"] == pipeline("mood", model=tmp_path / "added")("ada 3")


def test_heads_are_renamed_and_removed(model: Path) -> None:
    expected = pipeline(model=model)(TEXTS)
    run("rename", model, "mood", "feeling")
    found = pipeline(model=model)(TEXTS)
    assert [one["feeling"] for one in found] == [one["mood"] for one in expected]
    assert list(json.loads((model / "training.json").read_text())) == ["ner", "feeling", "topic"]
    run("remove", model, "ner")
    assert pipeline(model=model)(TEXTS) == [{"feeling": one["mood"], "topic": one["topic"]} for one in expected]
    assert not (model / "heads/ner.safetensors").exists()
    assert "ner" not in (model / "README.md").read_text().split("##")[0]


def test_models_on_one_backbone_are_merged(both: Path, model: Path, trained: Path, tmp_path: Path) -> None:
    run("rename", model, "mood", "feeling")
    run("remove", model, "ner")
    run("remove", model, "topic")
    run("merge", trained, model, "-o", tmp_path / "merged")
    assert (
        "runs 3 layers: 1.50 times those of one head, 0.75 times those of 2 separate"
        in run("show", tmp_path / "merged").output
    )
    expected = pipeline(model=both)(TEXTS)
    assert pipeline(model=tmp_path / "merged")(TEXTS) == [
        {"ner": one["ner"], "feeling": one["mood"]} for one in expected
    ]
    assert list(json.loads((tmp_path / "merged/training.json").read_text())) == ["ner", "feeling"]


def test_wrong_arguments_are_named(both: Path, trained: Path, moods: Path, backbones: Path, tmp_path: Path) -> None:
    target = f"mood:sentiment={moods}"
    cases: list[tuple[tuple[object, ...], int, str]] = [
        (("rename", both, "mood", "ner"), 2, f"head 'ner': already exists in {both}; choose another name"),
        (("rename", both, "mood", "No Name"), 2, "is not valid; use 1 to 40 of a-z"),
        (("rename", both, "mod", "x"), 2, "has no head 'mod'; did you mean 'mood'"),
        (("remove", both, "x"), 2, "has no head 'x'"),
        (("remove", trained, "ner"), 2, "is the only one of"),
        (("merge", trained, both, "-o", tmp_path / "x"), 2, f"head 'ner': is in {trained} and in {both}; rename one"),
        (("merge", trained, "-o", tmp_path / "x"), 2, "has 1 model, expected at least 2"),
        (("merge", trained, trained, "-o", tmp_path / "x"), 2, "names a model twice"),
        (("train", target, "--add-to", both), 2, f"head 'mood': already exists in {both}; choose another name"),
        (("train", f"a b:sentiment={moods}", "--add-to", both), 2, "is not valid"),
        (
            ("train", f"x:sentiment={moods}", "--add-to", both, "-o", tmp_path / "x"),
            2,
            "in place; use only one of them",
        ),
        (("train", f"x:sentiment={moods}", "--add-to", both, "--backbone", "minilm"), 2, "leave it out"),
        (
            ("train", f"x:sentiment={moods}", "--add-to", both, "--tune", "all"),
            2,
            "would change the answers of the other heads",
        ),
        (("train", f"x:sentiment={moods}", "--add-to", both, "--tune", "top:99"), 2, "the backbone has 2; use top:1"),
        (("train", f"x:sentiment={moods}", "--add-to", both, "--tune", "top:0"), 2, "use all, head, or top:K"),
        (("train", f"x:sentiment={moods}", "--add-to", tmp_path / "nothing"), 4, "is no folder, so it is no model"),
        (("train", f"x:sentiment={tmp_path / 'nothing'}", "--add-to", both), 3, "nothing"),
    ]
    before = digests(both)
    for words, code, message in cases:
        found, text = refused(*words)
        assert (found, message in text) == (code, True), (words, text)
    assert digests(both) == before


def test_models_with_different_backbones_are_not_merged(
    trained: Path, moods: Path, backbones: Path, tmp_path: Path
) -> None:
    for name, backbone in (("tuned", "bert"), ("other", "roberta")):
        settings = TrainSettings(backbone=str(backbones / backbone), tune="all" if name == "tuned" else "head", **QUICK)
        nlptasks.train(f"mood:sentiment={moods}", output=tmp_path / name, settings=settings)
        with pytest.raises(
            ModelError, match=r"another backbone than .*: backbone/model\.safetensors.* differ; merge models"
        ):
            editing.merge_models([trained, tmp_path / name], tmp_path / "x")


def test_an_export_runs_the_heads_that_it_was_made_from(exported: Path, moods: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "model")
    expected = pipeline("ner", model=exported, backend="onnx")(TEXTS)
    nlptasks.train(f"mood:sentiment={moods}", add_to=tmp_path / "model", settings=TrainSettings(**QUICK))
    assert pipeline("ner", model=tmp_path / "model", backend="onnx")(TEXTS) == expected
    assert pipeline("ner", model=tmp_path / "model").backend.startswith("ONNX")
    with pytest.raises(ModelError, match=r"has a stale ONNX export in fp32: .* for mood; run: nlptasks export"):
        pipeline(model=tmp_path / "model", backend="onnx")
    assert pipeline(model=tmp_path / "model").backend.startswith("PyTorch")
    assert "for mood" in run("show", tmp_path / "model").output
    editing.rename_head(tmp_path / "model", "ner", "names")
    with pytest.raises(ModelError, match="stale"):
        pipeline("names", model=tmp_path / "model", backend="onnx")


def test_hidden_entries_of_a_model_are_kept(model: Path) -> None:
    (model / ".git").mkdir()
    (model / ".git" / "HEAD").write_text("ref")
    (model / ".gitattributes").write_text("x")
    editing.rename_head(model, "mood", "feeling")
    assert [(model / name).read_text() for name in (".git/HEAD", ".gitattributes")] == ["ref", "x"]
    assert "feeling" in ModelFolder.open(model).records


def test_a_task_is_not_accepted_as_a_name_for_changes(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no head 'sentiment'"):
        editing.remove_head(model, "sentiment")
    with pytest.raises(UsageError, match="has no head 'sentiment'"):
        editing.rename_head(model, "sentiment", "x")
    shutil.copytree(model, tmp_path / "other")
    (tmp_path / "begun" / "checkpoints" / "1").mkdir(parents=True)
    (tmp_path / "begun" / "checkpoints" / "1" / "state.json").touch()
    with pytest.raises(UsageError, match="contains checkpoints of an unfinished run; use another `output`"):
        editing.merge_models([model, tmp_path / "other"], tmp_path / "begun", overwrite=True)
    for output in (tmp_path, model / "merged", model):
        with pytest.raises(UsageError, match="contains a model to merge, or is inside one"):
            editing.merge_models([model, tmp_path / "other"], output, overwrite=True)


def test_an_edited_card_is_kept(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    (model / "README.md").write_text("# Mine\n")
    for old, new in (("mood", "feeling"), ("feeling", "humour")):
        editing.rename_head(model, old, new)
        assert "was edited: it is kept" in caplog.text
        assert (model / "README.md").read_text() == "# Mine\n"
        caplog.clear()


def crashing(model: Path, change: Callable[[Path], object]) -> Iterator[tuple[dict[str, str], int]]:
    """Make a change in processes that die before each call that moves or writes, until one is complete; return what each left."""
    number, code = 0, 137
    while code == 137:
        number += 1
        place = model.with_name(f"crash{number}")
        shutil.copytree(model, place)
        child = os.fork()
        if not child:
            _die_before(number)
            try:
                change(place)
            finally:
                os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        ModelFolder.open(place)  # restores a folder that was moved away
        yield digests(place), code


def _die_before(number: int) -> None:
    calls = iter(range(1, 1000))

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == number:
                os._exit(137)
            return function(*args, **kwargs)

        return wrapped

    os.rename, os.fsync, shutil.copyfile = dying(os.rename), dying(os.fsync), dying(shutil.copyfile)  # type: ignore


def add_another(folder: Path) -> None:
    """Add a head like training does."""
    stored = ModelFolder.open(folder)
    found = load_model(stored, ["mood"])
    parts = (found.heads, found.networks, found.records, found.branches)
    new = Model(found.backbone, *({"x": part["mood"]} for part in parts))
    editing.add(stored, new, {"x": editing.read_logs(stored)["mood"]})


@pytest.mark.parametrize(
    "change",
    [add_another, partial(editing.rename_head, old="mood", new="feeling"), partial(editing.remove_head, head="mood")],
    ids=["add", "rename", "remove"],
)
def test_a_crash_leaves_the_old_model_or_the_new_one(model: Path, change: Callable[..., object]) -> None:
    before = digests(model)
    found = list(crashing(model, change))
    assert len(found) > 20
    wanted = found[-1][0]
    assert wanted != before
    assert found[-1][1] == 0
    states = ["before" if state == before else "after" if state == wanted else "neither" for state, _ in found]
    assert states == sorted(states, reverse=True)  # all before, then all after
    assert "neither" not in states


def test_a_model_in_training_is_not_edited(model: Path, moods: Path) -> None:
    class Stopping(NoOpCallback):
        def step(self, done: int, total: int, head: str, loss: float) -> None:
            raise KeyboardInterrupt

    settings = TrainSettings(checkpoint_seconds=0, **QUICK)
    before = digests(model)
    with pytest.raises(KeyboardInterrupt):
        nlptasks.train(f"x:sentiment={moods}", add_to=model, settings=settings, callback=Stopping())
    (model / "checkpoints" / "000001").mkdir(parents=True, exist_ok=True)
    (model / "checkpoints" / "000001" / "state.json").write_text("{}")
    assert pipeline("ner", model=model)("Ada") == pipeline("ner", model=model)("Ada")
    with pytest.raises(ModelError, match="contains checkpoints of an unfinished run; finish it"):
        editing.rename_head(model, "mood", "feeling")
    with pytest.raises(
        UsageError, match=r"contains checkpoints of an unfinished run; continue it with `resume=True`, or discard"
    ):
        nlptasks.train(f"x:sentiment={moods}", add_to=model, settings=settings)
    nlptasks.train(f"x:sentiment={moods}", add_to=model, settings=settings, overwrite=True)
    after = digests(model)
    assert {name: after[name] for name in before if name.startswith(("backbone", "heads"))} == {
        name: digest for name, digest in before.items() if name.startswith(("backbone", "heads"))
    }
    assert "x" in ModelFolder.open(model).records


def test_an_edit_does_not_undo_a_concurrent_one(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = editing.locked

    def late(target: Path, failure: Any) -> Any:
        monkeypatch.setattr(editing, "locked", locked)
        editing.rename_head(model, "topic", "subject")
        return locked(target, failure)

    monkeypatch.setattr(editing, "locked", late)
    with pytest.raises(ModelError, match="was changed by another process meanwhile; try again"):
        editing.remove_head(model, "mood")
    assert list(ModelFolder.open(model).records) == ["ner", "mood", "subject"]


def test_a_model_that_a_killed_writer_moved_away_is_restored(model: Path, moods: Path) -> None:
    model.rename(model.with_name(".model.old-x"))
    with pytest.raises(UsageError, match="is not empty"):
        nlptasks.train(f"x:sentiment={moods}", output=model, settings=TrainSettings(**QUICK))
    assert "mood" in ModelFolder.open(model).records


def test_resuming_without_a_checkpoint_replaces_nothing(model: Path, moods: Path) -> None:
    before = digests(model)
    with pytest.raises(UsageError, match=r"head 'mood': already exists in .*"):
        nlptasks.train(
            [f"mood:sentiment={moods}", f"x:sentiment={moods}"],
            add_to=model,
            settings=TrainSettings(**QUICK),
            resume=True,
        )
    (model / "checkpoints").mkdir()
    (model / "checkpoints" / ".nlptasks.lock").touch()  # left by a killed --add-to that wrote no checkpoint
    with pytest.raises(
        UsageError, match="already contains a finished model; there is nothing to resume; use `overwrite=True`"
    ):
        nlptasks.train(f"x:sentiment={moods}", output=model, settings=TrainSettings(**QUICK), resume=True)
    shutil.rmtree(model / "checkpoints")
    assert digests(model) == before


@pytest.mark.parametrize("linked", [False, True])
def test_a_model_can_be_opened_while_another_process_renames_its_heads(model: Path, linked: bool) -> None:
    place = model
    if linked:
        place = model.with_name("current")
        place.symlink_to(model)
    child = os.fork()
    if not child:
        for old, new in [("mood", "feeling"), ("feeling", "mood")] * 6:
            editing.rename_head(model, old, new)
            time.sleep(0.1)
        os._exit(0)
    opened = 0
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        found = ModelFolder.read(place, lambda stored: (stored.heads(["ner"]), stored.tokenizer(), stored.records))
        assert {"ner", "topic"} < set(found[2])
        opened += 1
    assert opened > 12


def test_what_was_read_while_the_model_was_replaced_is_read_again(model: Path) -> None:
    seen = []

    def read(stored: ModelFolder) -> set[str]:
        seen.append(set(stored.records))
        if len(seen) == 1:
            editing.rename_head(model, "mood", "feeling")
        if len(seen) == 2:
            editing.rename_head(model, "feeling", "mood")
            raise BackendError("the graph", "cannot be opened", "export the model again")
        return seen[-1]

    assert "mood" in ModelFolder.read(model, read)
    assert len(seen) == 3


def merge(model: Path, scratch: Path) -> None:
    shutil.copytree(model, scratch, dirs_exist_ok=True)
    for head in ModelFolder.open(scratch).records:
        editing.rename_head(scratch, head, f"{head}-2")
    editing.merge_models([model, scratch], scratch.with_name("new"), overwrite=True)


def write_checkpoint(model: Path, scratch: Path) -> None:
    to_hugging_face(model, "topic", output=scratch.with_name("new"), overwrite=True)


def read_checkpoint(model: Path, scratch: Path) -> None:
    to_hugging_face(model, "topic", output=scratch, overwrite=True)
    import_checkpoint(scratch, task="classification", output=scratch.with_name("new"), overwrite=True)


@pytest.mark.parametrize("write", [merge, write_checkpoint, read_checkpoint])
def test_what_a_killed_writer_left_is_removed_by_the_next(
    write: Callable[[Path, Path], None], model: Path, tmp_path: Path
) -> None:
    child = os.fork()
    if not child:
        from nlptasks.storage import atomic

        take_place = atomic._take_place
        atomic._take_place = lambda place, target: os._exit(9) if target.name == "new" else take_place(place, target)
        write(model, tmp_path / "scratch")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(list(tmp_path.glob(".new.tmp-*"))) == 1
    shutil.rmtree(tmp_path / "scratch", ignore_errors=True)
    write(model, tmp_path / "scratch")
    assert not list(tmp_path.glob(".new.*"))
    assert (tmp_path / "new").is_dir()
