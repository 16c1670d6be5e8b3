"""What changes weights: one optimizer step over the batches of all processes.

A step is a function of the weights, the optimizer's state, its number and its batches alone. Nothing is drawn from a random
state that would have to be remembered: each pass seeds its own dropout.
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
"""Numbers of a head's examples in a batch."""

Load = Callable[[str, Batch], Mapping[str, Tensor]]
"""Gives the tensors of a head's batch, on the device."""


@dataclass(frozen=True)
class Step:
    """What came of one step, over all processes.

    Attributes:
        loss: the sum of the losses.
        count: what it is a sum over.
        norm: of the gradient of the mean loss, before clipping; not finite if the loss is not.
        rate: the learning rate, as a share of its highest.
        stop: whether any process was asked to stop.
    """

    loss: float
    count: float
    norm: float
    rate: float
    stop: bool


class LossModule(nn.Module):
    """A model as a module whose `forward` gives the loss of a head: what data-parallel wrappers can wrap."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, name: str, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.model.loss(name, batch)


def make_accelerator(precision: str, device: torch.device, *, heads: int) -> Accelerator:
    """One process among all that train, with ``fp32``, ``bf16`` or ``fp16`` passes.

    Args:
        precision: of the passes.
        device: where to train.
        heads: how many learn; of several, each step leaves the weights of all but one without a gradient.
    """
    # accelerate keeps its state for the whole process: without this a second run would get the first one's precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    if "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:  # accelerate launch without a GPU does so
        _log.warning(
            "the launcher has started one process only: on the CPU use torchrun --nproc-per-node N -m nlptasks"
        )
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=heads > 1)],
    )


class Optimization:
    """AdamW on a module, on all processes.

    Args:
        module: backbone and heads, on the device.
        rates: the highest learning rate of each head's own layers.
        settings: with everything chosen.
        steps: steps in all.
        load: makes tensors of a batch.
        accelerator: this process among all that train.
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
            problem = f"is {settings.tune}, and the heads have no weights of their own: nothing would be learned"
            raise UsageError("--tune", problem, "take all, or top:K")
        self._adamw = torch.optim.AdamW(_groups(module.model, settings, rates), fused=True)
        self._module, self._optimizer = accelerator.prepare(module, self._adamw)

    @property
    def _rate(self) -> float:
        """The learning rate of the next step, as a share of its highest: up linearly, then down to zero."""
        rise = max(1, round(self._settings.warmup * self.steps))
        return min((self.done + 1) / rise, max(0.0, (self.steps - self.done) / max(1, self.steps - rise)))

    def step(self, turn: Turn, *, stop: Callable[[], bool] = lambda: False) -> Step:
        """One step. Without a finite loss and gradient, or with nothing to learn from, no weight is changed.

        Args:
            turn: whose step it is, and its batches, of all processes.
            stop: whether this process is asked to stop by the time its passes are done.

        Raises:
            TrainingError: one example alone is too large for the device's memory.
        """
        world = self._accelerator.num_processes
        own = turn.batches[self._accelerator.process_index :: world]
        passed = self._fitting(turn.name, own or turn.batches[:1], weight=float(bool(own)))
        loss, count, stops = self._summed([*passed, float(stop())])
        norm = math.inf
        if math.isfinite(loss):
            norm = self._update(world * self._scale / count) if count else 0.0
        self._optimizer.zero_grad()
        step = Step(loss, count, norm, self._rate, stops > 0)
        self.done += 1
        return step

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the optimizer remembers: its tensors, and the rest as JSON has it."""
        tensors = {
            f"{key}/{name}": value
            for weight, name in self._names.items()
            for key, value in self._adamw.state[weight].items()
        }
        scaler = self._accelerator.scaler
        return tensors, {"done": self.done, "pieces": self.pieces, "scaler": scaler.state_dict() if scaler else None}

    def restore(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        weights = {name: weight for weight, name in self._names.items()}
        for path, value in tensors.items():
            key, _, name = path.partition("/")
            self._adamw.state[weights[name]][key] = value.to(weights[name].device)
        self.done, self.pieces = record["done"], record["pieces"]
        if record["scaler"]:
            self._accelerator.scaler.load_state_dict(record["scaler"])

    @property
    def _scale(self) -> float:
        """What losses are divided by before their true count is known: it keeps gradients in the range of half precision."""
        return float(self._settings.batch_tokens or 1)

    def _fitting(self, name: str, batches: Sequence[Batch], *, weight: float) -> tuple[float, float]:
        """The passes over the batches, in as small pieces as the memory needs: the sums of losses and counts."""
        while True:
            try:
                return self._passes(name, batches, weight)
            except torch.OutOfMemoryError as error:
                if self._accelerator.num_processes > 1:  # the others wait in the middle of their own passes
                    raise TrainingError(
                        f"step {self.done + 1}", f"out of memory ({error})", "take fewer --batch-tokens"
                    ) from error
                if self.pieces >= max(map(len, batches)):
                    raise TrainingError(
                        f"step {self.done + 1}", "one example alone is out of memory", "give shorter texts"
                    ) from error
            self.pieces *= 2
            self._optimizer.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _passes(self, name: str, batches: Sequence[Batch], weight: float) -> tuple[float, float]:
        parts = [part for batch in batches for part in _split(batch, self.pieces)]
        summed = counted = 0.0
        for number, part in enumerate(parts):
            torch.manual_seed(self._seed(number))
            with self._joined(last=number + 1 == len(parts)):
                loss, count = self._module(name, self._load(name, part))
                self._accelerator.backward(loss * (weight / self._scale))
            summed, counted = summed + weight * float(loss.detach()), counted + weight * float(count)
        return summed, counted

    def _joined(self, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients of all processes are joined in a step's last pass only."""
        context: AbstractContextManager[Any] = nullcontext() if last else self._accelerator.no_sync(self._module)
        return context

    def _seed(self, part: int) -> int:
        place = f"{self._settings.seed}/{self.done}/{self._accelerator.process_index}/{part}"
        return int.from_bytes(hashlib.sha256(place.encode()).digest()[:7])

    def _summed(self, values: Sequence[float]) -> list[float]:
        if self._accelerator.num_processes == 1:
            return list(values)
        device = self._accelerator.device
        summed: list[float] = self._accelerator.reduce(
            torch.tensor(values, dtype=torch.float64, device=device), "sum"
        ).tolist()
        return summed

    def _update(self, factor: float) -> float:
        """Change the weights by gradients that are still to be multiplied by this factor: the norm they then have."""
        self._accelerator.unscale_gradients()
        gradients = [weight.grad for weight in self._names if weight.grad is not None]
        norm = float(get_total_norm(gradients)) * factor
        for gradient in gradients:
            gradient.mul_(factor * min(1.0, self._settings.clip / (norm + 1e-6)))
        for group in self._adamw.param_groups:
            group["lr"] = group["highest"] * self._rate
        scaler = self._accelerator.scaler
        if math.isfinite(norm) or scaler:
            self._optimizer.step()
        if scaler and not math.isfinite(norm) and scaler.get_scale() >= 1:
            return 0.0  # in half precision: the step was left out, and the next ones have a smaller scale
        return norm


