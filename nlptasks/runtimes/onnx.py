"""Running exported graphs on ONNX Runtime. Device ``cuda`` means CUDA or an error.

ONNX Runtime falls back to the CPU silently, even if only CUDA was asked for, so the device is read from the session. Tensors stay
on the session's device: the outputs of one graph, such as caches, are passed to the next without a copy.

Neither onnx nor PyTorch is imported, except where a graph is pruned or generation selects rows.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime import OrtValue

from nlptasks.errors import BackendError, OutOfMemoryError, first_line, listing
from nlptasks.runtimes.base import ENCODE_INPUTS, GraphSpec, Tensors, head_in
from nlptasks.runtimes.providers import CPU, CUDA, CUDA_FIX, cuda_problem, providers_for, quiet, usable_device
from nlptasks.types import Floats, Ints

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"

_SLOW_ON_CPU = ["SkipLayerNormFusion", "BiasGeluFusion"]
"""Fusions that are slower than their parts: for 960 tokens of MiniLM, norms took 9.4 ms fused with a sum, and 3 ms apart;
activations 4.1 ms and 3 ms."""

_NO_MEMORY = re.compile("failed to allocate memory|out of memory|bad_alloc|bad allocation|alloc_failed", re.IGNORECASE)
"""Messages of ONNX Runtime, C++ (also on Windows), CUDA and cuBLAS; no exception class says it."""

_NOISE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:|/onnxruntime_src/\S+ .*?\) ")
"""Parts of ONNX Runtime's messages that say nothing to users: status codes, the file again, and places in C++ code."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(int64)": np.dtype(np.int64),
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}
"""Types of the tensors that graphs read and return."""

_CORES = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


