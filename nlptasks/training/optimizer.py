"""One optimizer step over the batches of all processes.

A step depends only on the weights, the optimizer's state, its number and its batches: each forward pass seeds its own dropout, so
there is no random state to store.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from nlptasks.backbones.layer_sharing import path_of_layers
from nlptasks.config import TrainSettings
from nlptasks.errors import TrainingError, UsageError
from nlptasks.models.model import Model
from nlptasks.training.multitask_sampler import Turn

_log = logging.getLogger("nlptasks")

Batch = Sequence[int]
"""Indices of a head's training instances in a batch."""

Load = Callable[[str, Batch], Mapping[str, Tensor]]
"""Returns the tensors of a head's batch, on the device."""

_MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""accelerate's names of the precisions."""


@dataclass(frozen=True)
class Step:
    """The result of one step over all processes.

    Attributes:
        loss: sum of the losses.
        count: the count to divide this sum by.
        norm: norm of the gradient of the mean loss before clipping; not finite if the loss is not.
        rate: learning rate relative to its peak.
        stop: True if any process was asked to stop.
    """

    loss: float
    count: float
    norm: float
    rate: float
    stop: bool


class LossModule(nn.Module):
    """Wraps a model for data parallelism: `forward` returns the loss of a head."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, name: str, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.model.loss(name, batch)


def make_accelerator(precision: str, device: torch.device, *, heads: int) -> Accelerator:
    """Return the accelerator of this process.

    Args:
        precision: ``fp32``, ``bf16`` or ``fp16``.
        device: where to train.
        heads: number of heads; of several, a step has gradients for one only.
    """
    # accelerate keeps its state in the process: without a reset, a second run would have the precision of the first.
    AcceleratorState._reset_state(reset_partial_state=True)
    if "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:  # accelerate launch without a GPU
        _log.warning("the launcher started only one process; on the CPU use torchrun --nproc-per-node N -m nlptasks")
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=_MIXED[precision],
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=heads > 1)],
    )


class Optimization:
    """AdamW with gradient accumulation, on all processes.

    Args:
        module: backbone and heads, on the device.
        settings: complete settings.
        rates: peak learning rate of the network of each head.
        steps: total number of steps.
        load: returns the tensors of a batch.
        accelerator: the accelerator of this process.
    """

    def __init__(
        self,
        module: LossModule,
        settings: TrainSettings,
        *,
        rates: Mapping[str, float],
        steps: int,
        load: Load,
        accelerator: Accelerator,
    ) -> None:
        self.steps, self.done, self.pieces = steps, 0, 1
        self._settings, self._load, self._accelerator = settings, load, accelerator
        self._names = {weight: name for name, weight in module.named_parameters() if weight.requires_grad}
        if not self._names:
            problem = f"is {settings.tune}, and the heads have no weights: there is nothing to train"
            raise UsageError("tune", problem, "use all, or top:K", argument="tune")
        self._adamw = torch.optim.AdamW(_groups(module.model, settings, rates), fused=True)
        self._module, self._optimizer = accelerator.prepare(module, self._adamw)

    @property
    def _rate(self) -> float:
        """Learning rate of the next step relative to its peak: linear warm-up, then linear decay to zero."""
        warmup = max(1, round(self._settings.warmup * self.steps))
        return min((self.done + 1) / warmup, max(0.0, (self.steps - self.done) / max(1, self.steps - warmup)))

    def step(self, turn: Turn, *, stop: Callable[[], bool] = lambda: False) -> Step:
        """Do one step. Weights change only if the loss and its gradient are finite, and the batches have targets.

        Args:
            turn: the head and its batches, for all processes.
            stop: returns True if this process was asked to stop; called after its passes.

        Raises:
            TrainingError: a single example does not fit in the device's memory.
        """
        world = self._accelerator.num_processes
        own = turn.batches[self._accelerator.process_index :: world]
        sums = self._passes_in_memory(turn.name, own or turn.batches[:1], weight=float(bool(own)))
        loss, count, stops = self._reduced([*sums, float(stop())])
        norm = math.inf
        if math.isfinite(loss):
            norm = self._update(world * self._scale / count) if count else 0.0
        self._optimizer.zero_grad()
        step = Step(loss, count, norm, self._rate, stops > 0)
        self.done += 1
        return step

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the optimizer's state: its tensors, and everything else for JSON."""
        tensors = {
            f"{key}/{name}": value
            for weight, name in self._names.items()
            for key, value in self._adamw.state[weight].items()
        }
        scaler = self._accelerator.scaler
        return tensors, {"done": self.done, "pieces": self.pieces, "scaler": scaler.state_dict() if scaler else None}

    def restore(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        weights = {name: weight for weight, name in self._names.items()}
        for path, value in tensors.items():
            key, _, name = path.partition("/")
            self._adamw.state[weights[name]][key] = value.to(weights[name].device)
        self.done, self.pieces = record["done"], record["pieces"]
        if record["scaler"]:
            self._accelerator.scaler.load_state_dict(record["scaler"])

    @property
    def _scale(self) -> float:
        """Divisor of losses until their count is known. It keeps gradients in the range of half precision."""
        return float(self._settings.batch_tokens or 1)

    def _passes_in_memory(self, name: str, batches: Sequence[Batch], *, weight: float) -> tuple[float, float]:
        """Do the passes, and split the batches while they do not fit in memory. Return the sums of losses and counts."""
        while True:
            try:
                return self._passes(name, batches, weight)
            except torch.OutOfMemoryError as error:
                where = f"step {self.done + 1}"
                if self._accelerator.num_processes > 1:  # the others wait for this one's gradients
                    raise TrainingError(where, f"out of memory ({error})", "use a smaller `batch_tokens`") from error
                if self.pieces >= max(map(len, batches)):
                    problem = "a single example does not fit in memory"
                    raise TrainingError(where, problem, "use shorter texts") from error
            self.pieces *= 2
            self._optimizer.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _passes(self, name: str, batches: Sequence[Batch], weight: float) -> tuple[float, float]:
        parts = [part for batch in batches for part in _split(batch, self.pieces)]
        loss_sum = count_sum = 0.0
        for number, part in enumerate(parts):
            torch.manual_seed(self._seed(number))
            with self._synchronized(last=number + 1 == len(parts)):
                loss, count = self._module(name, self._load(name, part))
                self._accelerator.backward(loss * (weight / self._scale))
            loss_sum, count_sum = loss_sum + weight * float(loss.detach()), count_sum + weight * float(count)
        return loss_sum, count_sum

    def _synchronized(self, *, last: bool) -> AbstractContextManager[Any]:
        """Reduce gradients over all processes only in the last pass of a step."""
        context: AbstractContextManager[Any] = nullcontext() if last else self._accelerator.no_sync(self._module)
        return context

    def _seed(self, part: int) -> int:
        place = f"{self._settings.seed}/{self.done}/{self._accelerator.process_index}/{part}"
        return int.from_bytes(hashlib.sha256(place.encode()).digest()[:7])

    def _reduced(self, values: Sequence[float]) -> list[float]:
        """Sum values over all processes."""
        if self._accelerator.num_processes == 1:
            return list(values)
        own = torch.tensor(values, dtype=torch.float64, device=self._accelerator.device)
        sums: list[float] = self._accelerator.reduce(own, "sum").tolist()
        return sums

    def _update(self, factor: float) -> float:
        """Scale the gradients by a factor, clip them and update the weights. Return the norm before clipping."""
        self._accelerator.unscale_gradients()
        gradients = [weight.grad for weight in self._names if weight.grad is not None]
        norm = float(get_total_norm(gradients)) * factor
        for gradient in gradients:
            gradient.mul_(factor * min(1.0, self._settings.clip / (norm + 1e-6)))
        for group in self._adamw.param_groups:
            group["lr"] = group["peak"] * self._rate
        scaler = self._accelerator.scaler
        if math.isfinite(norm) or scaler:
            self._optimizer.step()
        if scaler and not math.isfinite(norm) and scaler.get_scale() >= 1:
            return 0.0  # fp16: the gradient scaler has skipped the step and lowers its scale
        return norm


def _split(batch: Batch, pieces: int) -> list[Batch]:
    size = -(-len(batch) // pieces)
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def _groups(model: Model, settings: TrainSettings, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return parameter groups by learning rate and weight decay; biases and norms have no weight decay."""
    lr, decay = settings.lr or 0.0, settings.layer_decay
    above = layers_above(model.backbone.base_model)
    rated = [(lr * decay ** above[name], weight) for name, weight in model.backbone.base_model.named_parameters()]
    for branch in model.branches.values():
        for number, layer in enumerate(reversed(branch.layers)):
            rated += [(lr * decay**number, weight) for weight in layer.parameters()]
    for name, network in model.networks.items():
        rated += [(rates[name], weight) for weight in network.parameters()]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for rate, weight in rated:
        if weight.requires_grad:
            groups.setdefault((rate, settings.weight_decay if weight.ndim > 1 else 0.0), []).append(weight)
    return [
        {"params": weights, "lr": rate, "peak": rate, "weight_decay": weight_decay}
        for (rate, weight_decay), weights in groups.items()
    ]


def layers_above(base_model: nn.Module) -> dict[str, int]:
    """Return the number of layers above each parameter, by name; 0 without a list of layers."""
    path = path_of_layers(base_model)
    count = 0 if path is None else len(list(base_model.get_submodule(path).children()))
    above, seen = {}, False
    for parameter, _ in base_model.named_parameters():
        inside = path is not None and parameter.startswith(f"{path}.")
        seen = seen or inside
        own = int(parameter[len(path or "") + 1 :].partition(".")[0]) if inside else count - 1
        above[parameter] = count - 1 - own if seen else count  # embeddings come before the first layer
    return above
