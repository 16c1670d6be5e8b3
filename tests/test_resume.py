"""Killed, stopped and damaged runs are resumed with the same result, or refused with the reason."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from filelock import FileLock

import nlptasks
from nlptasks.config import TrainSettings
from nlptasks.errors import ModelError, TrainingError, UsageError
from nlptasks.heads.ner import NerHead
from nlptasks.storage import checkpoints as checkpoint
from nlptasks.storage.checkpoints import Checkpoint, Checkpoints, newest
from nlptasks.training.callbacks import NoOpCallback


class Stopping(NoOpCallback):
    """Sends a signal to its own process during a step."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.at, self.number, self.notes = step, number, list[str]()

    def step(self, done: int, total: int, head: str, loss: float) -> None:
        if done + 1 == self.at:
            os.kill(os.getpid(), self.number)

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def train(
    backbones: Path, conll_data: Path, monkeypatch: pytest.MonkeyPatch
) -> partial[nlptasks.training.run.TrainResult]:
    """Train with a checkpoint after each step."""
    monkeypatch.setattr(checkpoint, "_MAX_SHARE", float("inf"))
    return partial(nlptasks.train, f"ner={conll_data}")


def settings(backbones: Path, **more: object) -> TrainSettings:
    options = {"backbone": str(backbones / "bert"), "epochs": 2, "lr": 3e-3, "batch_tokens": 64, "precision": "fp32"}
    return TrainSettings(**{**options, "checkpoint_seconds": 0.0, **more})  # type: ignore[arg-type]


def outcome(folder: Path) -> tuple[bytes, ...]:
    log = tiny.log_of(folder)
    files = [folder / "backbone/model.safetensors", *sorted((folder / "heads").glob("*.safetensors"))]
    return *(file.read_bytes() for file in files), json.dumps([log["history"], log["metrics"]]).encode()


