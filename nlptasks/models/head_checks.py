"""Checks of a head and its network on a few examples: each method returns what the contract says.

Training runs them before the first step, and the test kit runs them for every head.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlptasks.config import recorded
from nlptasks.errors import UsageError, listing, quote
from nlptasks.heads.base import AnyHead, without_gold
from nlptasks.inference.batching import Instance, collate_instances
from nlptasks.inference.engine import Engine, result_of
from nlptasks.inference.serialization import as_plain
from nlptasks.metrics.base import Counts, Metrics, merge
from nlptasks.models.model import IN_BACKBONE, Model
from nlptasks.networks.base import Network
from nlptasks.runtimes.base import ENCODE_INPUTS
from nlptasks.runtimes.pytorch import TorchRuntime
from nlptasks.storage.safetensors import own_tensors
from nlptasks.text.windows import Tokenizer
from nlptasks.types import HeadOutputs, ModelInput, Row

Naming = Callable[[str], AbstractContextManager[None]]
"""Returns a context manager for the name of the method that is checked in it."""

_RESERVED = (*ENCODE_INPUTS, "example")
"""Names in a batch that belong to the library."""

_CHANGED = "changes the hidden states, which other heads read; copy them instead of changing them in place"
_SAME = 1e-6


class WrongOutputError(Exception):
    """A method returned something that breaks the contract. The message continues the method's name."""


def check_config(cls: type[AnyHead], config: Any) -> None:
    """Check what `configure` returned: a config that can be written as JSON."""
    _expect(isinstance(config, cls.Config), f"returned {quote(config)}, expected a {cls.Config.__name__}")
    json.dumps(recorded(config))


def check_inputs(inputs: Any) -> None:
    """Check what `inputs` returned for an example."""
    is_right = isinstance(inputs, Sequence) and all(isinstance(one, ModelInput) for one in inputs)
    _expect(is_right, f"returned {quote(inputs)}, expected a list of ModelInput")


def check_targets(instances: Sequence[Instance], axes: Mapping[str, str]) -> None:
    """Check the targets of training examples.

    Args:
        instances: the examples with their targets.
        axes: the axes of the targets that the network declares.
    """
    fixed: dict[str, int] = {}
    types: dict[str, Any] = {}
    if reserved := sorted(set(axes) & set(_RESERVED)):
        raise WrongOutputError(f"are declared as {listing(reserved)}, which belongs to the library; rename it")
    for instance in instances:
        for window, targets in zip(instance.windows, instance.targets, strict=True):
            if not isinstance(targets, Mapping):
                raise WrongOutputError(f"returned {quote(targets)}, expected a dict of arrays")
            if set(targets) != set(axes):
                raise WrongOutputError(f"returned {listing(targets)}, and the network declares {listing(axes)}")
            for name, values in targets.items():
                _check_array(name, values)
                letter = axes[name][1:]
                if letter == "S":
                    wanted: int | None = len(window)
                else:
                    wanted = None if letter == "T" else fixed.setdefault(name, len(values))
                if wanted is not None and len(values) != wanted:
                    tokens = f"for a window of {len(window)} tokens"
                    problem = f"returned {len(values)} numbers as {name} {tokens}, expected {wanted}"
                    raise WrongOutputError(f"{problem}, as the network declares {axes[name]}")
                if types.setdefault(name, values.dtype) != values.dtype:
                    problem = f"returned {name} as {types[name]} and as {values.dtype}, expected one type"
                    raise WrongOutputError(problem)


def _check_array(name: str, values: Any) -> None:
    if not isinstance(values, np.ndarray):
        raise WrongOutputError(f"returned {quote(values)} as {name}, expected an array of int64 or float32")
    if values.ndim != 1 or values.dtype not in (np.int64, np.float32):
        shape = ", ".join(map(str, values.shape))
        problem = f"returned {name} as [{shape}] of {values.dtype}, expected one axis of int64 or float32"
        raise WrongOutputError(problem)


def check_outputs(network: Network, outputs: Any, states: Tensor) -> None:
    """Check what `forward` returned for hidden states [B,S,H]: names, shapes and numbers."""
    declared = network.outputs
    _expect(isinstance(outputs, Mapping), f"returned {type(outputs).__name__}, expected a dict of tensors")
    _expect(set(outputs) == set(declared), f"returned {listing(outputs)}, and `outputs` declares {listing(declared)}")
    sizes = dict(zip("BSH", states.shape, strict=True))
    for name, axes in declared.items():
        shape = tuple(outputs[name].shape)
        same = len(shape) == len(axes) and all(
            sizes.setdefault(axis, size) == size for axis, size in zip(axes, shape, strict=True)
        )
        wanted = ",".join(f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in axes)
        _expect(same, f"returned {name} of the shape {list(shape)}, and `outputs` declares {axes} ({wanted})")
        _expect(not outputs[name].isnan().any(), f"returned {name} with NaN")


