"""Running a model's exported graphs on ONNX Runtime, by a device contract: ``cuda`` means CUDA or an error.

ONNX Runtime falls back to the CPU without a word even if CUDA alone was asked for, and lists CUDA as available on machines
without a GPU: so the session itself is asked, after it is made. Tensors stay on the session's device: what one graph gives
and another takes, as states and caches, is handed on without being copied.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from onnxruntime import OrtValue

from nlptasks.errors import BackendError, OutOfMemoryError, first_line, listing
from nlptasks.runtimes.base import ENCODE_INPUTS, Tensors
from nlptasks.runtimes.onnx_pruning import cut
from nlptasks.runtimes.providers import CPU, CUDA, Provider, cuda_problem, quiet, wanted_providers
from nlptasks.types import Floats, Ints

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"

_SLOW_ON_CPU = ["SkipLayerNormFusion", "BiasGeluFusion"]
"""Fusions that cost more than they save there: of MiniLM, for 960 tokens, norms took 9.4 ms fused with a sum, and 3 apart;
activations 4.1 and 3."""

_NO_MEMORY = re.compile("failed to allocate memory|out of memory|bad_alloc|bad allocation|alloc_failed", re.IGNORECASE)
"""What ONNX Runtime, C++ (there and on Windows), CUDA and cuBLAS say; no error is of a kind of its own."""

_KINDS = {
    "tensor(int64)": TensorProto.INT64,
    "tensor(float)": TensorProto.FLOAT,
    "tensor(float16)": TensorProto.FLOAT16,
}
"""The kinds of tensors that our graphs take and give."""

Limits = Mapping[str, Mapping[str, int]]
"""By graph and input, one more than the largest integer that it may hold: a number of tokens, say."""


class OnnxRuntime:
    """Runs the graphs of an export, cut to what is wanted of them.

    Args:
        files: the ONNX file of each graph.
        wanted: says of an output's name whether it is ever asked for; what only others need is not even loaded.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: of the export, for messages.
        limits: of the graphs' inputs.

    Attributes:
        shares: of the nodes in the files, before the runtime fuses them, the part that each provider runs, by its name; nothing
            if the runtime is too old to say. Those that only compute shapes are on the CPU even where all else is on CUDA.

    Raises:
        BackendError: CUDA was asked for and does not load, or a file is no usable graph.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        *,
        device: str,
        precision: str,
        wanted: Callable[[str], bool] = lambda name: True,
        limits: Limits = MappingProxyType({}),
    ) -> None:
        sessions = {graph: open_session(path, device, wanted) for graph, path in files.items()}
        if len({_on_cuda(session) for session in sessions.values()}) > 1:  # what one gives lies where the other is not
            sessions = {graph: open_session(path, "cpu", wanted) for graph, path in files.items()}
        self.device = "cuda" if all(_on_cuda(session) for session in sessions.values()) else "cpu"
        self._graphs = {
            graph: _Bound(graph, session, self.device, limits.get(graph, {})) for graph, session in sessions.items()
        }
        self.shares = _shares(sessions.values())
        told = f" ({self.shares[CUDA]:.0%} of the nodes)" if CUDA in self.shares else ""
        place = f"CUDA{told}" if self.device == "cuda" else "the CPU"
        self.name = f"ONNX Runtime {precision} on {place}"

    def run(self, graph: str, inputs: Tensors, heads: Sequence[str] | None = None) -> Tensors:
        """Run one graph, whole: ONNX Runtime leaves no node out for outputs that are not asked for.

        Args:
            graph: its name.
            inputs: numpy arrays, or outputs of this runtime.
            heads: not looked at.

        Raises:
            BackendError: an input is missing, of another kind or rank, or holds a number that it may not; or the run fails.
            OutOfMemoryError: it fails because the device has no memory for so much at a time.
        """
        return self._graphs[graph].run(inputs)

    def outputs(self, graph: str) -> set[str]:
        """The names of what a graph gives."""
        return set(self._graphs[graph].outputs)

    def fetch(self, tensor: OrtValue) -> Floats:
        """One output as a numpy array."""
        return np.asarray(tensor.numpy(), dtype=np.float32)

    def take(self, tensor: OrtValue, rows: Ints) -> OrtValue:
        """Some rows of one output."""
        gather = _gathering(tensor.data_type(), len(tensor.shape()), self.device)
        taken: OrtValue = gather.run({"tensor": tensor, "rows": rows})["taken"]
        return taken