def _split(batch: Batch, pieces: int) -> list[Batch]:
    size = -(-len(batch) // pieces)
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def _groups(model: Model, settings: TrainSettings, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Parameters by their highest learning rate and decay; biases and norms do not decay."""
    found: list[tuple[float, nn.Parameter]] = []
    above = layers_above(model.backbone.trunk)
    for name, weight in model.backbone.trunk.named_parameters():
        found.append(((settings.lr or 0) * settings.layer_decay ** above[name], weight))
    for branch in model.branches.values():
        for number, layer in enumerate(reversed(branch.layers)):
            found += [((settings.lr or 0) * settings.layer_decay**number, weight) for weight in layer.parameters()]
    for name, head in model.heads.items():
        found += [(rates[name], weight) for weight in head.parameters()]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for rate, weight in found:
        if weight.requires_grad:
            groups.setdefault((rate, settings.weight_decay if weight.ndim > 1 else 0.0), []).append(weight)
    return [
        {"params": weights, "lr": rate, "highest": rate, "weight_decay": decay}
        for (rate, decay), weights in groups.items()
    ]


def layers_above(trunk: nn.Module) -> dict[str, int]:
    """For each parameter of a trunk, how many layers stand between its own and the head; 0 where there is no list of them."""
    path = path_of_layers(trunk)
    count = 0 if path is None else len(list(trunk.get_submodule(path).children()))
    above, seen = {}, False
    for parameter, _ in trunk.named_parameters():
        inside = path is not None and parameter.startswith(f"{path}.")
        seen = seen or inside
        own = int(parameter[len(path or "") + 1 :].partition(".")[0]) if inside else count - 1
        above[parameter] = count - 1 - own if seen else count  # embeddings stand before the first layer
    return above