class OnnxRuntime:
    """Runs the graphs of an export.

    Args:
        files: the ONNX file of each graph.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: of the export, for messages.
        outputs: for each head of the export the outputs of its network and their axes.
        specs: the inputs of the graphs.
        heads: heads to run; other graphs are not loaded, and `encode` is pruned to these heads. None for all.

    Attributes:
        shares: fraction of the graphs' nodes that each provider runs, before fusion; empty if ONNX Runtime is too old to say.
            Nodes that only compute shapes are on the CPU even if all others are on CUDA.

    Raises:
        BackendError: CUDA was asked for and does not work, or ONNX Runtime cannot open a file.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        *,
        device: str,
        precision: str,
        outputs: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
        specs: Mapping[str, GraphSpec] = MappingProxyType({}),
        heads: Collection[str] | None = None,
    ) -> None:
        wanted = None if heads is None or set(heads) >= outputs.keys() else heads
        needed = {graph: path for graph, path in files.items() if wanted is None or head_in(graph) in {"", *wanted}}
        sessions = _sessions(needed, device, wanted)
        if len({_on_cuda(session) for session in sessions.values()}) > 1:  # one cannot read what the other returns
            sessions = _sessions(needed, "cpu", wanted)
        self.device = "cuda" if all(_on_cuda(session) for session in sessions.values()) else "cpu"
        self.outputs, self._specs = outputs, specs
        self._graphs = {
            graph: _BoundGraph(graph, session, self.device, specs[graph].limits if graph in specs else {})
            for graph, session in sessions.items()
        }
        self.shares = _shares(sessions.values())
        share = f" ({self.shares[CUDA]:.0%} of the nodes)" if CUDA in self.shares else ""
        place = f"CUDA{share}" if self.device == "cuda" else "the CPU"
        self.name = f"ONNX Runtime {precision} on {place}"

    def run(self, graph: str, inputs: Tensors, heads: Sequence[str] | None = None) -> Tensors:
        """Run one graph.

        Args:
            graph: its name.
            inputs: numpy arrays, or outputs of this runtime.
            heads: ignored: ONNX Runtime runs all nodes, whatever outputs are asked for.

        Raises:
            BackendError: an input is missing, of another type or rank, or has a value out of range; or the run fails.
            OutOfMemoryError: the device has too little memory.
        """
        return self._graphs[graph].run(inputs)

    def fetch(self, tensor: OrtValue) -> Floats:
        """Return one output as a numpy array."""
        return np.asarray(tensor.numpy(), dtype=np.float32)

    def take(self, tensor: OrtValue, rows: Ints) -> OrtValue:
        """Return some rows of one output."""
        gather = _row_selection(tensor.element_type(), tensor.data_type(), len(tensor.shape()), self.device)
        taken: OrtValue = gather.run({"tensor": tensor, "rows": rows})["taken"]
        return taken

    def spec(self, graph: str) -> GraphSpec:
        """Return the inputs of a graph."""
        return self._specs[graph]


@dataclass(frozen=True)
class _Input:
    """An input of a graph.

    Attributes:
        name: its name.
        kind: its type, as ONNX Runtime writes it.
        rank: number of axes.
        limit: one more than the largest value, None if it is not limited.
    """

    name: str
    kind: str
    rank: int
    limit: int | None

    def checked(self, value: Any) -> Any:
        """Return a contiguous array, or an output of the runtime as it is.

        Raises:
            BackendError: it has another type or rank, or a value out of range. ONNX Runtime would count negative indices from
                the end, and its own messages name nodes.
        """
        expected = _DTYPES[self.kind]
        if isinstance(value, OrtValue):
            if value.data_type() != self.kind or len(value.shape()) != self.rank:
                raise self._error(
                    f"is {value.data_type()} with {len(value.shape())} axes", f"{expected} with {self.rank}"
                )
            return value
        if not isinstance(value, np.ndarray):
            raise self._error(f"is {type(value).__name__}", f"a numpy array of {expected}")
        if expected.kind == value.dtype.kind == "f":  # an empty cache starts in fp32
            value = value.astype(expected, copy=False)
        if value.dtype != expected:
            raise self._error(f"is of {value.dtype}", f"{expected}")
        if value.ndim != self.rank:
            raise self._error(f"has {value.ndim} axes", f"{self.rank}")
        if self.limit is not None and value.size and not 0 <= value.min() <= value.max() < self.limit:
            raise self._error(f"has values from {value.min()} to {value.max()}", f"0 to {self.limit - 1}")
        return np.ascontiguousarray(value)

    def _error(self, found: str, expected: str) -> BackendError:
        return BackendError(f"input {self.name!r}", f"{found}, expected {expected}", "pass what the graph reads")


class _BoundGraph:
    """A session whose inputs and outputs are on its device.

    Args:
        name: of the graph, for messages.
        session: the session.
        device: ``cpu`` or ``cuda``.
        limits: of its inputs.
    """

    def __init__(
        self, name: str, session: onnxruntime.InferenceSession, device: str, limits: Mapping[str, int]
    ) -> None:
        self._name, self._session, self._device = name, session, device
        self._inputs = {
            value.name: _Input(value.name, value.type, len(value.shape), limits.get(value.name))
            for value in session.get_inputs()
        }
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, given: Tensors) -> dict[str, OrtValue]:
        """Return the outputs by name."""
        self._check_names(given)
        arrays = {name: expected.checked(given[name]) for name, expected in self._inputs.items()}
        try:
            return self._run_bound(arrays)
        except Exception as error:  # the runtime's exceptions have no common class
            where, problem = f"the graph {self._name}", f"fails on the {self._device} ({_message(error)})"
            if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
                raise OutOfMemoryError(where, problem, "use shorter texts, or another `device`") from error
            raise BackendError(where, problem, 'use smaller batches, or `backend="torch"`') from error

    def _run_bound(self, arrays: Mapping[str, Any]) -> dict[str, OrtValue]:
        values = {name: self._placed(value) for name, value in arrays.items()}
        binding = self._session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, self._device)
        self._session.run_with_iobinding(binding)
        return dict(zip(self._outputs, binding.get_outputs(), strict=True))

    def _placed(self, value: Any) -> OrtValue:
        return value if isinstance(value, OrtValue) else OrtValue.ortvalue_from_numpy(value, self._device)

    def _check_names(self, given: Tensors) -> None:
        """Check that the inputs are those of the graph; an input of `encode` that this graph does not read may be there."""
        missing = self._inputs.keys() - given.keys()
        unknown = given.keys() - self._inputs.keys() - set(ENCODE_INPUTS)
        if missing or unknown:
            problem = f"are {listing(sorted(given))}, expected {listing(sorted(self._inputs))}"
            raise BackendError("the inputs", problem, "pass what the graph reads")


@cache
def _row_selection(element: int, kind: str, rank: int, device: str) -> _BoundGraph:
    """Return a graph that selects rows of a tensor of this type and rank on the device where it is."""
    from onnx import TensorProto, helper

    values = [
        helper.make_tensor_value_info("tensor", element, ["rows of it", *map(str, range(1, rank))]),
        helper.make_tensor_value_info("rows", TensorProto.INT64, ["rows"]),
        helper.make_tensor_value_info("taken", element, None),
    ]
    node = helper.make_node("Gather", ["tensor", "rows"], ["taken"], axis=0)
    graph = helper.make_graph([node], "row_selection", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return _BoundGraph("row_selection", _session(model.SerializeToString(), Path(), device), device, {})


def open_session(path: Path, device: str, heads: Collection[str] | None = None) -> onnxruntime.InferenceSession:
    """Return a session of an ONNX file.

    Args:
        path: the file.
        device: ``auto``, ``cpu`` or ``cuda``.
        heads: heads whose outputs are wanted, to which the graph is pruned; None to leave it as it is.

    Raises:
        BackendError: CUDA was asked for and does not work, or ONNX Runtime cannot open the file.
    """
    place = usable_device(device)
    if device == "cuda" != place:
        raise _without_cuda()
    try:
        with _linked_weights(path) as linked:
            session = _session(str(path) if heads is None else _pruned(path, heads), path.parent, place, linked)
    except Exception as error:  # neither ONNX Runtime's exceptions nor protobuf's have a common class
        problem = f"cannot be opened by ONNX Runtime {onnxruntime.__version__} ({_message(error)})"
        raise BackendError(str(path), problem, "export the model again, or upgrade ONNX Runtime") from error
    if device == "cuda" and not _on_cuda(session):
        raise _without_cuda()
    return session


@contextmanager
def _linked_weights(path: Path) -> Iterator[dict[str, mmap]]:
    """Map the weights of a graph if they are a link, as in a cache: ONNX Runtime reads no file outside the graph's folder."""
    weights = path.with_name(f"{path.name}.data")
    if not weights.is_symlink():
        yield {}
        return
    with weights.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        yield {weights.name: content}


