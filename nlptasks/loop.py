"""The training loop: epochs of optimizer steps, an evaluation after each, and the best weights kept.

A run that was killed goes on from its last checkpoint as if nothing had happened: where it stands is a `Progress`, every step is
a function of the weights, the optimizer and that, and nothing else is remembered.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from nlptasks.batching import Unit, collate_units, epoch_batches
from nlptasks.checkpoint import Checkpoint, Checkpoints
from nlptasks.config import TrainSettings
from nlptasks.data import CALIBRATION
from nlptasks.dropout import cheap_dropout
from nlptasks.engine import CHUNK_ITEMS, Engine, result_of
from nlptasks.errors import BackendError, TrainingError, listing
from nlptasks.heads.base import Head
from nlptasks.model import Model
from nlptasks.optimization import Batch, LossModule, Optimization, Step
from nlptasks.probabilities import calibration_error
from nlptasks.runtime.pytorch import TorchRuntime
from nlptasks.signals import StopRequest
from nlptasks.tokenizer import Tokenizer
from nlptasks.types import Reading, Reporter, Row

_EVALUATION_TOKENS = 4096
_LOWER = "train again with a lower --lr, or --precision fp32"


@dataclass(frozen=True)
class Lesson:
    """What is learned, and how.

    Attributes:
        name: the head's name.
        model: the backbone and the head.
        rows: rows by part of the data.
        examples: their examples.
        units: the training examples that have tokens, cut into windows.
        tokenizer: the backbone's.
        settings: with everything chosen.
        accelerator: this process among all that train.
        reporter: hears how it goes.
        identity: what the weights are a function of; a checkpoint of another identity is another run's.
    """

    name: str
    model: Model
    rows: Mapping[str, Sequence[Row]]
    examples: Mapping[str, Sequence[Any]]
    units: Sequence[Unit]
    tokenizer: Tokenizer
    settings: TrainSettings
    accelerator: Accelerator
    reporter: Reporter
    identity: Mapping[str, Any]

    @property
    def head(self) -> Head:
        """The head that learns."""
        return self.model.heads[self.name]


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: epochs that are done, evaluation included.
        step: steps done in the epoch after them.
        loss: summed over these steps.
        count: what it is a sum over.
        best: highest main metric on dev so far, None before the first evaluation.
        best_epoch: the epoch it was reached in, from 1.
        history: epoch, mean loss and main metric on dev of each epoch.
        seconds: spent so far.
        learning_seconds: of these, spent on steps.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    count: float = 0.0
    best: float | None = None
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    learning_seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        metrics: metrics of the kept weights by part of the data.
        fitted: what was fitted to the answers of these weights, by its name in the head's config.
        calibration_error: the expected calibration error on each of these parts, ``before`` that and ``after``.
    """

    metrics: Mapping[str, Mapping[str, float]]
    fitted: Mapping[str, Any]
    calibration_error: Mapping[str, Mapping[str, float | None]]