@dataclass(frozen=True)
class _Input:
    """What a graph takes by one name."""

    name: str
    element: int
    rank: int
    limit: int | None

    @property
    def kind(self) -> np.dtype[Any]:
        """Of its numbers."""
        kind: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(self.element)
        return kind

    def checked(self, value: Any) -> Any:
        """An array of the graph's kind, or what the runtime gave itself.

        Raises:
            BackendError: it is of another kind or rank, or holds a number that it may not: ONNX Runtime counts negative
                ones from the end, and its own messages speak of nodes.
        """
        if isinstance(value, OrtValue):
            if value.element_type() != self.element or len(value.shape()) != self.rank:
                raise self._error(
                    f"is {value.data_type()} with {len(value.shape())} axes", f"{self.kind} with {self.rank}"
                )
            return value
        if not isinstance(value, np.ndarray):
            raise self._error(f"is {type(value).__name__}", f"a numpy array of {self.kind}")
        if self.kind.kind == value.dtype.kind == "f":  # an empty cache begins in fp32
            value = value.astype(self.kind, copy=False)
        if value.dtype != self.kind:
            raise self._error(f"is of {value.dtype}", f"{self.kind}")
        if value.ndim != self.rank:
            raise self._error(f"has {value.ndim} axes", f"{self.rank}")
        if self.limit is not None and value.size and not 0 <= value.min() <= value.max() < self.limit:
            raise self._error(f"holds {value.min()} to {value.max()}", f"0 to {self.limit - 1}")
        return np.ascontiguousarray(value)

    def _error(self, found: str, expected: str) -> BackendError:
        return BackendError(f"input {self.name!r}", f"{found}, expected {expected}", "give what the graph takes")


class _Bound:
    """A session whose inputs and outputs lie on its device.

    Args:
        name: of the graph, for messages.
        session: the session.
        device: ``cpu`` or ``cuda``.
        limits: of its inputs.

    Attributes:
        outputs: the names of what it gives.

    Raises:
        BackendError: it takes what no graph of ours takes.
    """

    def __init__(
        self, name: str, session: onnxruntime.InferenceSession, device: str, limits: Mapping[str, int]
    ) -> None:
        self._name, self._session, self._device = name, session, device
        strange = [f"{value.name} {value.type}" for value in session.get_inputs() if value.type not in _KINDS]
        if strange:
            problem = f"takes {listing(strange)}, expected {listing(_KINDS)}"
            raise BackendError(f"the graph {name}", problem, "export the model again")
        self._inputs = {
            value.name: _Input(value.name, _KINDS[value.type], len(value.shape), limits.get(value.name))
            for value in session.get_inputs()
        }
        self.outputs = [output.name for output in session.get_outputs()]

    def run(self, given: Tensors) -> dict[str, OrtValue]:
        """The outputs by name."""
        self._check_names(given)
        arrays = {name: expected.checked(given[name]) for name, expected in self._inputs.items()}
        try:
            return self._bound(arrays)
        except Exception as error:  # the runtime's exceptions have no common class
            where, problem = f"the graph {self._name}", f"fails on the {self._device} ({first_line(error)[:300]})"
            if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
                raise OutOfMemoryError(where, problem, "give shorter texts, or take another --device") from error
            raise BackendError(where, problem, "give less at a time, or take --backend torch") from error

    def _bound(self, arrays: Mapping[str, Any]) -> dict[str, OrtValue]:
        """The outputs for inputs that are in order."""
        values = {name: self._placed(value) for name, value in arrays.items()}
        binding = self._session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            binding.bind_output(name, self._device)
        self._session.run_with_iobinding(binding)
        return dict(zip(self.outputs, binding.get_outputs(), strict=True))

    def _placed(self, value: Any) -> OrtValue:
        return value if isinstance(value, OrtValue) else OrtValue.ortvalue_from_numpy(value, self._device)

    def _check_names(self, given: Tensors) -> None:
        """Check the names: all that the graph takes, and no others, but for what a graph `encode` may have no use for."""
        missing = self._inputs.keys() - given.keys()
        unknown = given.keys() - self._inputs.keys() - set(ENCODE_INPUTS)
        if missing or unknown:
            problem = f"are {listing(sorted(given))}, expected {listing(sorted(self._inputs))}"
            raise BackendError("the inputs", problem, "give what the graph takes")


