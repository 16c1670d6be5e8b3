"""A head tried out on a few rows before it is trained: whether its methods give what the contract says.

What a stranger's head does wrong is said here by the name of the method and of its package, and not by an error from within the
library an hour later.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlptasks.config import recorded
from nlptasks.data.datasets import DataSet
from nlptasks.errors import NlptasksError, PluginError, UsageError, first_line, listing, quote
from nlptasks.heads.base import Head
from nlptasks.inference.batching import Unit, collate_units, make_units
from nlptasks.inference.engine import Engine, result_of
from nlptasks.inference.serialization import as_plain
from nlptasks.models.model import IN_BACKBONE, Model
from nlptasks.pipeline import examples_of
from nlptasks.registry import line_in, place_of
from nlptasks.runtimes.base import ENCODE_INPUTS
from nlptasks.runtimes.pytorch import TorchRuntime
from nlptasks.storage.safetensors import own_tensors
from nlptasks.text.windowing import Tokenizer
from nlptasks.training.run_state import Subject
from nlptasks.types import Reading, Row, Source

_EXAMPLES = 2
_CHANGED = "changes the states, which other heads read; let it take a copy (no operation in place)"
_TAKEN = (*ENCODE_INPUTS, "example")
"""Names in a batch that are the library's."""


class _WrongError(Exception):
    """What a method gives is not what it should give."""


@contextmanager
def attributed(task: str, method: str) -> Iterator[None]:
    """Name the head's method, and its package, in which something goes wrong; errors of ours say what is wrong themselves.

    Raises:
        PluginError: something went wrong.
    """
    try:
        yield
    except (NlptasksError, MemoryError, torch.OutOfMemoryError):
        raise
    except _WrongError as error:
        raise PluginError(place_of(task), f"{method} {error}", "repair or uninstall the package") from None
    except Exception as error:
        fix = "repair or uninstall the package; --debug shows the traceback"
        line = line_in(error, task)
        raise PluginError(
            place_of(task), f"{method} failed{line and f' at {line}'} ({first_line(error)})", fix
        ) from error


def configured(task: str, cls: type[Head], data: DataSet, options: Mapping[str, Any]) -> Any:
    """The config of a head for its training rows.

    Raises:
        PluginError: its package is at fault.
    """
    with attributed(task, "configure"):
        config = cls.configure(data.parts["train"], options)
        _expect(isinstance(config, cls.Config), f"gave {quote(config)}, expected a {cls.Config.__name__}")
        json.dumps(recorded(config))  # as it will be written in the end
    return config


def read_gold(task: str, head: Head, rows: Sequence[Row]) -> list[Any]:
    """The examples of rows that must have gold answers, the first of which are tried out.

    Raises:
        DataError: a row is wrong.
        PluginError: the head's package is at fault.
    """
    with attributed(task, "read"):
        examples = head.read_gold(rows)
    with attributed(task, "gold"):
        for example in examples[:_EXAMPLES]:
            hash(head.gold(example))
    with attributed(task, "sources"):
        for example in examples[:_EXAMPLES]:
            found = head.sources(example)
            _expect(_all_of(found, Source), f"gave {quote(found)}, expected a list of Source")
    return examples


def units_of(task: str, head: Head, tokenizer: Tokenizer, examples: Sequence[Any]) -> list[Unit]:
    """The examples with their windows and features, which are arrays of numbers.

    Raises:
        PluginError: the head's package is at fault.
    """
    with attributed(task, "features"):
        units = make_units(head, tokenizer, examples)
        counts: dict[str, tuple[int, Any]] = {}
        for unit in units:
            for window, features in zip(unit.windows, unit.features, strict=True):
                if not isinstance(features, Mapping):
                    raise _WrongError(f"gave {quote(features)}, expected a dict of arrays")
                for name, values in features.items():
                    _check_feature(name, values)
                    count, kind = counts.setdefault(name, (len(values), values.dtype))
                    if len(values) not in (count, len(window)) and name not in head.target_features:
                        problem = f"gave {len(values)} numbers as {name} for a window of {len(window)} tokens"
                        raise _WrongError(
                            f"{problem}, and {count} for another; expected one a token, or always as many"
                        )
                    if values.dtype != kind:
                        raise _WrongError(f"gave {name} once as {kind} and once as {values.dtype}, expected one kind")
    return units


def _check_feature(name: str, values: Any) -> None:
    if name in _TAKEN:
        raise _WrongError(f"gave {name}, which is the library's own; call it otherwise")
    if not isinstance(values, np.ndarray):
        raise _WrongError(f"gave {quote(values)} as {name}, expected an array [S] of int64 or float32")
    if values.ndim != 1 or values.dtype not in (np.int64, np.float32):
        shape = ", ".join(map(str, values.shape))
        raise _WrongError(f"gave {name} as [{shape}] of {values.dtype}, expected [S] of int64 or float32")


def try_out(model: Model, subject: Subject, tokenizer: Tokenizer, *, task: str) -> None:
    """Run a new head on the first examples, and check all that it gives.

    Args:
        model: with the head in it; it is in evaluation mode afterwards.
        subject: what the head is to learn.
        tokenizer: the backbone's.
        task: the head's.

    Raises:
        PluginError: a method fails, or gives something else than the contract says.
    """
    trial = _Trial(model.eval(), subject, tokenizer, task)
    with attributed(task, "__init__"):
        taken = sorted(name for name in own_tensors(subject.head) if name.startswith(IN_BACKBONE))
        _expect(
            not taken,
            f"keeps tensors named {listing(taken, limit=2)}; a head holds no backbone, call its own part otherwise",
        )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        trial.check_tensors()
        if not subject.head.graphs():  # to write texts takes a while
            trial.check_results()


