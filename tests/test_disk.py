"""Folders are written whole or not at all, whatever the disk, a kill or another process does."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nlptasks
from nlptasks.errors import ModelError
from nlptasks.models.model import Model, ModelFolder
from nlptasks.storage.atomic import restored, sealed, unsealed, written_beside


def write(target: Path, content: bytes = b"new") -> None:
    with written_beside(target, ModelError) as place:
        (place / "deep").mkdir()
        (place / "deep" / "a").write_bytes(content)
        (place / "b").write_bytes(sealed({"size": len(content), "first": content[:1].decode()}))


def is_whole(target: Path) -> bool:
    record = unsealed((target / "b").read_bytes())
    content = (target / "deep" / "a").read_bytes()
    return len(content) == record["size"] and set(content) == {ord(record["first"])}


def in_child(work: Callable[[], object]) -> int:
    """The exit code of a forked child that does this."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_everything_is_on_the_disk_before_the_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    target = tmp_path / "m"
    write(target)
    open_, fsync, rename = os.open, os.fsync, os.rename
    opened: dict[int, str] = {}

    def opening(path: Any, *rest: Any, **more: Any) -> int:
        handle = open_(path, *rest, **more)
        opened[handle] = Path(path).name
        return handle

    def syncing(handle: int) -> None:
        fsync(handle)
        done.append(f"sync {'NEW' if '.tmp-' in opened[handle] else opened[handle]}")

    def renaming(one: Path, two: Path) -> None:
        rename(one, two)
        done.append(f"rename {'NEW' if '.tmp-' in one.name else one.name}")

    monkeypatch.setattr("nlptasks.storage.atomic.os.open", opening)
    monkeypatch.setattr("nlptasks.storage.atomic.os.fsync", syncing)
    monkeypatch.setattr("nlptasks.storage.atomic.os.rename", renaming)
    write(target)
    assert done == ["sync b", "sync a", "sync deep", "sync NEW", "rename m", "rename NEW", f"sync {tmp_path.name}"]


@pytest.mark.parametrize("call", ["os.fsync", "os.rename", "os.open", "pathlib.Path.write_bytes"])
@pytest.mark.parametrize("after", [0, 1])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, call: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m"
    write(target, b"old")
    real = {"os": os, "pathlib.Path": Path}[call.rpartition(".")[0]].__dict__[call.rpartition(".")[2]]
    left = iter(range(after))

    def failing(*given: Any, **more: Any) -> Any:
        if next(left, None) is None:
            monkeypatch.undo()  # what follows is the cleaning up
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*given, **more)

    monkeypatch.setattr(call, failing)
    with pytest.raises(ModelError, match=r"cannot be written \(\[Errno 28\] No space left on device\); check the path"):
        write(target, b"nnn")
    assert (target / "deep" / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_model_that_does_not_fit_leaves_the_old_one(trained: Path, tmp_path: Path) -> None:
    model = nlptasks.Model.load(trained)
    model.save(tmp_path / "m")
    before = (tmp_path / "m" / "nlptasks.json").read_bytes()

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with pytest.raises(ModelError, match=r"cannot be written .*check the path and the free space"):
            model.save(tmp_path / "m", overwrite=True)

    assert in_child(work) == 0
    assert (tmp_path / "m" / "nlptasks.json").read_bytes() == before
    assert ModelFolder.open(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def save_often(target: Path, content: bytes, times: int) -> None:
    for _ in range(times):
        write(target, content)


def test_two_writers_at_once_leave_a_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "m"
    write(target)
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=save_often, args=(target, letter * 5000, 50)) for letter in (b"x", b"y")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert is_whole(target)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_two_processes_save_models_to_one_place(trained: Path, tmp_path: Path) -> None:
    model = Model.load(trained)

    def save(times: int) -> None:
        for _ in range(times):
            model.save(tmp_path / "m", overwrite=True)

    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=save, args=(50,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert Model.load(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_kill_between_the_two_renames_is_made_good(tmp_path: Path) -> None:
    target = tmp_path / "m"
    write(target, b"old")

    def work() -> None:
        rename = os.rename

        def killing(one: Path, two: Path) -> None:
            if ".tmp-" in Path(one).name:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(one, two)

        os.rename = killing  # type: ignore[assignment]
        write(target, b"new")

    assert in_child(work) == -signal.SIGKILL
    assert not target.exists()
    assert restored(target)
    assert (target / "deep" / "a").read_bytes() == b"old"
    assert not restored(target)


def test_there_is_nothing_to_restore_where_nothing_was(tmp_path: Path) -> None:
    assert not restored(tmp_path / "m")
