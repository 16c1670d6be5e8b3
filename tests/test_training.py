"""Training: it learns, depends only on its seed, stops early, keeps the best weights, and leaves nothing unfinished."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

import nlptasks
from nlptasks.backbones.info import BackboneInfo
from nlptasks.config import TrainSettings
from nlptasks.errors import DataError, TrainingError, UsageError
from nlptasks.inference import batching
from nlptasks.metrics.base import Metrics
from nlptasks.models.model import Model
from nlptasks.training import optimizer as optimization
from nlptasks.training.auto_settings import chosen
from nlptasks.training.callbacks import NoOpCallback


def fast(backbones: Path, **more: object) -> TrainSettings:
    options = {"backbone": str(backbones / "bert"), "epochs": 2, "lr": 3e-3, "batch_tokens": 64, "precision": "fp32"}
    return TrainSettings(**{**options, **more})  # type: ignore[arg-type]


def weights_of(folder: Path) -> bytes:
    return (folder / "backbone/model.safetensors").read_bytes() + (folder / "heads/ner.safetensors").read_bytes()


def test_a_model_learns(trained: Path) -> None:
    log = tiny.log_of(trained)
    assert log["metrics"]["dev"]["f1"] == 1.0
    assert log["history"][-1]["loss"]["ner"] < log["history"][0]["loss"]["ner"] / 3
    assert log["rows"] == {"train": 36, "dev": 36}
    assert all(value is not None for value in log["settings"].values())
    card = (trained / "README.md").read_text()
    assert "`LOC`, `PER`" in card
    assert "| dev | all | 1.0000 |" in card


def test_equal_seeds_give_equal_weights_and_the_random_state_of_the_caller_is_unchanged(
    backbones: Path, conll_data: Path, tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        nlptasks.train(f"ner={conll_data}", output=tmp_path / name, settings=fast(backbones, seed=seed))
    assert torch.equal(torch.get_rng_state(), state)
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")
    assert weights_of(tmp_path / "a") != weights_of(tmp_path / "c")


def test_the_best_epoch_is_kept_and_training_stops_early(backbones: Path, conll_data: Path, tmp_path: Path) -> None:
    class Recorder(NoOpCallback):
        values: list[float]
        notes: list[str]

        def __init__(self) -> None:
            self.values, self.notes = [], []

        def evaluated(self, epoch: int, metrics: Mapping[str, float], best: bool) -> None:
            self.values.append(metrics["f1"])

        def note(self, message: str) -> None:
            self.notes.append(message)

    recorder = Recorder()
    settings = fast(backbones, epochs=40, patience=2, lr=3e-3)
    result = nlptasks.train(f"ner={conll_data}", output=tmp_path / "m", settings=settings, callback=recorder)
    assert len(recorder.values) < 40
    assert result.heads["ner"].metrics["dev"]["f1"] == max(recorder.values)
    assert "no better f1 on dev for 2 epochs" in recorder.notes[-1]
    assert recorder.values[-1] <= max(recorder.values[:-2])


def test_the_backbone_can_be_frozen(backbones: Path, conll_data: Path, tmp_path: Path) -> None:
    nlptasks.train(f"ner={conll_data}", output=tmp_path / "a", settings=fast(backbones, tune="head"))
    nlptasks.train(f"ner={conll_data}", output=tmp_path / "b", settings=fast(backbones, tune="head", lr=1e-2))
    one, two = ((tmp_path / name / "backbone/model.safetensors").read_bytes() for name in "ab")
    assert one == two
    assert weights_of(tmp_path / "a") != weights_of(tmp_path / "b")


def test_training_in_bf16_learns(backbones: Path, conll_data: Path, tmp_path: Path) -> None:
    settings = fast(backbones, epochs=12, precision="bf16")
    assert (
        nlptasks.train(f"ner={conll_data}", output=tmp_path / "m", settings=settings).heads["ner"].metrics["dev"]["f1"]
        > 0.9
    )
    assert nlptasks.Model.load(tmp_path / "m").backbone.parameters().__next__().dtype == torch.float32


def test_a_loss_that_is_not_finite_stops_training(backbones: Path, conll_data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step \d+: the loss is not finite at a learning rate of .*train\.conll:"):
        nlptasks.train(f"ner={conll_data}", output=tmp_path / "m", settings=fast(backbones, lr=1e30, epochs=5))
    assert list(tmp_path.iterdir()) == []


def test_a_used_output_folder_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        nlptasks.train("ner=/no/such/data", output=tmp_path)


def test_an_unknown_tag_in_dev_is_reported_with_its_line(backbones: Path, tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_text("Ada\tB-PER\nleft\tO\n\nBob\tB-PER\n")
    (tmp_path / "dev.conll").write_text("Ada\tB-PER\n\nRome\tB-LOC\n")
    with pytest.raises(DataError, match=r"dev\.conll:3: label 'LOC' is not in the training data"):
        nlptasks.train(f"ner={tmp_path}", output=tmp_path / "m", settings=fast(backbones))
    assert not (tmp_path / "m").exists()


def test_the_error_for_a_loss_that_is_not_finite_names_the_rows_of_the_batch(backbones: Path, tmp_path: Path) -> None:
    empty, full = '{"tokens": ["\\u0001"], "tags": ["B-A"]}\n', '{"tokens": ["a"], "tags": ["B-A"]}\n'
    (tmp_path / "train.jsonl").write_text(empty * 50 + full * 99)
    (tmp_path / "dev.jsonl").write_text(full)
    with pytest.raises(TrainingError, match=r"train\.jsonl:(5[1-9]|[6-9]\d|1[0-4]\d),"):
        nlptasks.train(
            f"ner={tmp_path}", output=tmp_path / "m", settings=fast(backbones, lr=1e30, epochs=9, patience=9)
        )


def test_training_rows_without_any_token_are_refused(backbones: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"tokens": ["\\u0001"], "tags": ["B-A"]}\n' * 2)
    (tmp_path / "dev.jsonl").write_text('{"tokens": ["a"], "tags": ["B-A"]}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:1: and all later rows are empty"):
        nlptasks.train(f"ner={tmp_path}", output=tmp_path / "m", settings=fast(backbones))


def test_defaults_depend_on_backbone_and_data() -> None:
    small = chosen(TrainSettings(), parameters=10_000_000, tokens=[20] * 3000)
    large = chosen(TrainSettings(), parameters=300_000_000, tokens=[20] * 100_000)
    assert small.lr == pytest.approx(3e-4)
    assert large.lr == pytest.approx(2e-5, rel=0.2)
    less = chosen(TrainSettings(), parameters=10_000_000, tokens=[20] * 3000, lr_scale=0.5)
    assert less.lr == pytest.approx(1.5e-4)
    assert (small.batch_tokens, large.batch_tokens) == (300, 2048)
    assert (small.epochs, large.epochs) == (3, 3)
    assert chosen(TrainSettings(), parameters=10_000_000, tokens=[20] * 100).epochs == 20
    given = TrainSettings(epochs=1, lr=1e-3, head_lr=2e-3, batch_tokens=99, precision="fp32")
    assert chosen(given, parameters=10_000_000, tokens=[20] * 100) == given
    shared = chosen(TrainSettings(accumulate=2), parameters=10_000_000, tokens=[20] * 30_000, processes=2)
    assert (shared.batch_tokens, shared.epochs) == (750, 3)


@pytest.fixture
def still(backbones: Path, tmp_path: Path) -> Path:
    """A backbone without dropout: random draws would depend on how batches are split."""
    place = tmp_path / "still"
    shutil.copytree(backbones / "bert", place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(
        json.dumps(config | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    )
    return place


def difference(one: Path, two: Path) -> float:
    """Return the largest difference of any weight."""
    return max(
        float((load_file(one / name)[key] - value).abs().max())
        for name in ("backbone/model.safetensors", "heads/ner.safetensors")
        for key, value in load_file(two / name).items()
    )


def test_batches_are_split_until_they_fit_in_memory(
    still: Path, conll_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = fast(still, backbone=str(still), epochs=1, lr=1e-3)
    nlptasks.train(f"ner={conll_data}", output=tmp_path / "whole", settings=options)
    forward, notes = optimization.LossModule.forward, []

    def small_memory(self: optimization.LossModule, name: str, batch: dict[str, torch.Tensor]) -> object:
        if len(batch["ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, name, batch)

    class Recorder(NoOpCallback):
        def note(self, message: str) -> None:
            notes.append(message)

    monkeypatch.setattr(optimization.LossModule, "forward", small_memory)
    nlptasks.train(f"ner={conll_data}", output=tmp_path / "cut", settings=options, callback=Recorder())
    assert any("batches are split into" in note and "changes the last digits" in note for note in notes)
    assert difference(tmp_path / "whole", tmp_path / "cut") < 1e-5

    def no_memory(self: optimization.LossModule, name: str, batch: dict[str, torch.Tensor]) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(optimization.LossModule, "forward", no_memory)
    with pytest.raises(TrainingError, match=r"step 1: a single example does not fit in memory; use shorter texts"):
        nlptasks.train(f"ner={conll_data}", output=tmp_path / "none", settings=options)


def test_accumulated_batches_equal_one_large_batch(still: Path, tmp_path: Path) -> None:
    rows = '{"tokens": ["a", "b"], "tags": ["B-A", "O"]}\n{"tokens": ["c", "d"], "tags": ["O", "B-A"]}\n'
    (tmp_path / "train.jsonl").write_text(rows * 8)
    options = {"backbone": str(still), "epochs": 3, "lr": 1e-3}
    # Sixteen rows of four tokens: a batch with all of them, or four that make one step.
    for name, more in (("one", {"batch_tokens": 64}), ("four", {"batch_tokens": 16, "accumulate": 4})):
        nlptasks.train(f"ner={tmp_path}", output=tmp_path / name, settings=fast(still, **{**options, **more}))
    logs = [tiny.log_of(tmp_path / name) for name in ("one", "four")]
    assert logs[0]["history"][0]["loss"]["ner"] == pytest.approx(logs[1]["history"][0]["loss"]["ner"], rel=1e-5)
    assert difference(tmp_path / "one", tmp_path / "four") < 1e-5


def test_layers_near_the_head_have_higher_learning_rates(backbones: Path) -> None:
    from nlptasks.backbones.pretrained import load_backbone

    for name in ("bert", "t5", "modernbert"):
        backbone = load_backbone(str(backbones / name))
        above = optimization.layers_above(backbone.base_model)
        layers = max(above.values())
        assert layers == backbone.layers
        assert set(above.values()) == set(range(layers + 1))
        embedding = next(name for name in above if "embed" in name)
        assert above[embedding] == layers
    settings = fast(backbones, head_lr=1e-2, layer_decay=0.5)
    backbone = load_backbone(str(backbones / "bert"))
    networks: Any = {"a": torch.nn.Linear(2, 2)}
    model = Model(backbone, {}, networks, {}, {"a": backbone.branch(2)})
    assert _rates(model, settings, of=backbone) == {3e-3 * 0.5**depth for depth in range(3)}
    assert _rates(model, settings, of=model.branches["a"]) == {3e-3, 3e-3 * 0.5}
    assert _rates(model, settings, of=model.networks["a"]) == {1e-2}


def _rates(model: Model, settings: TrainSettings, *, of: torch.nn.Module) -> set[float]:
    own = {id(weight) for weight in of.parameters()}
    groups = optimization._groups(model, settings, {"a": 1e-2})
    return {group["lr"] for group in groups for weight in group["params"] if id(weight) in own}


def test_training_rows_without_any_target_are_refused(
    backbones: Path, conll_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_labels(instances: Sequence[batching.Instance], info: BackboneInfo) -> dict[str, Any]:
        arrays = batching.collate_instances(instances, info)
        return {**arrays, "labels": np.full_like(arrays["labels"], -100)}

    monkeypatch.setattr("nlptasks.training.trainer.collate_instances", without_labels)
    with pytest.raises(TrainingError, match="epoch 1, ner: no row has anything to learn from"):
        nlptasks.train(f"ner={conll_data}", output=tmp_path / "m", settings=fast(backbones))


def test_a_gradient_that_is_not_finite_stops_training(
    backbones: Path, conll_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimization, "get_total_norm", lambda gradients: torch.tensor(float("inf")))
    with pytest.raises(
        TrainingError, match=r"step 1: the gradient is not finite at a learning rate of .*train\.conll:"
    ):
        nlptasks.train(f"ner={conll_data}", output=tmp_path / "m", settings=fast(backbones))


def test_a_launcher_that_started_only_one_process_is_reported(
    backbones: Path, conll_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MASTER_PORT", "29500")
    nlptasks.train(f"ner={conll_data}", output=tmp_path / "m", settings=fast(backbones, epochs=1))
    assert "started only one process" in caplog.text


def test_nan_metrics_are_never_the_best(
    backbones: Path, conll_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([float("nan"), 0.5, float("nan"), 0.5])  # of three epochs, and of the kept weights
    monkeypatch.setattr("nlptasks.training.run.try_out", lambda *_, **__: None)  # it computes metrics, too
    monkeypatch.setattr("nlptasks.heads.ner.NerHead.metrics", lambda *_: Metrics({"f1": next(values)}, main="f1"))
    result = nlptasks.train(f"ner={conll_data}", output=tmp_path / "m", settings=fast(backbones, epochs=3))
    assert result.heads["ner"].metrics == {"dev": {"f1": 0.5}}
    assert tiny.log_of(tmp_path / "m")["history"][1]["dev"] == {"ner": 0.5}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps(backbones: Path, conll_data: Path, tmp_path: Path) -> None:
    pages: dict[int, int] = {}

    class Scale(NoOpCallback):
        def step(self, done: int, total: int, head: str, loss: float) -> None:
            if done in (500, 1000, 1500):
                pages[done] = int(Path("/proc/self/statm").read_text().split()[1])

    options = fast(backbones, epochs=170, patience=170, lr=1e-5)
    nlptasks.train(f"ner={conll_data}", output=tmp_path / "m", settings=options, callback=Scale())
    # A leak grows in both intervals; memory that an allocator reserves once, in only one.
    growth = min(pages[1000] - pages[500], pages[1500] - pages[1000])
    assert growth * os.sysconf("SC_PAGE_SIZE") < 2**19


def test_out_of_memory_in_the_optimizer_is_an_error_with_a_fix(
    backbones: Path, conll_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(optimization.Optimization, "_update", no_memory)
    with pytest.raises(TrainingError, match=r"after step 0: out of memory .*use a smaller `batch_tokens`"):
        nlptasks.train(f"ner={conll_data}", output=tmp_path / "m", settings=fast(backbones))


def test_fp16_needs_a_gpu(backbones: Path, conll_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="precision: is fp16, which needs a GPU; use bf16, fp32 or auto"):
        nlptasks.train(
            f"ner={conll_data}", output=tmp_path / "m", settings=fast(backbones, precision="fp16", device="cpu")
        )


def test_the_best_epoch_is_kept_if_all_metrics_are_negative(
    backbones: Path, conll_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Recorder(NoOpCallback):
        better: list[bool]

        def evaluated(self, epoch: int, metrics: Mapping[str, float], best: bool) -> None:
            self.better.append(best)

    values = iter([-0.5, -0.2, -0.4, -0.2])  # of three epochs, and of the kept weights
    monkeypatch.setattr("nlptasks.training.run.try_out", lambda *_, **__: None)  # it computes metrics, too
    monkeypatch.setattr("nlptasks.heads.ner.NerHead.metrics", lambda *_: Metrics({"f1": next(values)}, main="f1"))
    recorder = Recorder()
    recorder.better = []
    nlptasks.train(f"ner={conll_data}", output=tmp_path / "m", settings=fast(backbones, epochs=3), callback=recorder)
    assert recorder.better == [True, True, False]