@cache
def _gathering(kind: str, rank: int, device: str) -> _Bound:
    """A graph that takes rows of a tensor of this kind and rank, on the device where it lies."""
    values = [
        helper.make_tensor_value_info("tensor", _KINDS[kind], ["rows of it", *map(str, range(1, rank))]),
        helper.make_tensor_value_info("rows", TensorProto.INT64, ["rows"]),
        helper.make_tensor_value_info("taken", _KINDS[kind], None),
    ]
    node = helper.make_node("Gather", ["tensor", "rows"], ["taken"], axis=0)
    graph = helper.make_graph([node], "gathering", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return _Bound("gathering", _session(model.SerializeToString(), Path(), wanted_providers(device)), device, {})


def open_session(
    path: Path, device: str, wanted: Callable[[str], bool] = lambda name: True
) -> onnxruntime.InferenceSession:
    """A session on the device that is asked for, for the outputs that are wanted.

    Raises:
        BackendError: CUDA was asked for and does not load, or the file is no usable graph.
    """
    content, providers = cut(path, wanted), wanted_providers(device)
    if device == "cuda" and providers == [CPU]:
        raise _without_cuda()
    try:
        session = _session(content, path.parent, providers)
    except Exception as error:  # the runtime's exceptions have no common class
        raise BackendError(
            str(path), f"cannot be opened by ONNX Runtime ({first_line(error)[:300]})", "export the model again"
        ) from error
    if device == "cuda" and not _on_cuda(session):
        raise _without_cuda()
    return session


def _without_cuda() -> BackendError:
    reason, fix = cuda_problem()
    problem = f"ONNX Runtime {onnxruntime.__version__} does not run on CUDA ({reason})"
    return BackendError("--device cuda", problem, f"{fix}, or take --device cpu")


def _session(content: str | bytes, weights: Path, providers: list[Provider]) -> onnxruntime.InferenceSession:
    with quiet() as options:
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(weights.resolve()))
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.intra_op_num_threads = torch.get_num_threads()  # as many as OMP_NUM_THREADS and the like allow
        options.enable_mem_pattern = False  # a plan is kept for every shape that comes by, and shapes vary
        return onnxruntime.InferenceSession(
            content,
            options,
            providers=providers,
            disabled_optimizers=_SLOW_ON_CPU if providers == [CPU] else None,
            enable_fallback=0,  # else it prints what fails, and takes the CPU
        )


def _shares(sessions: Iterable[onnxruntime.InferenceSession]) -> dict[str, float]:
    """Of the nodes of all sessions, the part that each provider runs."""
    counts: Counter[str] = Counter()
    for session in sessions:
        if hasattr(session, "get_provider_graph_assignment_info"):
            for part in session.get_provider_graph_assignment_info():
                counts[part.ep_name] += len(part.get_nodes())
    return {provider: count / counts.total() for provider, count in counts.most_common()}


def _on_cuda(session: onnxruntime.InferenceSession) -> bool:
    return bool(session.get_providers()[0] == CUDA)
