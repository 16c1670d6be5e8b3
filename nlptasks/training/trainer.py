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
from dataclasses import asdict
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from nlptasks.config import owned_layers
from nlptasks.data.datasets import CALIBRATION
from nlptasks.errors import BackendError, TrainingError, listing
from nlptasks.inference.batching import collate_units
from nlptasks.inference.engine import CHUNK_ITEMS, Engine, result_of
from nlptasks.metrics.calibration import calibration_error
from nlptasks.runtimes.pytorch import TorchRuntime
from nlptasks.storage.checkpoints import Checkpoint, Checkpoints
from nlptasks.training.fast_dropout import cheap_dropout
from nlptasks.training.interrupts import StopRequest
from nlptasks.training.multitask_sampler import Schedule, Turn
from nlptasks.training.optimizer import Batch, LossModule, Optimization, Step
from nlptasks.training.run_state import Lesson, Outcome, Progress, Subject
from nlptasks.types import Reading

_EVALUATION_TOKENS = 4096
_LOWER = "train again with a lower --lr, or --precision fp32"


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
        if owned_layers(lesson.settings.tune) is not None:
            lesson.model.backbone.requires_grad_(False)
        lesson.model.to(lesson.accelerator.device)
        self._best = _copied(_changing(lesson.model))
        self._epochs = lesson.settings.epochs or 0
        self.schedule = Schedule(
            {subject.name: [unit.tokens for unit in subject.units] for subject in lesson.subjects},
            weights={subject.name: subject.weight for subject in lesson.subjects},
            budget=lesson.settings.batch_tokens or 1,
            size=lesson.settings.accumulate * lesson.accelerator.num_processes,
            seed=lesson.settings.seed,
        )
        self._optimization = Optimization(
            LossModule(lesson.model),
            lesson.settings,
            rates={subject.name: subject.rate for subject in lesson.subjects},
            steps=sum(len(self.schedule.epoch(epoch)) for epoch in range(self._epochs)),
            load=self._load,
            accelerator=lesson.accelerator,
        )
        if found:
            self._restore(found)
        self._started = time.monotonic() - self.progress.seconds

    def run(self) -> dict[str, Outcome]:
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
            outcomes = {subject.name: self._outcome(subject) for subject in self.lesson.subjects}
        for weight in self._learnable:
            weight.requires_grad_(True)
        self.progress.seconds = time.monotonic() - self._started
        return outcomes

    def _load(self, name: str, batch: Batch) -> dict[str, Tensor]:
        units = self.lesson.of(name).units
        arrays = collate_units([units[index] for index in batch], self.lesson.model.backbone.info)  # [B,S]
        device = self.lesson.accelerator.device
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}

    def _learn(self) -> None:
        """The steps of the epoch that are left."""
        progress, optimization = self.progress, self._optimization
        self.lesson.model.train()
        turns = self.schedule.epoch(progress.epoch)
        for turn in turns[progress.step :]:
            begun = time.monotonic()
            pieces = optimization.pieces
            step = optimization.step(turn, stop=self._stop.is_made)
            if not math.isfinite(step.norm):
                raise self._not_finite(step, turn)
            progress.step += 1
            progress.learning_seconds += time.monotonic() - begun
            for sums, value in ((progress.loss, step.loss), (progress.count, step.count)):
                sums[turn.name] = sums.get(turn.name, 0.0) + value
            self.lesson.reporter.step(optimization.done, optimization.steps, turn.name, step.loss / (step.count or 1))
            if optimization.pieces > pieces:
                self.lesson.reporter.note(
                    f"out of memory at step {optimization.done}: batches are cut into {optimization.pieces} pieces from "
                    "here, which changes the last digits; --batch-tokens would make them smaller from the beginning"
                )
            if step.stop:
                self._leave()
            if self._checkpoints and self._checkpoints.due:
                self._save(self._checkpoints)
        for name in dict.fromkeys(turn.name for turn in turns):
            if not progress.count[name]:
                where = f"epoch {progress.epoch + 1}, {name}"
                raise TrainingError(where, "no row has anything to learn from", "check the labels")

    def _judge(self) -> None:
        """Evaluate on dev, keep the weights if they are the best, and close the epoch."""
        progress, found = self.progress, {}
        for subject in self.lesson.subjects:
            with self._evaluating(subject, "dev"):
                results = [result_of(subject.head, reading) for reading in self._read(subject, "dev")]
            metrics = subject.head.metrics(subject.examples["dev"], results)
            found[subject.name] = metrics[subject.head.main_metric]
        values, stop = self._agreed(list(found.values()))
        dev = dict(zip(found, values, strict=True))
        loss = {name: progress.loss[name] / count for name, count in progress.count.items()}
        progress.epoch += 1
        progress.history.append({"epoch": progress.epoch, "loss": loss, "dev": dev})
        progress.step, progress.loss, progress.count = 0, {}, {}
        better = not progress.best_epoch or progress.relative(progress.epoch) > progress.relative(progress.best_epoch)
        if better:
            progress.best_epoch = progress.epoch
            self._best = _copied(_changing(self.lesson.model))
        self.lesson.reporter.evaluated(progress.epoch, self.lesson.labelled(dev), better)
        if stop:
            self._leave()

    def _is_patience_over(self) -> bool:
        progress, patience = self.progress, self.lesson.settings.patience
        # Some tasks need a while to their first success.
        begun = all(progress.best(subject.name) > 0 for subject in self.lesson.subjects)
        over = begun and progress.epoch - progress.best_epoch >= patience
        if over:
            metrics = " and ".join(self.lesson.labelled(dict.fromkeys(progress.history[-1]["dev"], 0.0)))
            self.lesson.reporter.note(f"stopped: no better {metrics} on dev for {patience} epochs")
        return over

    def _outcome(self, subject: Subject) -> Outcome:
        """Fit what is fitted to the answers of the kept weights, and measure it all."""
        head, examples = subject.head, subject.examples
        before = copy.copy(head)  # the same weights, and the config as it is now
        if CALIBRATION in examples:
            with self._evaluating(subject, CALIBRATION):
                head.config = head.calibrate(self._read(subject, CALIBRATION))
        with self._evaluating(subject, "dev"):
            head.config = head.fit_thresholds(self._read(subject, "dev"))
        metrics: dict[str, dict[str, float]] = {}
        errors: dict[str, dict[str, float | None]] = {}
        for part in [part for part in examples if part not in ("train", CALIBRATION)]:
            results: list[Any] = []
            scored: dict[str, list[tuple[float, bool]]] = {"before": [], "after": []}
            with self._evaluating(subject, part):
                for reading in self._read(subject, part):
                    results.append(result_of(head, reading))
                    scored["before"] += before.scored(reading.example, result_of(before, reading))
                    scored["after"] += head.scored(reading.example, results[-1])
            metrics[part] = head.metrics(examples[part], results)
            errors[part] = {when: calibration_error(own) for when, own in scored.items()}
        then, now = asdict(before.config), asdict(head.config)
        return Outcome(metrics, {name: value for name, value in now.items() if value != then[name]}, errors)

    def _read(self, subject: Subject, part: str) -> Iterator[Reading]:
        """What the passes over a part of the data give, in order."""
        lesson, name = self.lesson, subject.name
        runtime = TorchRuntime(lesson.model.graphs(), lesson.accelerator.device)
        info = lesson.model.backbone.info
        engine = Engine({name: subject.head}, lesson.tokenizer, runtime, info, _EVALUATION_TOKENS)
        alone = lesson.accelerator.num_processes == 1  # if not, the others would wait for one that has left
        for found in engine.readings(({name: example} for example in subject.examples[part]), first_chunk=CHUNK_ITEMS):
            yield found[name]
            if self._stop.is_made() and alone:
                self._leave()

    @contextmanager
    def _evaluating(self, subject: Subject, part: str) -> Iterator[None]:
        """Turn what is wrong with the answers for a part of the data into an error of the training."""
        try:
            yield
        except BackendError as error:
            raise TrainingError(
                f"epoch {self.progress.epoch + 1}, {subject.name}", f"{error.where} {error.problem} on {part}", _LOWER
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

    def _not_finite(self, step: Step, turn: Turn) -> TrainingError:
        subject = self.lesson.of(turn.name)
        rows = subject.rows["train"]
        places = listing(
            (rows[subject.units[number].index].where for batch in turn.batches for number in batch), limit=3
        )
        what = "gradient" if math.isfinite(step.loss) else "loss"
        rate = (self.lesson.settings.lr or 0) * step.rate
        return TrainingError(
            f"step {self._optimization.done}",
            f"the {what} is not finite at a learning rate of {rate:.2g} (rows {places})",
            _LOWER,
        )

    def _agreed(self, values: Sequence[float]) -> tuple[list[float], bool]:
        """The first process's values, and whether any was asked to stop, in all of them: they must not go different ways."""
        device = self.lesson.accelerator.device
        own = torch.tensor([[*values, self._stop.is_made()]], dtype=torch.float64, device=device)
        everywhere = self.lesson.accelerator.gather(own)  # [processes,heads+1]
        return everywhere[0, :-1].tolist(), bool(everywhere[:, -1].any())

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
