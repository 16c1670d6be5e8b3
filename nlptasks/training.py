"""Training: one loop, over `accelerate`, for whatever the head is.

Batches have equal lengths and a budget of tokens; the learning rate rises and falls linearly; the head learns faster than the
backbone; after each epoch dev is evaluated through the same engine that predicts, and the weights of the best epoch are kept.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from nlptasks import __version__
from nlptasks.backbone import Backbone
from nlptasks.batching import collate_units, epoch_batches, make_units
from nlptasks.card import model_card
from nlptasks.config import Target, TrainSettings, parse_target
from nlptasks.data import DataSet, load_data, with_dev
from nlptasks.engine import Engine
from nlptasks.errors import BackendError, DataError, TrainingError
from nlptasks.files import check_columns
from nlptasks.heads.base import Head
from nlptasks.model import HeadRecord, Model, check_output
from nlptasks.pretrained import load_backbone
from nlptasks.registry import head_class
from nlptasks.runtime.pytorch import TorchRuntime, torch_device
from nlptasks.types import ENCODE, Reporter, Row, Silent

_EVALUATION_TOKENS = 4096


@dataclass(frozen=True)
class TrainResult:
    """What a training run made.

    Attributes:
        folder: the model's folder.
        head: the head's name.
        metrics: metrics of the kept weights, by part of the data.
        unseen: rows that it was not trained on, of test, else of dev.
        seconds: of the whole training, evaluation included.
    """

    folder: Path
    head: str
    metrics: Mapping[str, Mapping[str, float]]
    unseen: Sequence[Row]
    seconds: float


class _LossModule(nn.Module):
    """Backbone and head as one module whose `forward` gives the loss: what data-parallel wrappers can wrap."""

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.head.loss(self.backbone(batch), batch)


def train(
    target: str | Target,
    *,
    output: str | Path,
    settings: TrainSettings | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Fine-tune a new head on a backbone and write the model.

    Args:
        target: what to train on what, as on the command line (``ner=DATA``) or as an object.
        output: the new model's folder.
        settings: how; None for the defaults.
        overwrite: whether `output` may be replaced.
        reporter: hears how it goes.

    Raises:
        UsageError: the output folder is not empty, or an option is wrong.
        DataError: the data cannot be used.
        ModelError: the backbone cannot be used.
        TrainingError: the loss is not finite.
    """
    target = parse_target(target) if isinstance(target, str) else target
    settings = settings or TrainSettings()
    cls = head_class(target.task)
    check_output(Path(output), overwrite=overwrite)
    check_columns(target.columns, cls.fields)
    place = Path(target.data) if target.data else cls.sample_folder()
    data = with_dev(load_data(place, cls.formats, target.columns), settings.seed)
    config = cls.configure(data.parts["train"], target.options)
    device = torch_device(settings.device)
    with torch.random.fork_rng(devices=["cuda"] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        backbone = load_backbone(settings.backbone)
        model = Model(backbone, {target.name: cls(config, backbone=backbone.info)}, {})
        run = _Training(target, settings, data, model, device)
        metrics = run.fit(reporter or Silent())
    model.records[target.name] = HeadRecord(target.task, asdict(config), metrics)
    log = run.log(metrics)
    extra = {"training.json": json.dumps(log, indent=1, ensure_ascii=False) + "\n", "README.md": model_card(model, log)}
    folder = model.eval().cpu().save(output, overwrite=overwrite, extra=extra)
    unseen = data.parts.get("test") or data.parts["dev"]
    return TrainResult(folder, target.name, metrics, unseen, log["seconds"])


class _Optimization:
    """What changes weights: one step for one batch.

    Args:
        module: backbone and head; it is moved to the device.
        settings: with everything chosen.
        steps: steps in all.
        device: where to train.
    """

    def __init__(self, module: _LossModule, settings: TrainSettings, steps: int, device: torch.device) -> None:
        # accelerate keeps its state for the whole process: without this a second run would get the first one's precision.
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=_mixed(settings.precision))
        optimizer = torch.optim.AdamW(_groups(module.to(device), settings), fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _ramp(steps, settings.warmup))
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)
        self.clip, self.steps = settings.clip, steps

    @property
    def done(self) -> int:
        """Steps done."""
        return int(self.schedule.last_epoch)

    def step(self, batch: Mapping[str, Tensor]) -> tuple[float, float]:
        """One step: the loss as a sum, and the count that it is a sum over. Without a finite loss nothing is changed."""
        loss, count = self.module(batch)
        total, terms = float(loss.detach()), float(count)
        if math.isfinite(total):
            self.accelerator.backward(loss / count.clamp(min=1))
            self.accelerator.clip_grad_norm_(self.module.parameters(), self.clip)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        return total, terms


