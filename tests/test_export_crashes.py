"""The old export stays usable until the new one is complete, after kills, on full disks and with other processes."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from answering import TEXTS, contents, copied
from runs import code_of, forked

from nlptasks.errors import ModelError
from nlptasks.exporting import exporter as exporting
from nlptasks.exporting.exporter import export
from nlptasks.exporting.parity import Parity
from nlptasks.exporting.tracing import _PLAIN, Engine, Traceable
from nlptasks.models import editing
from nlptasks.models.model import Model
from nlptasks.pipeline import pipeline
from nlptasks.storage import atomic as disk
from nlptasks.training.interrupts import terminable


@pytest.fixture
def quick(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy graphs from an export instead of tracing them, which takes seconds."""

    def copying(model: Model, graphs: object, place: Path, precision: object) -> list[tuple[str, Parity]]:
        for path in (exported / "onnx/fp32").glob("encode.onnx*"):
            shutil.copyfile(path, place / path.name)
        return [("copied", Parity(0.0, 1.0))]

    monkeypatch.setattr(exporting, "_export_graphs", copying)


# X3: killed, or the disk is full


def answers(model: Path) -> Any:
    return pipeline("ner", model=model, backend="onnx:fp32", device="cpu")(TEXTS)


BETWEEN = "rename of the new folder"
"""The crash after the old export was moved away, before the new one is in its place."""


def ended_before(number: int, model: Path, note: Path) -> None:
    """Export, and exit before the call of this number that changes the disk; write its name to a file."""
    calls = iter(range(1, number))

    def crash_before(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any, **more: Any) -> Any:
            if next(calls, None) is None:
                is_new = name == "rename" and ".tmp-" in str(given[0])
                note.write_text(BETWEEN if is_new else name)
                os._exit(137)
            return function(*given, **more)

        return wrapped

    signal.alarm(120)
    for name in ("rename", "fsync", "rmdir", "unlink"):
        setattr(os, name, crash_before(name, getattr(os, name)))
    shutil.copyfile = crash_before("copyfile", shutil.copyfile)
    os.open = crash_before("open", os.open)
    export(model)


def test_a_killed_export_leaves_the_old_one(quick: None, exported: Path, tmp_path: Path) -> None:
    expected, seen, code = answers(exported), [], 137
    while code == 137:
        model = copied(exported, tmp_path / f"model{len(seen)}")
        note = tmp_path / "note"
        code = code_of(forked(partial(ended_before, len(seen) + 1, model, note), tmp_path / "log"))
        seen.append(note.read_text() if code else "")
        assert answers(model) == expected, seen
        export(model)
        assert answers(model) == expected, seen
    assert code == 0, (tmp_path / "log").read_text()
    assert seen.count("copyfile") == 2
    assert seen.count("rename") == seen.count(BETWEEN) == 1
    assert seen.count("fsync") == 5  # three files, their folder, and the one above


def test_an_export_that_was_moved_away_before_a_kill_is_restored(exported: Path, tmp_path: Path) -> None:
    model = copied(exported, tmp_path / "model")
    (model / "onnx/fp32").rename(model / "onnx/.fp32.old-x")
    assert answers(model) == answers(exported)


def test_the_next_export_removes_what_killed_ones_left(quick: None, exported: Path, tmp_path: Path) -> None:
    model = copied(exported, tmp_path / "model")
    copied(model / "onnx/fp32", model / "onnx/.fp32.tmp-x")
    copied(model / "onnx/fp32", model / "onnx/.fp32.old-x")
    export(model)
    assert [path.name for path in (model / "onnx").iterdir()] == ["fp32"]


def test_a_kill_while_graphs_are_written_leaves_the_old_export(exported: Path, tmp_path: Path) -> None:
    model = copied(exported, tmp_path / "model")

    def killed(graph: Traceable, path: Path) -> None:
        _PLAIN[0].write(graph, path)
        os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        signal.alarm(120)
        exporting.engines = lambda fusions: (Engine("killed", killed),)  # type: ignore[assignment]
        export(model)

    assert code_of(forked(work, tmp_path / "log")) == -signal.SIGKILL
    [left] = (model / "onnx").glob(".fp32.tmp-*")
    assert (left / "encode.onnx").exists()
    assert answers(model) == answers(exported)