def check_loss(found: Any) -> None:
    """Check what `loss` returned: a finite sum that can be differentiated, and its count."""
    is_pair = isinstance(found, tuple) and len(found) == 2 and all(map(_is_scalar, found))
    _expect(is_pair, f"returned {quote(found)}, expected two scalar tensors: a sum, and the count it is a sum over")
    _expect(found[0].requires_grad, "returned a sum without a gradient: it does not depend on the hidden states")
    total = float(found[0].detach())
    _expect(math.isfinite(total), f"returned the sum {total}, expected a finite number")


def check_plain(result: Any) -> None:
    """Check that a result is plain data: it is written as JSON, and goes into spaCy documents."""
    try:
        as_plain(result)
    except UsageError as error:
        raise WrongOutputError(f"returned {quote(result)}, which {error.problem}; {error.fix}") from error


def check_counts(counts: Any) -> None:
    """Check what `count` returned."""
    _expect(isinstance(counts, Counts), f"returned {quote(counts)}, expected Counts")
    wrong = {key: value for key, value in counts.sums.items() if not _is_finite(value)}
    _expect(not wrong, f"returned the sums {quote(wrong)}, expected finite numbers")
    _expect(isinstance(counts.rows, tuple), f"returned the rows {quote(counts.rows)}, expected a tuple")


def check_metrics(metrics: Any) -> None:
    """Check what `metrics` returned: the main metric is there, and all are finite."""
    _expect(isinstance(metrics, Metrics), f"returned {quote(metrics)}, expected Metrics")
    _expect(
        metrics.main in metrics.values, f"returned {quote(dict(metrics.values))} without the main metric {metrics.main}"
    )
    wrong = {name: value for name, value in metrics.values.items() if not _is_finite(value)}
    _expect(not wrong, f"returned {quote(wrong)}, expected finite numbers")


def check_merging(head: AnyHead, counts: Sequence[Counts]) -> None:
    """Check that metrics do not depend on how the counts of several examples are merged."""
    half = len(counts) // 2
    whole, parts = merge(counts), merge([merge(counts[half:]), merge(counts[:half])])
    expected, found = head.metrics(whole).values, head.metrics(parts).values
    for name, value in expected.items():
        same = name in found and math.isclose(found[name], value, rel_tol=_SAME, abs_tol=_SAME)
        _expect(same, f"returned {name}={value} for all counts, and {found.get(name)} for those of two halves")


def check_confidences(scored: Any) -> None:
    """Check what `confidences` returned: scores in 0..1, each with True or False."""
    for score, is_right in scored:
        is_score = isinstance(score, Real) and 0 <= float(score) <= 1
        wanted = "expected a score in 0..1, and True if it is right"
        _expect(is_score and isinstance(is_right, bool | np.bool_), f"returned {quote((score, is_right))}, {wanted}")