class _Trial:
    def __init__(self, model: Model, subject: Subject, tokenizer: Tokenizer, task: str) -> None:
        self._model, self._subject, self._tokenizer, self._task = model, subject, tokenizer, task
        self._head = subject.head
        self._units = subject.units[:_EXAMPLES]
        self._examples = [subject.examples["train"][unit.index] for unit in self._units]

    def check_tensors(self) -> None:
        """Outputs and loss, and that nothing is changed that others read."""
        name = self._subject.name
        with attributed(self._task, "features"):
            arrays = collate_units(self._units, self._model.backbone.info)
        batch = {key: torch.from_numpy(array) for key, array in arrays.items()}  # each [B,...]
        states = self._model.states(name, batch)  # [B,S,H]
        before, weights = states.clone(), _sums(self._model.backbone)
        with attributed(self._task, "forward"):
            outputs = self._head(states, batch)
            self._check_outputs(outputs, states)
            _expect(torch.equal(states, before), _CHANGED)
        with attributed(self._task, "loss"), torch.enable_grad():
            found = self._head.loss(states.requires_grad_(), batch)
            is_right = isinstance(found, tuple) and len(found) == 2 and all(map(_is_scalar, found))
            _expect(
                is_right, f"gave {quote(found)}, expected two scalar tensors: a sum, and the count it is a sum over"
            )
            _expect(
                found[0].requires_grad, "gave a sum that nothing can be learned from: it is cut off from the states"
            )
            total = float(found[0].detach())
            _expect(math.isfinite(total), f"gave the sum {total}, expected a finite number")
        with attributed(self._task, "forward or loss"):
            _expect(torch.equal(states, before), _CHANGED)
            _expect(_sums(self._model.backbone) == weights, "changes the backbone, which other heads share")

    def _check_outputs(self, outputs: Any, states: Tensor) -> None:
        declared = self._head.outputs
        _expect(isinstance(outputs, Mapping), f"gave {type(outputs).__name__}, expected a dict of tensors")
        _expect(set(outputs) == set(declared), f"gave {listing(outputs)}, and `outputs` says {listing(declared)}")
        sizes = dict(zip("BSH", states.shape, strict=True))
        for name, axes in declared.items():
            shape = tuple(outputs[name].shape)
            same = len(shape) == len(axes) and all(
                sizes.setdefault(axis, size) == size for axis, size in zip(axes, shape, strict=True)
            )
            wanted = ",".join(f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in axes)
            _expect(same, f"gave {name} of the shape {list(shape)}, and `outputs` says {axes} ({wanted})")
            _expect(not outputs[name].isnan().any(), f"gave {name} that are no numbers (nan)")

    def check_results(self) -> None:
        """Results of rows with gold answers and their metrics, and results of rows without, of which one has no tokens."""
        name = self._subject.name
        with attributed(self._task, "collect"):
            readings = self._readings(self._examples)
        with attributed(self._task, "decode"):
            results = [result_of(self._head, reading) for reading in readings]
        with attributed(self._task, "read (of a row without its gold answer)"):
            asked = [
                examples_of({name: self._head}, self._subject.rows["train"][unit.index])[0] for unit in self._units
            ]
            _expect(all(asked), "refuses the row, as it is given for prediction")
        with attributed(self._task, "decode"):
            self._check_plain(
                [result_of(self._head, reading) for reading in self._readings([one[name] for one in asked])]
            )
        with attributed(self._task, "decode, of a text without tokens,"):
            self._check_plain([self._head.decode(asked[0][name], [], [])])
        with attributed(self._task, "metrics"):
            found = self._head.metrics(self._examples, results)
            main = self._head.main_metric
            if not isinstance(found, Mapping) or main not in found:
                raise _WrongError(f"gave {quote(found)}, without {main}, the main metric")
            wrong = {metric: value for metric, value in found.items() if not _is_finite(value)}
            _expect(not wrong, f"gave {quote(wrong)}, expected finite numbers")

    def _readings(self, examples: Sequence[Any]) -> list[Reading]:
        """What the passes over examples give."""
        name, info = self._subject.name, self._model.backbone.info
        runtime = TorchRuntime(self._model.graphs(), torch.device("cpu"))
        engine = Engine({name: self._head}, self._tokenizer, runtime, info)
        return [found[name] for found in engine.readings({name: example} for example in examples)]

    def _check_plain(self, results: Sequence[Any]) -> None:
        """Results are plain data: they are written as JSON, and go along with documents."""
        for result in results:
            try:
                as_plain(result)
            except UsageError as error:
                raise _WrongError(f"gave {quote(result)}, which {error.problem}; {error.fix}") from error


def _expect(is_right: bool, problem: str) -> None:
    if not is_right:
        raise _WrongError(problem)


def _all_of(items: Any, kind: type) -> bool:
    return isinstance(items, Sequence) and all(isinstance(item, kind) for item in items)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.shape == ()


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _sums(module: torch.nn.Module) -> list[float]:
    """A number for each weight, which is another one if the weight is."""
    return [float(weight.sum(dtype=torch.float64)) for weight in module.parameters()]
