"""Script for tiny training runs in forks of one process: killed at random, crashed at every write, two at once.

    python tests/runs.py kills --kills 200 --seed 0

The outcome of a run (sha256 of the weights and of the optimizer's state, and the metrics) is compared with that of an undisturbed
run. Every step writes a checkpoint, so that many kills hit one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import tiny
import torch
from safetensors.torch import load_file

import nlptasks
from nlptasks.config import TrainSettings
from nlptasks.storage import checkpoints as checkpoint
from nlptasks.storage import safetensors as weights
from nlptasks.training import trainer
from nlptasks.training.callbacks import NoOpCallback

ROWS = "\n".join(
    f"{name}\tB-PER\n{verb}\tO\n{place}\tB-LOC\n"
    for name in ("Ada", "Bob")
    for verb in "ab"
    for place in ("Rome", "Oslo")
)


MOODS = [
    {"text": f"{name} {verb}", "label": mood} for name in ("Ada", "Bob") for verb, mood in (("a", "pos"), ("b", "neg"))
]


@dataclass(frozen=True)
class Scene:
    """A training run that can be repeated.

    Attributes:
        folder: contains its backbones, data and outputs.
    """

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Scene:
        tiny.make("bert", folder / "backbone")
        tiny.make("bert", folder / "still")  # without dropout: random draws differ between processes
        config = json.loads((folder / "still/config.json").read_text())
        config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        (folder / "still/config.json").write_text(json.dumps(config))
        (folder / "data").mkdir()
        for part in ("train", "dev"):
            (folder / "data" / f"{part}.conll").write_text(ROWS)
        (folder / "moods").mkdir()
        for part in ("train", "dev"):
            (folder / "moods" / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MOODS * 3))
        return cls(folder)

    def train(self, output: Path, *, joint: bool = False, **changes: Any) -> None:
        """Train one head, or two jointly, with a checkpoint after every step. Write the outcome beside the output."""
        checkpoint._MAX_SHARE = float("inf")  # type: ignore[misc]
        settings = {
            "backbone": str(self.folder / "backbone"),
            "epochs": 3,
            "patience": 3,
            "lr": 3e-3,
            "batch_tokens": 16,
        }
        callback = changes.pop("callback", None)
        settings |= {"accumulate": 3, "checkpoint_seconds": 0.0, "precision": "fp32", "device": "cpu"}
        run, optimizer = trainer.Trainer.run, output.with_suffix(".optimizer")

        def recorded(self: trainer.Trainer) -> Any:
            outcomes = run(self)
            optimizer.write_text(trainer.digest_of(self._optimization.state()[0]))
            rank = self.training_run.accelerator.process_index
            weights_digest = trainer.digest_of(self.training_run.model.state_dict())
            output.with_suffix(f".rank{rank}").write_text(weights_digest)
            return outcomes

        trainer.Trainer.run = recorded  # type: ignore[method-assign]
        chosen = TrainSettings(**{**settings, **changes})
        targets = [f"ner={self.folder / 'data'}", *[f"mood:sentiment={self.folder / 'moods'}"] * joint]
        result = nlptasks.train(targets, output=output, settings=chosen, resume=True, callback=callback)
        if not result.is_main_process:
            return
        log = tiny.log_of(output)
        outcome = {
            "weights": [_sha256(path) for path in sorted(output.glob("*/*.safetensors"))],
            "optimizer": optimizer.read_text(),
            "log": [log["history"], log["metrics"]],
        }
        output.with_suffix(".outcome").write_text(json.dumps(outcome))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def outcome_of(output: Path) -> Any:
    """Return the outcome of a run, or None if it is not complete."""
    path = output.with_suffix(".outcome")
    return json.loads(path.read_text()) if path.exists() else None


def forked(work: Callable[[], object], log: Path) -> int:
    """Start work in a child process and return its id. Its output goes to a file."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        work()
        code = 0
    except KeyboardInterrupt:
        code = 130
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def code_of(child: int) -> int:
    """Wait for a child. Return its exit code, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_random(scene: Scene, *, kills: int, seed: int) -> dict[str, Any]:
    """Kill runs at random moments, and count kills, kills during a save, and different outcomes."""
    draw = random.Random(seed)
    begun = time.monotonic()
    reference = scene.folder / "reference"
    assert code_of(forked(partial(_on_a_slow_disk, scene, reference), scene.folder / "log")) == 0, (
        scene.folder / "log"
    ).read_text()
    length, expected = time.monotonic() - begun, outcome_of(reference)
    counts = {"kills": 0, "inside_a_save": 0, "runs": 0, "differences": 0}
    while counts["kills"] < kills:
        output = scene.folder / f"run{counts['runs']}"
        work = partial(_on_a_slow_disk, scene, output)
        for attempt in range(draw.randint(1, 4)):
            before = _half_written(output)
            child = forked(work, scene.folder / "log")
            time.sleep(draw.uniform(0, length / 2 if attempt == 0 else length))
            if attempt == 0:
                _wait_for_a_save(output, before)
            os.kill(child, signal.SIGKILL)
            counts["kills"] += code_of(child) == -signal.SIGKILL
            counts["inside_a_save"] += bool(_half_written(output) - before)
        code = code_of(forked(work, scene.folder / "log"))
        counts["runs"] += 1
        counts["differences"] += code != 0 or outcome_of(output) != expected
        shutil.rmtree(output, ignore_errors=True)
    return counts


def _on_a_slow_disk(scene: Scene, output: Path) -> None:
    """Train with slow syncs, so that kills hit saves."""
    fsync = os.fsync

    def slow(handle: int) -> None:
        time.sleep(0.004)
        fsync(handle)

    os.fsync = slow
    scene.train(output)


def _half_written(output: Path) -> set[Path]:
    """Return the temporary folders of unfinished writes."""
    return {*output.parent.glob(f".{output.name}.tmp-*"), *output.glob("checkpoints/.*.tmp-*")}


def _wait_for_a_save(output: Path, before: set[Path]) -> None:
    """Wait until a save has started, at most a second."""
    end = time.monotonic() + 1
    while time.monotonic() < end and not _half_written(output) - before:
        time.sleep(0.0005)


def crash_everywhere(scene: Scene, *, every: int) -> dict[str, Any]:
    """End a run before every n-th call that changes the disk, resume it, and compare the outcome."""
    reference = scene.folder / "whole"
    assert code_of(forked(partial(_crashing, scene, reference, 0), scene.folder / "log")) == 0
    counts, code = {"crashes": 0, "differences": 0}, 137
    while code == 137:
        output = scene.folder / f"crash{counts['crashes']}"
        code = code_of(forked(partial(_crashing, scene, output, counts["crashes"] * every + 1), scene.folder / "log"))
        ended = code_of(forked(partial(_crashing, scene, output, 0), scene.folder / "log"))
        counts["crashes"] += code == 137
        counts["differences"] += ended != 0 or outcome_of(output) != outcome_of(reference)
    return counts


def _crashing(scene: Scene, output: Path, number: int) -> None:
    """Train three steps, but exit before the call with this number (from 1; 0 for none)."""
    seen = 0

    def crash_before(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == number:
                os._exit(137)
            return function(*args, **kwargs)

        return wrapped

    for place, name in ((os, "rename"), (os, "fsync"), (os, "rmdir"), (os, "unlink"), (weights, "save_file")):
        setattr(place, name, crash_before(getattr(place, name)))
    scene.train(output, epochs=1, accumulate=1, batch_tokens=40)


class _Terminating(NoOpCallback):
    """Sends SIGTERM to its own process during the third step."""

    def step(self, done: int, total: int, head: str, loss: float) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def two_at_once(scene: Scene, *, joint: bool) -> dict[str, Any]:
    """Train in two processes, in two that are stopped and resumed, and in one process with the same batches."""
    one, two, cut = (scene.folder / name for name in ("one", "two", "cut"))
    still = {"backbone": str(scene.folder / "still"), "epochs": 2, "joint": joint}
    alone = code_of(forked(partial(scene.train, one, accumulate=4, **still), scene.folder / "log"))
    codes = _together(partial(scene.train, two, accumulate=2, **still), scene)
    stopped = _together(partial(scene.train, cut, accumulate=2, callback=_Terminating(), **still), scene)
    resumed = _together(partial(scene.train, cut, accumulate=2, **still), scene)
    if any([alone, *codes, *resumed]):
        raise RuntimeError((scene.folder / "log").read_text())
    return {
        "stopped": stopped,
        "processes": tiny.log_of(two)["processes"],
        "digests": [two.with_suffix(f".rank{rank}").read_text() for rank in range(2)],
        "difference": max(
            float((load_file(one / path.relative_to(two))[key] - value).abs().max())
            for path in two.glob("*/*.safetensors")
            for key, value in load_file(path).items()
        ),
        "resumed_differs": outcome_of(cut) != outcome_of(two),
    }


def _together(work: Callable[[], object], scene: Scene) -> list[int]:
    """Do work in two processes, as under a launcher, and return their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def ranked(rank: int) -> None:
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        work()

    return [code_of(child) for child in [forked(partial(ranked, rank), scene.folder / "log") for rank in range(2)]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["kills", "crashes", "processes", "joint"])
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="crash before every n-th call that changes the disk")
    given = parser.parse_args()
    torch.set_num_threads(1)  # a process that has used several threads cannot be forked
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene.make(Path(folder))
        work = {
            "kills": partial(kill_at_random, scene, kills=given.kills, seed=given.seed),
            "crashes": partial(crash_everywhere, scene, every=given.every),
            "processes": partial(two_at_once, scene, joint=False),
            "joint": partial(two_at_once, scene, joint=True),
        }
        print(json.dumps(work[given.what]()))


if __name__ == "__main__":
    main()