class HeadChecks:
    """Runs a head on examples and checks everything that it returns.

    Args:
        model: a model with the head, in evaluation mode.
        name: the head's name.
        tokenizer: the backbone's.
        naming: context manager for the name of the method that is checked.
    """

    def __init__(self, model: Model, name: str, tokenizer: Tokenizer, naming: Naming) -> None:
        self._model, self._name, self._tokenizer, self._naming = model, name, tokenizer, naming
        self._head, self._network = model.heads[name], model.networks[name]

    def check_network(self, instances: Sequence[Instance]) -> None:
        """Check outputs and loss, and that nothing is changed that other heads read."""
        with self._naming("the network's __init__"):
            taken = sorted(name for name in own_tensors(self._network) if name.startswith(IN_BACKBONE))
            names = listing(taken, limit=2)
            _expect(not taken, f"keeps tensors named {names}; a network has no backbone, rename this part")
        with self._naming("targets"):
            arrays = collate_instances(instances, self._model.backbone.info)
        batch = {key: torch.from_numpy(array) for key, array in arrays.items()}  # each [B,...]
        states = self._model.states(self._name, batch)  # [B,S,H]
        before, weights = states.clone(), _sums(self._model.backbone)
        with self._naming("forward"):
            check_outputs(self._network, self._network(states, batch), states)
            _expect(torch.equal(states, before), _CHANGED)
        with torch.enable_grad():
            states.requires_grad_()
            with self._naming("training_outputs"):
                outputs = self._network.training_outputs(states, batch)
                is_right = isinstance(outputs, Mapping)
                _expect(is_right, f"returned {type(outputs).__name__}, expected a dict of tensors")
            with self._naming("loss"):
                check_loss(self._network.loss(outputs, batch))
        with self._naming("forward or loss"):
            _expect(torch.equal(states, before), _CHANGED)
            _expect(_sums(self._model.backbone) == weights, "changes the backbone, which other heads share")

    def check_results(self, examples: Sequence[Any], rows: Sequence[Row]) -> list[Any]:
        """Check the results of rows with and without gold answers, of a text without tokens, and what is made of them.

        Args:
            examples: examples with gold answers.
            rows: their rows.

        Returns:
            The results of the examples.
        """
        outputs = self._outputs(examples)
        results = self._decoded(outputs)
        with self._naming("read (of a row without its gold answer)"):
            asked = [self._head.read(without_gold(row, self._head.schema)) for row in rows]
        for result in self._decoded(self._outputs(asked)):
            with self._naming("decode"):
                check_plain(result)
        with self._naming("decode, of a text without tokens,"):
            check_plain(self._head.decode(asked[0], [], []))
        with self._naming("count"):
            counts = [self._head.count(example, result) for example, result in zip(examples, results, strict=True)]
            for one in counts:
                check_counts(one)
        with self._naming("metrics"):
            check_metrics(self._head.metrics(merge(counts)))
            if len(counts) > 1:
                check_merging(self._head, counts)
        self._check_calibration(outputs, results)
        self._check_presenter(examples, results)
        return results

    def _check_calibration(self, outputs: Sequence[HeadOutputs[Any]], results: Sequence[Any]) -> None:
        head = self._head
        with self._naming("calibration"):
            calibration = head.calibration
        if calibration is None:
            return
        with self._naming("calibration"):
            has_field = any(item.name == "temperature" for item in fields(head.config))
            _expect(has_field, f"needs a field temperature in {type(head.config).__name__}")
        with self._naming("calibration.likelihood"):
            cost = calibration.likelihood(outputs).nll(1.0)
            _expect(
                isinstance(cost, Real) and not math.isnan(cost), f"returned {quote(cost)}, expected a number of nats"
            )
        with self._naming("calibration.thresholds"):
            replace(head.config, **calibration.thresholds(outputs))
        with self._naming("calibration.confidences"):
            for one, result in zip(outputs, results, strict=True):
                check_confidences(calibration.confidences(one.example, result))

    def _check_presenter(self, examples: Sequence[Any], results: Sequence[Any]) -> None:
        with self._naming("presenter"):
            presenter = self._head.presenter
        with self._naming("presenter.gold_labels"):
            given = {label for example in examples for label in presenter.gold_labels(example)}
            unknown = sorted(given - {*presenter.labels}) if presenter.labels else []
            _expect(not unknown, f"returned {listing(unknown)}, which `labels` lacks")
        with self._naming("presenter.example_row"):
            row = presenter.example_row()
            _expect(isinstance(row, Mapping), f"returned {quote(row)}, expected the fields of a row")
        with self._naming("presenter.render"):
            for example, result in zip(examples, results, strict=True):
                "".join(text + label for text, label in presenter.render(example, result))

    def _decoded(self, outputs: Sequence[HeadOutputs[Any]]) -> list[Any]:
        with self._naming("decode"):
            return [result_of(self._head, one) for one in outputs]

    def _outputs(self, examples: Sequence[Any]) -> list[HeadOutputs[Any]]:
        model, name = self._model, self._name
        with self._naming("generator" if self._head.generator else "forward"):
            runtime = TorchRuntime(model.graphs(), torch.device("cpu"), outputs=model.outputs)
            engine = Engine({name: self._head}, self._tokenizer, runtime, model.backbone.info)
            return [found[name] for found in engine.outputs({name: example} for example in examples)]


def _expect(is_right: bool, problem: str) -> None:
    if not is_right:
        raise WrongOutputError(problem)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.shape == ()


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _sums(module: torch.nn.Module) -> list[float]:
    """Return a number for each weight that changes with the weight."""
    return [float(weight.sum(dtype=torch.float64)) for weight in module.parameters()]
