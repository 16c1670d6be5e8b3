"""Joint training of several heads: sampling, the kept epoch, and resuming."""

from __future__ import annotations

import json
import math
import os
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import nlptasks
from nlptasks.cli.main import main
from nlptasks.config import TrainSettings
from nlptasks.errors import DataError, TrainingError, UsageError
from nlptasks.pipeline import pipeline
from nlptasks.storage import checkpoints as checkpoint
from nlptasks.training.callbacks import NoOpCallback
from nlptasks.training.multitask_sampler import Schedule
from nlptasks.training.run_state import TrainState


def settings(backbones: Path, **more: Any) -> TrainSettings:
    options = {"backbone": str(backbones / "bert"), "epochs": 2, "lr": 3e-3, "batch_tokens": 64, "precision": "fp32"}
    return TrainSettings(**{**options, **more})


@pytest.fixture(scope="module")
def data(conll_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Targets for two heads: many rows for NER, few for sentiment."""
    place = tmp_path_factory.mktemp("moods")
    rows = [{"text": f"{name} {verb} .", "label": label} for name in ("Ada", "Bob", "Cleo") for verb, label in
            (("saw", "positive"), ("left", "negative"))]  # fmt: skip
    for part in ("train", "dev"):
        (place / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"ner={conll_data}", f"mood:sentiment={place}"]


def schedule(lengths: Mapping[str, list[int]], **more: Any) -> Schedule:
    return Schedule(lengths, **{"weights": dict.fromkeys(lengths, 1.0), "budget": 10, "size": 1, "seed": 0, **more})


def test_a_single_head_sees_each_row_once_per_epoch() -> None:
    alone = schedule({"a": [1] * 95})
    for epoch in range(3):
        turns = alone.epoch(epoch)
        assert sorted(index for turn in turns for batch in turn.batches for index in batch) == list(range(95))
    assert alone.epoch(0) != alone.epoch(1)


def test_steps_are_in_proportion_to_the_weight_and_the_square_root_of_the_size() -> None:
    two = schedule({"large": [1] * 1600, "small": [1] * 100})  # 160 and 10 steps
    counts = Counter(turn.name for turn in two.epoch(0))
    assert counts.total() == pytest.approx(170, abs=1)
    assert counts["large"] / counts["small"] == pytest.approx(4, rel=0.05)
    weighted = schedule({"large": [1] * 1600, "small": [1] * 100}, weights={"large": 1.0, "small": 4.0})
    even = Counter(turn.name for turn in weighted.epoch(0))
    assert even["large"] / even["small"] == pytest.approx(1, rel=0.05)
    names = [turn.name for turn in two.epoch(0)]
    assert names != sorted(names)  # in random order


def test_rows_that_an_epoch_leaves_out_are_in_the_next() -> None:
    two = schedule({"large": [1] * 1600, "small": [1] * 100})
    counts: Counter[tuple[str, int]] = Counter()
    epochs = 40
    for epoch in range(epochs):
        counts.update((turn.name, index) for turn in two.epoch(epoch) for batch in turn.batches for index in batch)
    for name, size in (("large", 1600), ("small", 100)):
        expected = two.passes[name] * epochs
        seen = [counts[name, index] for index in range(size)]
        assert math.floor(expected) <= min(seen) <= max(seen) <= math.ceil(expected)


def test_every_head_has_a_step_in_every_epoch() -> None:
    weights = {"large": 1.0, "small": 1e-9}
    two = schedule({"large": [1] * 1600, "small": [1] * 100}, weights=weights)
    assert all(Counter(turn.name for turn in two.epoch(epoch))["small"] >= 1 for epoch in range(20))


def test_a_run_is_not_resumed_with_heads_in_another_order(data: list[str], backbones: Path, tmp_path: Path) -> None:
    class Stopping(NoOpCallback):
        def step(self, done: int, total: int, head: str, loss: float) -> None:
            if done == 3:
                os.kill(os.getpid(), signal.SIGINT)

    chosen = settings(backbones)
    with pytest.raises(KeyboardInterrupt):
        nlptasks.train(data, output=tmp_path / "m", settings=chosen, callback=Stopping())
    with pytest.raises(TrainingError, match="was trained with other settings or data: order was"):
        nlptasks.train(data[::-1], output=tmp_path / "m", settings=chosen, resume=True)


def test_all_batches_of_a_step_belong_to_one_head() -> None:
    turns = schedule({"a": [1] * 90, "b": [1] * 35}, size=4).epoch(0)
    assert {len(turn.batches) for turn in turns} >= {4}
    assert all(len(turn.batches) <= 4 for turn in turns)


def test_the_epoch_with_the_best_mean_relative_score_is_kept() -> None:
    state = TrainState(history=[{"dev": {"a": 0.9, "b": 40.0}}, {"dev": {"a": 0.6, "b": 50.0}}])
    assert state.relative(1) == pytest.approx((1 + 0.8) / 2)
    assert state.relative(2) == pytest.approx((0.6 / 0.9 + 1) / 2)
    none = TrainState(history=[{"dev": {"a": 0.0}}, {"dev": {"a": math.nan}}, {"dev": {"a": 0.1}}])
    assert [none.relative(epoch) for epoch in (1, 2, 3)] == [0, 0, 1]


def test_joint_training_learns_all_heads(data: list[str], backbones: Path, tmp_path: Path) -> None:
    class Recorder(NoOpCallback):
        metrics: list[Mapping[str, float]]
        heads: set[str]

        def __init__(self) -> None:
            self.metrics, self.heads = [], set()

        def step(self, done: int, total: int, head: str, loss: float) -> None:
            self.heads.add(head)

        def evaluated(self, epoch: int, metrics: Mapping[str, float], best: bool) -> None:
            self.metrics.append(metrics)

    recorder = Recorder()
    chosen = settings(backbones, epochs=20, patience=20)
    result = nlptasks.train(data, output=tmp_path / "model", settings=chosen, callback=recorder)
    assert {name: own.metrics["dev"][own.main_metric] for name, own in result.heads.items()} == {
        "ner": 1.0,
        "mood": 1.0,
    }
    assert recorder.heads == {"ner", "mood"}
    assert recorder.metrics[0].keys() == {"ner f1", "mood accuracy"}
    logs = json.loads((tmp_path / "model" / "training.json").read_text())
    assert logs["ner"]["together"] == logs["mood"]["together"] == ["ner", "mood"]
    assert logs["ner"]["history"][0].keys() == {"epoch", "loss", "dev"}
    card = (tmp_path / "model" / "README.md").read_text()
    assert "It learned together with `mood`" in card
    kept = logs["ner"]["kept_epoch"]
    assert f"| head | after epoch {kept} | its own best | after epoch |" in card
    assert set(pipeline(model=tmp_path / "model")("Ada left .")) == {"ner", "mood"}


@pytest.mark.parametrize("tune", ["all", "top:1", "head"])
def test_a_resumed_joint_run_has_the_same_result(
    data: list[str], backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tune: str
) -> None:
    class Stopping(NoOpCallback):
        def step(self, done: int, total: int, head: str, loss: float) -> None:
            if done in stops:
                stops.remove(done)
                raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_MAX_SHARE", float("inf"))
    chosen = settings(backbones, tune=tune, checkpoint_seconds=0.0, head_weights={"mood": 2})
    nlptasks.train(data, output=tmp_path / "whole", settings=chosen)
    stops = [2, 7, 9]
    while stops:
        with pytest.raises(KeyboardInterrupt):
            nlptasks.train(data, output=tmp_path / "cut", settings=chosen, resume=True, callback=Stopping())
    nlptasks.train(data, output=tmp_path / "cut", settings=chosen, resume=True)
    names = ["backbone/model.safetensors", "heads/ner.safetensors", "heads/mood.safetensors"]
    one, two = ([(tmp_path / place / name).read_bytes() for name in names] for place in ("whole", "cut"))
    assert one == two
    backbone = (tmp_path / "whole/backbone/model.safetensors").read_bytes()
    again = TrainSettings(**{**vars(chosen), "epochs": 1})
    nlptasks.train(data, output=tmp_path / "short", settings=again)
    # a frozen backbone is the same after one epoch and after two
    assert ((tmp_path / "short/backbone/model.safetensors").read_bytes() == backbone) == (tune != "all")


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(word) for word in words])
    return result.exit_code, result.output + result.stderr


def test_the_command_line_trains_several_heads(data: list[str], backbones: Path, tmp_path: Path) -> None:
    options = ["--backbone", backbones / "bert", "--epochs", 1, "-o", tmp_path / "model"]
    code, said = run("train", *data, *options)
    assert code == 0, said
    for part in ("epoch 1: dev ner f1 ", ", mood accuracy ", "ner on dev:", "mood on dev:", "\n  mood: "):
        assert part in said
    code, said = run(
        "evaluate", tmp_path / "model", data[0], data[1].partition(":")[0] + "=" + data[1].partition("=")[2]
    )
    assert code == 0, said
    assert "ner on dev:" in said
    assert "mood on dev:" in said


def test_columns_are_renamed_for_all_heads_or_for_one(data: list[str], backbones: Path, tmp_path: Path) -> None:
    rows = [{"review": f"Ada {verb}", "stars": label} for verb, label in (("saw", "pos"), ("left", "neg"))] * 4
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = "mood.text=review,mood.label=stars"
    options = ["--backbone", backbones / "bert", "--epochs", 1, "-o", tmp_path / "model", "--columns", columns]
    code, said = run("train", data[0], f"mood:sentiment={tmp_path / 'train.jsonl'}", *options)
    assert code == 0, said
    code, said = run("train", *data, "-o", tmp_path / "x", "--columns", "mod.text=review")
    assert (code, "names the head 'mod'; did you mean 'mood'" in said) == (2, True)


def test_wrong_targets_weights_and_data_are_refused(data: list[str], backbones: Path, tmp_path: Path) -> None:
    def train(*targets: str, **more: Any) -> None:
        nlptasks.train(targets, output=tmp_path / "model", settings=settings(backbones, **more))

    with pytest.raises(UsageError, match="names the head 'ner' twice; give each a name"):
        train(data[0], data[0])
    with pytest.raises(UsageError, match="has no TASK"):
        train()
    with pytest.raises(UsageError, match="head_weights: names the unknown head 'x'"):
        train(*data, head_weights={"x": 2})
    for weight in (0, float("nan"), float("inf"), 1e9):
        with pytest.raises(
            UsageError, match=r"^head_weights: has .* for 'ner'; give a number of at least 0.001, at most 1000"
        ):
            train(*data, head_weights={"ner": weight})
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl: has no examples"):
        train(data[0], f"sentiment={tmp_path / 'empty.jsonl'}")
    assert not (tmp_path / "model").exists()