class Loop:
    """One run over a lesson.

    Args:
        lesson: what is learned; its model is changed.
        checkpoints: where they are written; None in all processes but one.
        found: the checkpoint to go on from, None to begin.
    """

    def __init__(self, lesson: Lesson, *, checkpoints: Checkpoints | None, found: Checkpoint | None) -> None:
        self.lesson, self.progress = lesson, Progress()
        self._checkpoints, self._stop = checkpoints, StopRequest(patient=lesson.accelerator.num_processes > 1)
        # What is computed, such as Marian's positions, came frozen, and stays so.
        self._learnable = [weight for weight in lesson.model.parameters() if weight.requires_grad]
        if lesson.settings.tune == "head":
            lesson.model.backbone.requires_grad_(False)
        lesson.model.to(lesson.accelerator.device)
        self._best = _copied(_changing(lesson.model))
        self._lengths = [unit.tokens for unit in lesson.units]
        self._epochs = lesson.settings.epochs or 0
        self._optimization = Optimization(
            LossModule(lesson.model.backbone, lesson.head),
            lesson.settings,
            steps=sum(len(self._steps(epoch)) for epoch in range(self._epochs)),
            load=self._load,
            accelerator=lesson.accelerator,
        )
        if found:
            self._restore(found)
        self._started = time.monotonic() - self.progress.seconds

    def run(self) -> Outcome:
        """Train, keep the best weights, fit temperature and thresholds, and evaluate all that was not learned from.

        Raises:
            TrainingError: the loss is not finite, or nothing can be learned.
            KeyboardInterrupt, SystemExit: a signal asked for it; a checkpoint was written before.
        """
        model = self.lesson.model
        with self._stop:
            with cheap_dropout(model, model.backbone, self.lesson.accelerator.device):
                while self.progress.epoch < self._epochs and not self._is_patience_over():
                    self._learn()
                    self._judge()
            _put(model, self._best)
            self._check_equal_everywhere()
            outcome = self._outcome()
        for weight in self._learnable:
            weight.requires_grad_(True)
        self.progress.seconds = time.monotonic() - self._started
        return outcome

    def _steps(self, epoch: int) -> list[list[list[int]]]:
        """The batches of each step of an epoch, for all processes."""
        settings = self.lesson.settings
        batches = epoch_batches(self._lengths, settings.batch_tokens or 1, seed=settings.seed, epoch=epoch)
        size = settings.accumulate * self.lesson.accelerator.num_processes
        return [batches[start : start + size] for start in range(0, len(batches), size)]

    def _load(self, batch: Batch) -> dict[str, Tensor]:
        arrays = collate_units([self.lesson.units[index] for index in batch], self.lesson.model.backbone.info)  # [B,S]
        device = self.lesson.accelerator.device
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}

    def _learn(self) -> None:
        """The steps of the epoch that are left."""
        progress, optimization = self.progress, self._optimization
        self.lesson.model.train()
        for batches in self._steps(progress.epoch)[progress.step :]:
            begun = time.monotonic()
            pieces = optimization.pieces
            step = optimization.step(batches, stop=self._stop.is_made)
            if not math.isfinite(step.norm):
                raise self._not_finite(step, batches)
            progress.step += 1
            progress.learning_seconds += time.monotonic() - begun
            progress.loss, progress.count = progress.loss + step.loss, progress.count + step.count
            self.lesson.reporter.step(optimization.done, optimization.steps, step.loss / (step.count or 1))
            if optimization.pieces > pieces:
                self.lesson.reporter.note(
                    f"out of memory at step {optimization.done}: batches are cut into {optimization.pieces} pieces from "
                    "here, which changes the last digits; --batch-tokens would make them smaller from the beginning"
                )
            if step.stop:
                self._leave()
            if self._checkpoints and self._checkpoints.due:
                self._save(self._checkpoints)
        if not progress.count:
            raise TrainingError(f"epoch {progress.epoch + 1}", "no row has anything to learn from", "check the labels")

    def _judge(self) -> None:
        """Evaluate on dev, keep the weights if they are the best, and close the epoch."""
        progress, metric = self.progress, self.lesson.head.main_metric
        head = self.lesson.head
        with self._evaluating("dev"):
            results = [result_of(head, reading) for reading in self._read("dev")]
        value, stop = self._agreed(head.metrics(self.lesson.examples["dev"], results)[metric])
        better = progress.best is None or math.isnan(progress.best) or value > progress.best
        progress.epoch += 1
        progress.history.append(
            {"epoch": progress.epoch, "loss": progress.loss / progress.count, f"dev_{metric}": value}
        )
        progress.step, progress.loss, progress.count = 0, 0.0, 0.0
        if better:
            progress.best, progress.best_epoch = value, progress.epoch
            self._best = _copied(_changing(self.lesson.model))
        self.lesson.reporter.evaluated(progress.epoch, metric, value, better)
        if stop:
            self._leave()

    def _is_patience_over(self) -> bool:
        progress, patience = self.progress, self.lesson.settings.patience
        # Some tasks need a while to their first success.
        over = (progress.best or 0) > 0 and progress.epoch - progress.best_epoch >= patience
        if over:
            metric = self.lesson.head.main_metric
            self.lesson.reporter.note(f"stopped: no better {metric} on dev for {patience} epochs")
        return over

    def _outcome(self) -> Outcome:
        """Fit what is fitted to the answers of the kept weights, and measure it all."""
        head, examples = self.lesson.head, self.lesson.examples
        before = copy.copy(head)  # the same weights, and the config as it is now
        if CALIBRATION in examples:
            with self._evaluating(CALIBRATION):
                head.config = head.calibrate(self._read(CALIBRATION))
        with self._evaluating("dev"):
            head.config = head.fit_thresholds(self._read("dev"))
        metrics: dict[str, dict[str, float]] = {}
        errors: dict[str, dict[str, float | None]] = {}
        for part in [part for part in examples if part not in ("train", CALIBRATION)]:
            results: list[Any] = []
            scored: dict[str, list[tuple[float, bool]]] = {"before": [], "after": []}
            with self._evaluating(part):
                for reading in self._read(part):
                    results.append(result_of(head, reading))
                    scored["before"] += before.scored(reading.example, result_of(before, reading))
                    scored["after"] += head.scored(reading.example, results[-1])
            metrics[part] = head.metrics(examples[part], results)
            errors[part] = {when: calibration_error(own) for when, own in scored.items()}
        then, now = asdict(before.config), asdict(head.config)
        return Outcome(metrics, {name: value for name, value in now.items() if value != then[name]}, errors)

    def _read(self, part: str) -> Iterator[Reading]:
        """What the passes over a part of the data give, in order."""
        lesson = self.lesson
        runtime = TorchRuntime(lesson.model.graphs(), lesson.accelerator.device)
        engine = Engine(
            {lesson.name: lesson.head}, lesson.tokenizer, runtime, lesson.model.backbone.info, _EVALUATION_TOKENS
        )
        alone = lesson.accelerator.num_processes == 1  # if not, the others would wait for one that has left
        items = ({lesson.name: example} for example in lesson.examples[part])
        for found in engine.readings(items, first_chunk=CHUNK_ITEMS):
            yield found[lesson.name]
            if self._stop.is_made() and alone:
                self._leave()

    @contextmanager
    def _evaluating(self, part: str) -> Iterator[None]:
        """Turn what is wrong with the answers for a part of the data into an error of the training."""
        try:
            yield
        except BackendError as error:
            raise TrainingError(
                f"epoch {self.progress.epoch + 1}", f"{error.where} {error.problem} on {part}", _LOWER
            ) from error

    def _leave(self) -> NoReturn:
        if self._checkpoints:
            self._save(self._checkpoints)
        self.lesson.accelerator.wait_for_everyone()  # a launcher ends all processes when it sees the first one end
        self.lesson.reporter.note(f"stopped after step {self._optimization.done}; --resume goes on from there")
        self._stop.obey()

    def _save(self, checkpoints: Checkpoints) -> None:
        self.progress.seconds = time.monotonic() - self._started
        tensors, record = self._optimization.state()
        groups = {"weights": _changing(self.lesson.model), "optimizer": tensors, "best": self._best}
        checkpoints.save(
            Checkpoint(
                {name: group for name, group in groups.items() if group},
                {"identity": self.lesson.identity, "progress": asdict(self.progress), "optimization": record},
            )
        )

    def _restore(self, found: Checkpoint) -> None:
        self.progress = Progress(**found.record["progress"])
        _put(self.lesson.model, found.tensors["weights"])
        self._best = dict(found.tensors["best"])
        self._optimization.restore(found.tensors.get("optimizer", {}), found.record["optimization"])
        self.lesson.reporter.note(f"goes on after step {self._optimization.done} of {self._optimization.steps}")

    def _not_finite(self, step: Step, batches: Sequence[Batch]) -> TrainingError:
        rows = self.lesson.rows["train"]
        places = listing(
            (rows[self.lesson.units[number].index].where for batch in batches for number in batch), limit=3
        )
        what = "gradient" if math.isfinite(step.loss) else "loss"
        rate = (self.lesson.settings.lr or 0) * step.rate
        return TrainingError(
            f"step {self._optimization.done}",
            f"the {what} is not finite at a learning rate of {rate:.2g} (rows {places})",
            _LOWER,
        )

    def _agreed(self, value: float) -> tuple[float, bool]:
        """The first process's value, and whether any was asked to stop, in all of them: they must not go different ways."""
        own = torch.tensor([[value, self._stop.is_made()]], dtype=torch.float64, device=self.lesson.accelerator.device)
        everywhere = self.lesson.accelerator.gather(own)  # [processes,2]
        return float(everywhere[0, 0]), bool(everywhere[:, 1].any())

    def _check_equal_everywhere(self) -> None:
        """Refuse weights that differ between the processes: then each has learned from its own batches alone."""
        accelerator = self.lesson.accelerator
        if accelerator.num_processes > 1:
            own = bytes.fromhex(digest_of(_changing(self.lesson.model)))
            digests = accelerator.gather(torch.tensor([list(own)], device=accelerator.device))  # [processes,32]
            if (digests != digests[0]).any():
                raise TrainingError("the processes", "ended with different weights", "report this with your versions")


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of named tensors, in hex."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _changing(model: nn.Module) -> dict[str, Tensor]:
    """What training can change: parameters that learn, and buffers."""
    learning = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    return learning | dict(model.named_buffers())


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}


def _put(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in _changing(model).items():
        tensor.copy_(tensors[name])