class _Training:
    """One run of the loop: what is learned from, and how it goes."""

    def __init__(
        self, target: Target, settings: TrainSettings, data: DataSet, model: Model, device: torch.device
    ) -> None:
        self.target, self.data, self.model, self.device = target, data, model, device
        self.head = model.heads[target.name]
        self.examples = {part: self.head.read_gold(rows) for part, rows in data.parts.items()}
        self.tokenizer = model.backbone.tokenizer()
        self.units = make_units(self.head, self.tokenizer, self.examples["train"])
        if not self.units:
            raise DataError(data.parts["train"][0].where, "and all rows after it are empty", "give rows with text")
        self.settings = chosen(settings, model.backbone.parameter_count(), [unit.tokens for unit in self.units], device)
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0

    def fit(self, reporter: Reporter) -> dict[str, dict[str, float]]:
        """Train, keep the best weights, and give the metrics of dev and test."""
        settings, started, metric = self.settings, time.perf_counter(), self.head.main_metric
        _announce(reporter, self.target, self.data, settings)
        self.model.backbone.requires_grad_(settings.tune == "all")
        plan = [self._batches(epoch) for epoch in range(_known(settings.epochs))]
        module = _LossModule(self.model.backbone, self.head)
        optimization = _Optimization(module, settings, sum(map(len, plan)), self.device)
        best, best_epoch, kept = -math.inf, 0, _weights(self.model)
        for epoch, batches in enumerate(plan, start=1):
            begun = time.perf_counter()
            loss = self._epoch(optimization, batches, reporter)
            rate = round(len(self.units) / (time.perf_counter() - begun), 2)
            value = self._evaluate("dev")[metric]
            self.history.append({"epoch": epoch, "loss": loss, "rows_per_second": rate, f"dev_{metric}": value})
            reporter.evaluated(epoch, metric, value, value > best)
            if value > best:
                best, best_epoch, kept = value, epoch, _weights(self.model)
            elif best > 0 and epoch - best_epoch >= settings.patience:  # some tasks need a while to their first success
                reporter.note(f"stopped: no better {metric} on dev for {settings.patience} epochs")
                break
        self.model.load_state_dict(kept)
        self.model.requires_grad_(True)
        found = {part: self._evaluate(part) for part in self.examples if part != "train"}
        self.seconds = time.perf_counter() - started
        return found

    def log(self, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
        """What ``training.json`` says."""
        return {
            "nlptasks": __version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "head": self.target.name,
            "task": self.target.task,
            "settings": asdict(self.settings),
            "data": {"files": self.data.files, "split": self.data.split, "columns": dict(self.target.columns)},
            "rows": {part: len(rows) for part, rows in self.examples.items()},
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "versions": _versions(),
            "seconds": round(self.seconds, 1),
            "history": self.history,
            "metrics": metrics,
        }

    def _batches(self, epoch: int) -> list[list[int]]:
        lengths = [unit.tokens for unit in self.units]
        return epoch_batches(lengths, _known(self.settings.batch_tokens), seed=self.settings.seed, epoch=epoch)

    def _epoch(self, optimization: _Optimization, batches: Sequence[Sequence[int]], reporter: Reporter) -> float:
        """One pass over the batches: its mean loss."""
        self.model.train()
        summed = counted = 0.0
        for batch in batches:
            arrays = collate_units([self.units[index] for index in batch], self.model.backbone.info)  # [B,S]
            tensors = {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}
            total, count = optimization.step(tensors)
            if not math.isfinite(total):
                raise self._not_finite(optimization, batch)
            summed, counted = summed + total, counted + count
            reporter.step(optimization.done, optimization.steps, total / max(count, 1))
        return summed / max(counted, 1)

    def _not_finite(self, optimization: _Optimization, batch: Sequence[int]) -> TrainingError:
        rows = ", ".join(self.data.parts["train"][self.units[number].index].where for number in batch[:3])
        rate = optimization.schedule.get_last_lr()[0]
        return TrainingError(
            f"step {optimization.done + 1}",
            f"the loss is not finite at a learning rate of {rate:.2g} (rows {rows}...)",
            "take a lower --lr, or --precision fp32; nothing was written",
        )

    def _evaluate(self, part: str) -> dict[str, float]:
        name, info = self.target.name, self.model.backbone.info
        runtime = TorchRuntime({ENCODE: self.model}, self.device)
        engine = Engine({name: self.head}, self.tokenizer, runtime, info, _EVALUATION_TOKENS)
        try:
            results = [found[name] for found in engine.stream({name: example} for example in self.examples[part])]
        except BackendError as error:
            raise TrainingError(
                f"after epoch {len(self.history) + 1}",
                f"{error.where} {error.problem} on {part}",
                "take a lower --lr, or --precision fp32; nothing was written",
            ) from error
        return self.head.metrics(self.examples[part], results)


def chosen(settings: TrainSettings, parameters: int, tokens: Sequence[int], device: torch.device) -> TrainSettings:
    """The settings with everything that was left open chosen from the backbone and the data.

    Args:
        settings: as given.
        parameters: weights in the backbone's layers, embeddings left out.
        tokens: tokens of each training example.
        device: where training runs.
    """
    # 3e-4 is measured for 10 million weights (MiniLM); the power leads to the usual 5e-5 for 85 million (BERT base) and
    # 2e-5 for 300 million (BERT large).
    lr = settings.lr or min(1e-3, 3e-4 * (1e7 / max(parameters, 1)) ** 0.8)
    # About 200 steps an epoch learn well from few rows; beyond 2,048 tokens the speed no longer grows.
    budget = settings.batch_tokens or min(2048, max(256, sum(tokens) // 200))
    steps = max(1, sum(tokens) // budget)
    return replace(
        settings,
        lr=lr,
        head_lr=settings.head_lr or 10 * lr,
        batch_tokens=budget,
        epochs=settings.epochs or min(20, max(3, math.ceil(600 / steps))),
        precision=chosen_precision(device) if settings.precision == "auto" else settings.precision,
    )


def chosen_precision(device: torch.device) -> str:
    """The precision that ``auto`` takes: bf16 where the hardware has it."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if known.get("avx512_bf16") or known.get("amx_bf16") else "fp32"


def _mixed(precision: str) -> str:
    return "no" if precision == "fp32" else precision


def _groups(module: _LossModule, settings: TrainSettings) -> list[dict[str, Any]]:
    """Parameters by learning rate and decay; biases and norms do not decay."""
    groups = []
    for part, rate in ((module.backbone, settings.lr), (module.head, settings.head_lr)):
        weights = [weight for weight in part.parameters() if weight.requires_grad]
        for decay, chosen_ones in (
            (settings.weight_decay, [weight for weight in weights if weight.ndim > 1]),
            (0.0, [weight for weight in weights if weight.ndim <= 1]),
        ):
            if chosen_ones:
                groups.append({"params": chosen_ones, "lr": rate, "weight_decay": decay})
    return groups


def _ramp(total: int, warmup: float) -> Any:
    """The learning rate's factor at each step: up linearly, then down to zero."""
    rise = max(1, round(warmup * total))

    def factor(step: int) -> float:
        return min((step + 1) / rise, max(0.0, (total - step) / max(1, total - rise)))

    return factor


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in module.state_dict().items()}


def _known(value: int | None) -> int:
    assert value is not None, "chosen() fills it in"
    return value


def _announce(reporter: Reporter, target: Target, data: DataSet, settings: TrainSettings) -> None:
    sizes = ", ".join(f"{part} {len(rows)}" for part, rows in data.parts.items())
    reporter.note(f"{target.name}: rows {sizes}" + (f" ({data.split})" if data.split else ""))
    reporter.note(
        f"backbone {settings.backbone}, {settings.epochs} epochs at most, {settings.batch_tokens} tokens a batch, "
        f"learning rate {settings.lr:.2g} (head {settings.head_lr:.2g}), {settings.precision}, seed {settings.seed}"
    )


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "accelerate", "tokenizers")}
