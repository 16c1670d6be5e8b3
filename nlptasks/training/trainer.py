"""The training loop: epochs of optimizer steps, an evaluation after each, and the best weights kept.

A killed run resumes from its last checkpoint with the same result: every step is a function of the weights, the optimizer
and the `TrainState` alone.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from nlptasks.config import owned_layers
from nlptasks.data.datasets import CALIBRATION
from nlptasks.errors import BackendError, TrainingError, listing
from nlptasks.inference.batching import collate_instances
from nlptasks.inference.engine import CHUNK_ITEMS, Engine, result_of
from nlptasks.inference.scoring import measured
from nlptasks.metrics.base import Counts, Metrics, merge
from nlptasks.metrics.calibration import calibration_error, fit_temperature
from nlptasks.runtimes.pytorch import TorchRuntime
from nlptasks.storage.checkpoints import Checkpoint, Checkpoints
from nlptasks.training.fast_dropout import cheap_dropout
from nlptasks.training.interrupts import StopRequest
from nlptasks.training.multitask_sampler import Schedule, Turn
from nlptasks.training.optimizer import Batch, LossModule, Optimization, Step
from nlptasks.training.run_state import HeadOutcome, TrainingRun, TrainState, TrainTask
from nlptasks.types import HeadOutputs

_EVALUATION_TOKENS = 4096
_LOWER = 'train again with a lower `lr`, or `precision="fp32"`'


class Trainer:
    """Trains the heads of a run.

    Args:
        run: what is trained; its model is changed.
        checkpoints: where they are written; None in all processes but one.
        found: the checkpoint to resume from, or None.
    """

    def __init__(self, run: TrainingRun, *, checkpoints: Checkpoints | None, found: Checkpoint | None) -> None:
        self.training_run, self.state = run, TrainState()
        self._checkpoints, self._stop = checkpoints, StopRequest(patient=run.accelerator.num_processes > 1)
        # Computed weights, such as Marian's positions, are frozen and stay so.
        self._learnable = [weight for weight in run.model.parameters() if weight.requires_grad]
        if owned_layers(run.settings.tune) is not None:
            run.model.backbone.requires_grad_(False)
        run.model.to(run.accelerator.device)
        self._best = _copied(_changing(run.model))
        self._epochs = run.settings.epochs or 0
        self.schedule = Schedule(
            {task.name: [one.tokens for one in task.instances] for task in run.tasks},
            weights={task.name: task.weight for task in run.tasks},
            budget=run.settings.batch_tokens or 1,
            size=run.settings.accumulate * run.accelerator.num_processes,
            seed=run.settings.seed,
        )
        self._optimization = Optimization(
            LossModule(run.model),
            run.settings,
            rates={task.name: task.rate for task in run.tasks},
            steps=sum(len(self.schedule.epoch(epoch)) for epoch in range(self._epochs)),
            load=self._load,
            accelerator=run.accelerator,
        )
        if found:
            self._restore(found)
        self._started = time.monotonic() - self.state.seconds

    def run(self) -> dict[str, HeadOutcome]:
        """Train, keep the best weights, fit temperature and thresholds, and evaluate on all other parts of the data.

        Raises:
            TrainingError: the loss is not finite, or nothing can be learned.
            KeyboardInterrupt, SystemExit: a signal asked for it; a checkpoint was written before.
        """
        model = self.training_run.model
        with self._stop:
            with cheap_dropout(model, model.backbone, self.training_run.accelerator.device):
                while self.state.epoch < self._epochs and not self._is_patience_over():
                    self._train_epoch()
                    self._evaluate_epoch()
            _put(model, self._best)
            self._check_equal_everywhere()
            outcomes = {task.name: self._outcome(task) for task in self.training_run.tasks}
        for weight in self._learnable:
            weight.requires_grad_(True)
        self.state.seconds = time.monotonic() - self._started
        return outcomes

    def _load(self, name: str, batch: Batch) -> dict[str, Tensor]:
        instances = self.training_run.task(name).instances
        chosen = [instances[index] for index in batch]
        arrays = collate_instances(chosen, self.training_run.model.backbone.info)  # each [B,...]
        device = self.training_run.accelerator.device
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}

    def _train_epoch(self) -> None:
        """Run the remaining steps of the epoch."""
        state, optimization, callback = self.state, self._optimization, self.training_run.callback
        self.training_run.model.train()
        turns = self.schedule.epoch(state.epoch)
        for turn in turns[state.step :]:
            begun = time.monotonic()
            pieces = optimization.pieces
            step = optimization.step(turn, stop=self._stop.is_made)
            if not math.isfinite(step.norm):
                raise self._not_finite(step, turn)
            state.step += 1
            state.learning_seconds += time.monotonic() - begun
            for sums, value in ((state.loss, step.loss), (state.count, step.count)):
                sums[turn.name] = sums.get(turn.name, 0.0) + value
            callback.step(optimization.done, optimization.steps, turn.name, step.loss / (step.count or 1))
            if optimization.pieces > pieces:
                callback.note(
                    f"out of memory at step {optimization.done}: from here on batches are split into {optimization.pieces} "
                    "pieces, which changes the last digits; a smaller `batch_tokens` avoids this"
                )
            if step.stop:
                self._leave()
            if self._checkpoints and self._checkpoints.due:
                self._save(self._checkpoints)
        for name in dict.fromkeys(turn.name for turn in turns):
            if not state.count[name]:
                where = f"epoch {state.epoch + 1}, {name}"
                raise TrainingError(where, "no row has anything to learn from", "check the labels")

    def _evaluate_epoch(self) -> None:
        """Evaluate on dev, keep the weights if they are the best, and complete the epoch."""
        state, found = self.state, {}
        for task in self.training_run.tasks:
            with self._evaluating(task, "dev"):
                pairs = ((one.example, result_of(task.head, one)) for one in self._outputs(task, "dev"))
                metrics = measured(task.head, pairs)
            found[task.name] = metrics.score
            state.main_metrics[task.name] = metrics.main
        values, stop = self._agreed(list(found.values()))
        dev = dict(zip(found, values, strict=True))
        loss = {name: state.loss[name] / count for name, count in state.count.items()}
        state.epoch += 1
        state.history.append({"epoch": state.epoch, "loss": loss, "dev": dev})
        state.step, state.loss, state.count = 0, {}, {}
        better = not state.best_epoch or state.relative(state.epoch) > state.relative(state.best_epoch)
        if better:
            state.best_epoch = state.epoch
            self._best = _copied(_changing(self.training_run.model))
        self.training_run.callback.evaluated(state.epoch, state.labelled(dev), better)
        if stop:
            self._leave()

    def _is_patience_over(self) -> bool:
        state, patience = self.state, self.training_run.settings.patience
        # Some tasks need a while until their metric leaves zero.
        begun = all(state.best(task.name) > 0 for task in self.training_run.tasks)
        over = begun and state.epoch - state.best_epoch >= patience
        if over:
            metrics = " and ".join(state.labelled(state.history[-1]["dev"]))
            self.training_run.callback.note(f"stopped early: no better {metrics} on dev for {patience} epochs")
        return over

    def _outcome(self, task: TrainTask) -> HeadOutcome:
        """Fit temperature and thresholds to the outputs of the kept weights, and measure everything."""
        head = task.head
        before = copy.copy(head)  # with the config as it is now
        self._calibrate(task)
        metrics: dict[str, Metrics] = {}
        errors: dict[str, dict[str, float | None]] = {}
        for part in [part for part in task.examples if part not in ("train", CALIBRATION)]:
            counts: list[Counts] = []
            confidences: dict[str, list[tuple[float, bool]]] = {"before": [], "after": []}
            with self._evaluating(task, part):
                for outputs in self._outputs(task, part):
                    for when, one in (("before", before), ("after", head)):
                        result = result_of(one, outputs)
                        if one.calibration:
                            confidences[when] += one.calibration.confidences(outputs.example, result)
                    counts.append(head.count(outputs.example, result))
                metrics[part] = head.metrics(merge(counts))
            errors[part] = {when: calibration_error(own) for when, own in confidences.items()}
        then, now = asdict(before.config), asdict(head.config)
        dev = metrics["dev"]
        return HeadOutcome(
            main_metric=dev.main,
            metrics={part: dict(own.values) for part, own in metrics.items()},
            signature=dev.signature,
            fitted={name: value for name, value in now.items() if value != then[name]},
            calibration_error=errors,
        )

    def _calibrate(self, task: TrainTask) -> None:
        """Fit the temperature to rows held out of training, then the thresholds to dev."""
        head = task.head
        if head.calibration is None:
            return
        if CALIBRATION in task.examples:
            with self._evaluating(task, CALIBRATION):
                likelihood = head.calibration.likelihood(self._outputs(task, CALIBRATION))
                head.config = replace(head.config, temperature=fit_temperature(likelihood))
        with self._evaluating(task, "dev"):
            head.config = replace(head.config, **head.calibration.thresholds(self._outputs(task, "dev")))

    def _outputs(self, task: TrainTask, part: str) -> Iterator[HeadOutputs[Any]]:
        """Return the outputs for a part of the data, in order."""
        run = self.training_run
        runtime = TorchRuntime(run.model.graphs(), run.accelerator.device, outputs=run.model.outputs)
        info = run.model.backbone.info
        engine = Engine({task.name: task.head}, run.tokenizer, runtime, info, _EVALUATION_TOKENS)
        alone = run.accelerator.num_processes == 1  # otherwise the others would wait for a process that has left
        items = ({task.name: example} for example in task.examples[part])
        for found in engine.outputs(items, first_chunk=CHUNK_ITEMS):
            yield found[task.name]
            if self._stop.is_made() and alone:
                self._leave()

    @contextmanager
    def _evaluating(self, task: TrainTask, part: str) -> Iterator[None]:
        """Turn an error about the outputs for a part of the data into an error of training."""
        try:
            yield
        except BackendError as error:
            where = f"epoch {self.state.epoch + 1}, {task.name}"
            raise TrainingError(where, f"{error.where} {error.problem} on {part}", _LOWER) from error

    def _leave(self) -> NoReturn:
        if self._checkpoints:
            self._save(self._checkpoints)
        self.training_run.accelerator.wait_for_everyone()  # a launcher ends all processes when the first one ends
        self.training_run.callback.note(f"stopped after step {self._optimization.done}; continue with `resume=True`")
        self._stop.obey()

    def _save(self, checkpoints: Checkpoints) -> None:
        self.state.seconds = time.monotonic() - self._started
        tensors, record = self._optimization.state()
        groups = {"weights": _changing(self.training_run.model), "optimizer": tensors, "best": self._best}
        checkpoints.save(
            Checkpoint(
                {name: group for name, group in groups.items() if group},
                {
                    "fingerprint": self.training_run.fingerprint,
                    "state": asdict(self.state),
                    "optimization": record,
                },
            )
        )

    def _restore(self, found: Checkpoint) -> None:
        self.state = TrainState(**found.record["state"])
        _put(self.training_run.model, found.tensors["weights"])
        self._best = dict(found.tensors["best"])
        self._optimization.restore(found.tensors.get("optimizer", {}), found.record["optimization"])
        done, steps = self._optimization.done, self._optimization.steps
        self.training_run.callback.note(f"resumed after step {done} of {steps}")

    def _not_finite(self, step: Step, turn: Turn) -> TrainingError:
        task = self.training_run.task(turn.name)
        rows = task.rows["train"]
        places = (rows[task.instances[number].index].where for batch in turn.batches for number in batch)
        what = "gradient" if math.isfinite(step.loss) else "loss"
        rate = (self.training_run.settings.lr or 0) * step.rate
        problem = f"the {what} is not finite at a learning rate of {rate:.2g} (rows {listing(places, limit=3)})"
        return TrainingError(f"step {self._optimization.done}", problem, _LOWER)

    def _agreed(self, values: Sequence[float]) -> tuple[list[float], bool]:
        """Return the first process's values, and whether any was asked to stop: all processes must act alike."""
        accelerator = self.training_run.accelerator
        own = torch.tensor([[*values, self._stop.is_made()]], dtype=torch.float64, device=accelerator.device)
        everywhere = accelerator.gather(own)  # [processes,heads+1]
        return everywhere[0, :-1].tolist(), bool(everywhere[:, -1].any())

    def _check_equal_everywhere(self) -> None:
        """Refuse weights that differ between the processes: then each has learned from its own batches alone."""
        accelerator = self.training_run.accelerator
        if accelerator.num_processes > 1:
            own = bytes.fromhex(digest_of(_changing(self.training_run.model)))
            digests = accelerator.gather(torch.tensor([list(own)], device=accelerator.device))  # [processes,32]
            if (digests != digests[0]).any():
                raise TrainingError("the processes", "ended with different weights", "report this with your versions")


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of named tensors, in hex."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _changing(model: nn.Module) -> dict[str, Tensor]:
    """Return what training can change: trainable parameters, and buffers."""
    learning = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    return learning | dict(model.named_buffers())


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}


def _put(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in _changing(model).items():
        tensor.copy_(tensors[name])