@pytest.mark.parametrize("call", ["os.fsync", "os.rename", "pathlib.Path.write_bytes", "shutil.copyfile"])
def test_a_full_disk_leaves_the_old_export(
    quick: None, exported: Path, tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*given: Any, **more: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    model = copied(exported, tmp_path / "model")
    monkeypatch.setattr(call, failing)
    with pytest.raises(
        ModelError, match=r"onnx/fp32: cannot be written \(\[Errno 28\] .*; check the path and the free"
    ):
        export(model)
    monkeypatch.undo()
    assert contents(model) == contents(exported)
    assert [path.name for path in (model / "onnx").iterdir()] == ["fp32"]
    assert answers(model) == answers(exported)


def test_a_full_disk_while_graphs_are_written_is_reported(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(graph: Traceable, path: Path) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporting, "engines", lambda fusions: (Engine("full", full),))
    model = copied(exported, tmp_path / "model")
    with pytest.raises(ModelError, match=r"cannot be written .*No space left on device"):
        export(model)
    assert contents(model) == contents(exported)


# Other writers


@contextmanager
def held(folder: Path, until: threading.Event) -> Iterator[list[str]]:
    """Hold the lock of a folder until an event; the list gets an item when it is released."""
    done: list[str] = []
    taken = threading.Event()

    def hold() -> None:
        with disk.locked(folder, ModelError):
            taken.set()
            until.wait(60)
            time.sleep(0.3)  # a caller that does not wait is done by now
            done.append("released")

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait(60)
    try:
        yield done
    finally:
        until.set()
        thread.join()


@pytest.mark.parametrize("folder", ["", "onnx/fp32"], ids=["edit", "export"])
def test_an_export_waits_for_other_writers(
    quick: None, exported: Path, tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, locked = copied(exported, tmp_path / "model"), exporting.locked
    with monkeypatch.context() as patch, held(model / folder, threading.Event()):
        patch.setattr(disk, "_LOCK_SECONDS", 0.1)
        with pytest.raises(ModelError, match="is being written by another process; try again when it has finished"):
            export(model)
    assert contents(model) == contents(exported)
    wanted = threading.Event()

    def asking(target: Path, *given: Any) -> Any:
        if target == model / folder:
            wanted.set()
        return locked(target, *given)

    monkeypatch.setattr(exporting, "locked", asking)
    with held(model / folder, wanted) as done:
        export(model)
        assert done == ["released"]


def test_an_export_that_must_wait_does_not_start_work(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_export_graphs", lambda *given: pytest.fail("it has started"))
    monkeypatch.setattr(disk, "_LOCK_SECONDS", 0.1)
    model = copied(exported, tmp_path / "model")
    with held(model / "onnx/fp32", threading.Event()), pytest.raises(ModelError, match="is being written"):
        export(model)


@pytest.mark.parametrize("moment", ["_export_graphs", "_opened", "locked"])
def test_an_export_of_a_model_that_is_edited_meanwhile_is_not_kept(
    quick: None, exported: Path, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, function = copied(exported, tmp_path / "model"), getattr(exporting, moment)
    waiting = iter(range(1 if moment == "locked" else 0))  # the first lock is the export's own

    def late(*given: Any) -> Any:
        if next(waiting, None) is None:
            editing.rename_head(model, "ner", "names")
        return function(*given)

    with monkeypatch.context() as patch:
        patch.setattr(exporting, moment, late)
        with pytest.raises(ModelError, match=r"was changed during the export; export it again"):
            export(model)
    assert [path.name for path in (model / "onnx").iterdir()] == ["fp32"]
    assert contents(model / "onnx") == contents(exported / "onnx")
    assert pipeline("names", model=model, device="cpu").backend == "PyTorch on the CPU"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_sigterm_exits_with_143_and_removes_temporary_files(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()

    def work() -> None:
        with terminable(), tempfile.TemporaryDirectory(dir=place):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    assert code_of(forked(work, tmp_path / "log")) == 143
    assert list(place.iterdir()) == []
