"""Folders are written completely or not at all, despite full disks, kills and other processes."""

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
from nlptasks.models.folder import ModelFolder
from nlptasks.models.model import Model
from nlptasks.storage.atomic import locked, restored, sealed, unsealed, written_beside


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
    """Do work in a forked child and return its exit code."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_everything_is_synced_before_the_folder_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_full_disk_leaves_the_old_folder(
    tmp_path: Path, call: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m"
    write(target, b"old")
    real = {"os": os, "pathlib.Path": Path}[call.rpartition(".")[0]].__dict__[call.rpartition(".")[2]]
    left = iter(range(after))

    def failing(*given: Any, **more: Any) -> Any:
        if next(left, None) is None:
            monkeypatch.undo()  # so that the cleanup works
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*given, **more)

    monkeypatch.setattr(call, failing)
    with pytest.raises(ModelError, match=r"cannot be written \(\[Errno 28\] No space left on device\); check the path"):
        write(target, b"nnn")
    assert (target / "deep" / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_model_that_is_too_large_for_the_disk_leaves_the_old_one(trained: Path, tmp_path: Path) -> None:
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


def test_two_writers_at_once_leave_a_complete_folder(tmp_path: Path) -> None:
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


def test_the_folder_is_restored_after_a_kill_between_the_two_renames(tmp_path: Path) -> None:
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


def test_a_missing_folder_without_leftovers_is_not_restored(tmp_path: Path) -> None:
    assert not restored(tmp_path / "m")


def plant_link(folder: Path) -> None:
    folder.with_name("elsewhere").mkdir(mode=0o700)
    folder.symlink_to(folder.with_name("elsewhere"))


def plant_dangling_link(folder: Path) -> None:
    folder.symlink_to(folder.with_name("nowhere"))


def plant_shared_folder(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def plant_group_folder(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o770)


@pytest.mark.parametrize("plant", [plant_link, plant_dangling_link, plant_shared_folder, plant_group_folder])
def test_lock_folders_that_others_could_have_planted_are_refused(
    tmp_path: Path, plant: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlptasks.storage.atomic.tempfile.gettempdir", lambda: str(tmp_path))
    folder = tmp_path / f"nlptasks-{os.getuid()}"
    plant(folder)
    problem = rf"{folder}: cannot be used .*; set TMPDIR to a folder of your own"
    with pytest.raises(ModelError, match=problem), locked(tmp_path / "m", ModelError):
        pytest.fail("the lock was acquired")
    assert not list(tmp_path.rglob("*.lock"))


def test_the_lock_folder_is_private_and_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlptasks.storage.atomic.tempfile.gettempdir", lambda: str(tmp_path))
    for _ in range(2):
        with locked(tmp_path / "m", ModelError):
            assert (tmp_path / f"nlptasks-{os.getuid()}").stat().st_mode & 0o777 == 0o700