def test_a_resumed_run_of_a_generative_head_has_the_same_result(
    backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_MAX_SHARE", float("inf"))
    rows = "".join(json.dumps({"source": f"ada {n}", "target": f"Ada Nummer {n}"}) + "\n" for n in range(40))
    (tmp_path / "train.jsonl").write_text(rows)
    train = partial(nlptasks.train, f"translation={tmp_path / 'train.jsonl'}")
    chosen = settings(backbones, lr=1e-3, epochs=4)
    train(output=tmp_path / "whole", settings=chosen)
    for number, step in enumerate((2, 5, 7)):
        stopped_at(train, tmp_path / "cut", step, chosen, resume=number > 0)
    train(output=tmp_path / "cut", settings=chosen, resume=True)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    assert len(list((tmp_path / "cut" / "heads").iterdir())) == 2  # its weights, and its target vocabulary


def stopped_at(train: partial, output: Path, step: int, options: TrainSettings, **more: bool) -> list[str]:
    callback = Stopping(step)
    with pytest.raises(KeyboardInterrupt):
        train(output=output, settings=options, callback=callback, **more)
    return callback.notes


@pytest.mark.parametrize(
    "options", [{}, {"accumulate": 3}, {"tune": "head"}, {"precision": "bf16", "layer_decay": 0.8}]
)
def test_a_resumed_run_has_the_same_result(
    train: partial, backbones: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    chosen = settings(backbones, **options)
    train(output=tmp_path / "whole", settings=chosen)
    log = tiny.log_of(tmp_path / "whole")
    steps = [2, 4, 6] if options else [2, 7, 10, 13, 20]  # 10 steps make an epoch
    for number, step in enumerate(steps):
        notes = stopped_at(train, tmp_path / "cut", step, chosen, resume=number > 0)
        assert notes[-1] == f"stopped after step {step}; continue with `resume=True`"
    train(output=tmp_path / "cut", settings=chosen, resume=True)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )
    assert log["history"][-1]["epoch"] == 2


@pytest.mark.parametrize(
    ("number", "error", "code"), [(signal.SIGINT, KeyboardInterrupt, None), (signal.SIGTERM, SystemExit, 143)]
)
def test_after_a_signal_the_step_is_completed_and_saved(
    train: partial, backbones: Path, tmp_path: Path, number: int, error: type[BaseException], code: int | None
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(error) as caught:
        train(output=tmp_path / "m", settings=settings(backbones), callback=Stopping(3, number))
    assert getattr(caught.value, "code", None) == code
    assert signal.getsignal(number) is before
    found = newest(tmp_path / "m")
    assert found
    assert found.record["state"]["step"] == 3


@pytest.mark.parametrize("tune", ["all", "head"])
def test_a_signal_during_an_evaluation_does_not_change_the_result(
    train: partial, backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tune: str
) -> None:
    chosen = settings(backbones, tune=tune)
    calls: list[NerHead] = []

    def counted(head: NerHead, *given: object) -> object:
        calls.append(head)
        if len(calls) in stops:
            os.kill(os.getpid(), signal.SIGINT)
        return decode(head, *given)  # type: ignore[arg-type]

    decode, stops = NerHead.decode, set[int]()
    monkeypatch.setattr(NerHead, "decode", counted)
    train(output=tmp_path / "whole", settings=chosen)
    third = len(calls) // 3  # two evaluations in training, one of the weights that are kept
    # In the first evaluation on dev, in the second one, and in the last one: each run counts its own calls.
    for stop in (third // 2, third + 3, third + 3):
        calls.clear()
        stops = {stop}
        with pytest.raises(KeyboardInterrupt):
            train(output=tmp_path / "cut", settings=chosen, resume=True)
        assert len(calls) < 3 * third
    stops = set()
    train(output=tmp_path / "cut", settings=chosen, resume=True)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_the_command_line_exits_with_the_signals_code(
    backbones: Path, conll_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from nlptasks.cli import progress
    from nlptasks.cli.main import main

    step = progress.ProgressBar.step

    def terminated(self: progress.ProgressBar, done: int, total: int, head: str, loss: float) -> None:
        step(self, done, total, head, loss)
        if done == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(progress.ProgressBar, "step", terminated)
    words = [
        "train",
        f"ner={conll_data}",
        "-o",
        str(tmp_path / "m"),
        "--backbone",
        str(backbones / "bert"),
        "--epochs",
        "1",
    ]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 143
    assert "stopped after step 2; continue with --resume" in result.stderr
    monkeypatch.setattr(progress.ProgressBar, "step", step)
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, "--resume" in result.stderr) == (2, True)
    result = CliRunner().invoke(main, [*words, "--resume"])
    assert result.exit_code == 0, result.stderr
    assert "resumed after step 2 of" in result.stderr
    result = CliRunner().invoke(main, [*words, "--resume"])
    assert result.exit_code == 0, result.stderr
    assert "is already trained" in result.stderr


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(
    train: partial, backbones: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = settings(backbones)
    train(output=tmp_path / "whole", settings=chosen)
    stopped_at(train, tmp_path / "cut", 5, chosen)
    newest_one, older = sorted((tmp_path / "cut/checkpoints").glob("0*"), reverse=True)
    for file in sorted(newest_one.iterdir()):
        content = file.read_bytes()
        file.write_bytes(bytes([*content[:-9], content[-9] ^ 1, *content[-8:]]))
        caplog.clear()
        found = newest(tmp_path / "cut")
        assert found
        assert found.record["state"]["step"] == 4
        assert f"{newest_one.name}: is damaged" in caplog.text
        file.write_bytes(content)
    (newest_one / "state.json").unlink()
    train(output=tmp_path / "cut", settings=chosen, resume=True)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    assert older.name < newest_one.name


def test_a_run_without_an_intact_checkpoint_is_not_resumed(train: partial, backbones: Path, tmp_path: Path) -> None:
    stopped_at(train, tmp_path / "m", 2, settings(backbones))
    for file in (tmp_path / "m/checkpoints").glob("0*/state.json"):
        file.write_text("{}")
    with pytest.raises(TrainingError, match=r"has no intact checkpoint \(0000.*`overwrite=True`"):
        train(output=tmp_path / "m", settings=settings(backbones), resume=True)


def test_resuming_without_a_checkpoint_starts_a_run_with_a_note(
    train: partial, backbones: Path, tmp_path: Path
) -> None:
    callback = Stopping(0)
    train(output=tmp_path / "m", settings=settings(backbones, epochs=1), resume=True, callback=callback)
    assert any("there is no checkpoint to resume from" in note for note in callback.notes)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        train(output=tmp_path / "other", settings=settings(backbones), resume=True)


def test_differences_between_the_runs_are_listed(
    train: partial, backbones: Path, conll_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at(train, tmp_path / "m", 2, settings(backbones))
    other = tmp_path / "data"
    other.mkdir()
    for part in ("train", "dev"):
        (other / f"{part}.conll").write_text((conll_data / f"{part}.conll").read_text() + "\nEve\tB-PER\n")
    again = partial(nlptasks.train, output=tmp_path / "m", resume=True)
    with pytest.raises(TrainingError, match=r"settings\.lr was 0\.003, is 0\.001, settings\.seed was 0, is 5"):
        train(output=tmp_path / "m", settings=settings(backbones, lr=1e-3, head_lr=3e-2, seed=5), resume=True)
    with pytest.raises(
        TrainingError, match=r"data\.files\.dev\.conll was '\w{64}', is '\w{64}', heads\.ner\.data\.files\.train\.conll"
    ):
        again(f"ner={other}", settings=settings(backbones))
    with pytest.raises(TrainingError, match=r"backbone was '\w{64}'"):
        train(output=tmp_path / "m", settings=settings(backbones, backbone=str(backbones / "roberta")), resume=True)
    monkeypatch.setattr("nlptasks.training.fingerprint.version", lambda name: "99")
    with pytest.raises(TrainingError, match=r"versions\.accelerate was '.*', is '99'"):
        train(output=tmp_path / "m", settings=settings(backbones), resume=True)
    monkeypatch.undo()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(TrainingError, match=rf"threads was {threads}, is {threads + 1}"):
            train(output=tmp_path / "m", settings=settings(backbones), resume=True)
    finally:
        torch.set_num_threads(threads)


def test_a_finished_run_with_other_settings_is_not_returned(trained: Path, conll_data: Path, backbones: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"was trained with other settings or data: settings\.batch_tokens was 128, is 64"
    ):
        nlptasks.train(f"ner={conll_data}", output=trained, settings=settings(backbones), resume=True)


def test_overwriting_keeps_the_old_model_until_the_new_one_is_complete(
    train: partial, trained: Path, backbones: Path, tmp_path: Path
) -> None:
    nlptasks.Model.load(trained).save(tmp_path / "m")
    stopped_at(train, tmp_path / "m", 3, settings(backbones), overwrite=True)
    assert nlptasks.Model.load(tmp_path / "m")
    stopped_at(train, tmp_path / "m", 2, settings(backbones), overwrite=True)
    found = newest(tmp_path / "m")
    assert found
    assert found.record["state"]["step"] == 2
    train(output=tmp_path / "m", settings=settings(backbones), resume=True)
    assert not (tmp_path / "m" / "checkpoints").exists()
    assert nlptasks.Model.load(tmp_path / "m")


def test_two_runs_do_not_write_to_one_place(train: partial, backbones: Path, tmp_path: Path) -> None:
    (tmp_path / "m/checkpoints").mkdir(parents=True)
    with (
        FileLock(tmp_path / "m/checkpoints/.nlptasks.lock"),
        pytest.raises(UsageError, match="is being trained by another process"),
    ):
        train(output=tmp_path / "m", settings=settings(backbones), resume=True)


@pytest.mark.parametrize(
    "call", ["storage.atomic.os.fsync", "storage.atomic.os.rename", "storage.safetensors.save_file"]
)
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    one = Checkpoint({"weights": {"a": torch.ones(3)}}, {"progress": 1})
    with Checkpoints(tmp_path / "m", fresh=True, seconds=0) as checkpoints:
        checkpoints.save(one)
        monkeypatch.setattr(
            f"nlptasks.{call}", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        with pytest.raises(TrainingError, match=r"cannot be written .*No space left on device.*free space"):
            checkpoints.save(Checkpoint(one.tensors, {"progress": 2}))
        monkeypatch.undo()
        found = newest(tmp_path / "m")
    assert found
    assert found.record == {"progress": 1}
    assert torch.equal(found.tensors["weights"]["a"], torch.ones(3))
    assert [path.name for path in (tmp_path / "m/checkpoints").glob("*[0-9]*")] == ["000001"]


def ran(*words: str) -> dict[str, Any]:
    """Return the output of ``runs.py``."""
    script = Path(__file__).parent / "runs.py"
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_runs_killed_at_random_have_the_same_result() -> None:
    found = ran("kills", "--kills", "8")
    assert found["kills"] >= 8
    assert found["differences"] == 0


@pytest.mark.slow
def test_some_of_many_runs_are_killed_inside_a_save() -> None:
    found = ran("kills", "--kills", "40")
    assert found["inside_a_save"] > 0
    assert found["differences"] == 0


@pytest.mark.slow
def test_runs_that_crash_before_any_write_have_the_same_result() -> None:
    found = ran("crashes", "--every", "4")
    assert found["crashes"] > 10
    assert found["differences"] == 0


@pytest.mark.parametrize("what", ["processes", "joint"])
def test_two_processes_have_the_same_result_as_one_with_the_same_batches(what: str) -> None:
    found = ran(what)
    assert found["processes"] == 2
    assert found["digests"][0] == found["digests"][1]
    assert found["difference"] <= 1e-5
    assert found["stopped"] == [143, 143]
    assert not found["resumed_differs"]


def test_a_folder_without_a_run_is_not_resumed(train: partial, trained: Path, backbones: Path, tmp_path: Path) -> None:
    other = tmp_path / "project"
    (other / "checkpoints/epoch=3").mkdir(parents=True)
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(
        UsageError, match="is not empty, and contains no unfinished run; use another `output`, or `overwrite=True`"
    ):
        train(output=other, settings=settings(backbones), resume=True)
    nlptasks.Model.load(trained).save(tmp_path / "model")  # without the log of its training
    with pytest.raises(UsageError, match="contains no unfinished run"):
        train(output=tmp_path / "model", settings=settings(backbones), resume=True)
    assert (other / "thesis.txt").read_text() == "mine"


def test_files_created_during_a_run_are_not_lost(train: partial, backbones: Path, tmp_path: Path) -> None:
    class Writing(NoOpCallback):
        def evaluated(self, epoch: int, metrics: object, best: bool) -> None:
            (tmp_path / "m/notes.txt").write_text("mine")

    with pytest.raises(
        ModelError, match=r"has notes\.txt, which was not there when training started; move it elsewhere"
    ):
        train(output=tmp_path / "m", settings=settings(backbones), callback=Writing())
    (tmp_path / "m/notes.txt").rename(tmp_path / "notes.txt")
    assert train(output=tmp_path / "m", settings=settings(backbones), resume=True).heads["ner"].metrics


def test_a_damaged_log_of_a_finished_run_is_reported(
    train: partial, trained: Path, backbones: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "m")
    (tmp_path / "m/training.json").write_text("[]")
    with pytest.raises(ModelError, match=r"training\.json: has sha256"):
        train(output=tmp_path / "m", settings=settings(backbones), resume=True)


def test_the_intact_checkpoint_is_kept_after_a_fallback(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "m", fresh=True, seconds=0) as checkpoints:
        for number in (1, 2, 3):
            checkpoints.save(Checkpoint({"weights": {"a": torch.ones(3)}}, {"progress": number}))
    place = tmp_path / "m/checkpoints"
    (place / "000003/state.json").write_text("{}")
    with Checkpoints(tmp_path / "m", fresh=False, seconds=0) as checkpoints:
        found = checkpoints.newest()
        assert found
        assert found.record == {"progress": 2}
        checkpoints.save(Checkpoint(found.tensors, {"progress": 4}))
        assert sorted(path.name for path in place.glob("0*")) == ["000002", "000004"]


def test_a_folder_may_have_any_name(train: partial, backbones: Path, tmp_path: Path) -> None:
    output = tmp_path / "run[1]"
    stopped_at(train, output, 3, settings(backbones))
    output.rename(tmp_path / ".run[1].old-abc")  # as a kill between two renames leaves it
    (tmp_path / ".run[1].tmp-abc").mkdir()
    callback = Stopping(0)
    train(output=output, settings=settings(backbones), resume=True, callback=callback)
    assert any(note.startswith("resumed after step 3") for note in callback.notes)
    assert [path.name for path in tmp_path.iterdir()] == ["run[1]"]


def test_the_path_of_the_backbone_may_be_relative(
    train: partial, backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at(train, tmp_path / "m", 3, settings(backbones))
    monkeypatch.chdir(backbones)
    assert train(output=tmp_path / "m", settings=settings(backbones, backbone="bert"), resume=True).heads["ner"].metrics


@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--nproc-per-node", "2"],
        pytest.param(["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"], marks=pytest.mark.slow),
    ],
)
def test_launchers_start_several_processes(
    backbones: Path, conll_data: Path, tmp_path: Path, launcher: list[str]
) -> None:
    words = ["train", f"ner={conll_data}", "-o", str(tmp_path / "m"), "--backbone", str(backbones / "bert")]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "nlptasks", *words, "--epochs", "1"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert tiny.log_of(tmp_path / "m")["processes"] == 2
    assert done.stdout.count("model: ") == 1
    assert done.stderr.count("rows train 36") == 1


@pytest.mark.slow
def test_a_launcher_that_is_terminated_leaves_a_checkpoint(backbones: Path, conll_data: Path, tmp_path: Path) -> None:
    words = ["train", f"ner={conll_data}", "-o", str(tmp_path / "m"), "--backbone", str(backbones / "bert")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "nlptasks"]
    with subprocess.Popen(
        [*launcher, *words, "--epochs", "10000", "--patience", "10000"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stderr
        notes = []
        for line in process.stderr:
            notes.append(line)
            if line.startswith("epoch 1:"):
                process.terminate()
    assert process.returncode != 0
    assert any("continue with --resume" in line for line in notes), "".join(notes)
    found = newest(tmp_path / "m")
    assert found
    assert found.record["state"]["epoch"] >= 1


def test_unfinished_checkpoints_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "m", fresh=True, seconds=0) as checkpoints:
        checkpoints.save(Checkpoint({"weights": {"a": torch.ones(3)}}, {"progress": 1}))
    place = tmp_path / "m/checkpoints"
    (place / ".000002.tmp-abc").mkdir()
    (place / ".000002.tmp-abc/weights.safetensors").write_bytes(b"half")
    with Checkpoints(tmp_path / "m", fresh=False, seconds=0):
        assert sorted(path.name for path in place.iterdir() if path.is_dir()) == ["000001"]


def test_a_checkpoint_that_took_long_is_not_followed_by_another_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0

    def slow(*given: Any) -> None:
        nonlocal now
        write(*given)
        now += 2.0

    write = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", slow)
    monkeypatch.setattr("nlptasks.storage.checkpoints.time.monotonic", lambda: now)
    with Checkpoints(tmp_path / "m", fresh=True, seconds=0) as checkpoints:
        checkpoints.save(Checkpoint({"weights": {"a": torch.ones(3)}}, {"progress": 1}))
        due = []
        for passed in (0, 30, 30):  # writing takes at most 4 % of the time
            now += passed
            due.append(checkpoints.due)
    assert due == [False, False, True]