def _message(error: Exception) -> str:
    """Return the message of an error of ONNX Runtime in one line, without what only its developers understand."""
    return _NOISE.sub("", first_line(error))[:300]


def _without_cuda() -> BackendError:
    problem = (
        f"ONNX Runtime {onnxruntime.__version__} does not run on CUDA ({cuda_problem() or 'it falls back to the CPU'})"
    )
    return BackendError("device cuda", problem, f'{CUDA_FIX}; or use `device="cpu"`', argument="device")


def _pruned(path: Path, heads: Collection[str]) -> bytes:
    from nlptasks.runtimes.onnx_pruning import pruned  # imports onnx

    return pruned(path, heads)


def _sessions(
    files: Mapping[str, Path], device: str, heads: Collection[str] | None
) -> dict[str, onnxruntime.InferenceSession]:
    """Return a session of each graph; the graphs that belong to no head are pruned."""
    return {graph: open_session(path, device, None if head_in(graph) else heads) for graph, path in files.items()}


def _session(
    content: str | bytes, weights: Path, device: str, linked: Mapping[str, mmap] = MappingProxyType({})
) -> onnxruntime.InferenceSession:
    providers = providers_for(device)
    with quiet() as options:
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(weights.resolve()))
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if linked:
            options.add_external_initializers_from_files_in_memory(
                list(linked), list(linked.values()), [len(content) for content in linked.values()]
            )
        options.intra_op_num_threads = thread_count()
        options.enable_mem_pattern = False  # a plan would be kept for every shape, and shapes vary
        return onnxruntime.InferenceSession(
            content,
            options,
            providers=providers,
            disabled_optimizers=_SLOW_ON_CPU if providers == [CPU] else None,
            enable_fallback=0,  # otherwise it prints an error and uses the CPU
        )


def thread_count() -> int:
    """Return the number of threads that PyTorch would use: the physical cores of this process, or fewer by environment."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = {_core(cpu) for cpu in os.sched_getaffinity(0)}
    given = (os.environ.get(name, "").partition(",")[0] for name in ("MKL_NUM_THREADS", "OMP_NUM_THREADS"))
    limit = next((int(value) for value in given if value.isdecimal() and int(value)), len(cores))
    return min(limit, len(cores))


def _core(cpu: int) -> str:
    """Return a name of the physical core of a logical CPU."""
    try:
        return Path(_CORES.format(cpu)).read_text()
    except OSError:
        return str(cpu)


def _shares(sessions: Iterable[onnxruntime.InferenceSession]) -> dict[str, float]:
    """Return the fraction of all sessions' nodes that each provider runs."""
    counts: Counter[str] = Counter()
    for session in sessions:
        if hasattr(session, "get_provider_graph_assignment_info"):
            for part in session.get_provider_graph_assignment_info():
                counts[part.ep_name] += len(part.get_nodes())
    return {provider: count / counts.total() for provider, count in counts.most_common()}


def _on_cuda(session: onnxruntime.InferenceSession) -> bool:
    return bool(session.get_providers()[0] == CUDA)
