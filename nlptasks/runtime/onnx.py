"""Running a model's exported graphs on ONNX Runtime, by a device contract: ``cuda`` means CUDA or an error.

ONNX Runtime falls back to the CPU without a word even if CUDA alone was asked for, and lists CUDA as available on machines
without a GPU: so the session itself is asked, after it is made.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from nlptasks.errors import BackendError, first_line
from nlptasks.runtime.cutting import cut
from nlptasks.types import Floats, Ints, Tensors

_WARNING, _FATAL = 2, 4  # the runtime's severities; its default is the first
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class OnnxRuntime:
    """Runs the graphs of an export, cut to what is wanted of them.

    Args:
        files: the ONNX file of each graph.
        wanted: says of an output's name whether it is ever asked for; what only others need is not even loaded.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: of the export, for messages.

    Raises:
        BackendError: CUDA was asked for and does not load, or a file is no usable graph.
    """

    def __init__(
        self, files: dict[str, Path], *, device: str, precision: str, wanted: Callable[[str], bool] = lambda name: True
    ) -> None:
        self._sessions = {graph: open_session(path, device, wanted) for graph, path in files.items()}
        providers = {session.get_providers()[0] for session in self._sessions.values()}
        self._outputs = {
            graph: [out.name for out in session.get_outputs()] for graph, session in self._sessions.items()
        }
        self._inputs = {
            graph: {value.name for value in session.get_inputs()} for graph, session in self._sessions.items()
        }
        self.device = "cuda" if providers == {_CUDA} else "cpu"
        self.name = f"ONNX Runtime {precision} on {'CUDA' if self.device == 'cuda' else 'the CPU'}"

    def run(self, graph: str, inputs: Tensors, heads: Sequence[str] | None = None) -> Tensors:
        """Run one graph on integer arrays, whole: ONNX Runtime leaves no node out for outputs that are not asked for."""
        outputs = self._outputs[graph]
        own = {name: value for name, value in inputs.items() if name in self._inputs[graph]}  # FNet reads no mask
        return dict(zip(outputs, self._sessions[graph].run(outputs, own), strict=True))

    def fetch(self, tensor: Any) -> Floats:
        """One output as a numpy array."""
        return np.asarray(tensor, dtype=np.float32)

    def take(self, tensor: Any, rows: Ints) -> Any:
        """Some rows of one output."""
        return tensor[rows]


def open_session(
    path: Path, device: str, wanted: Callable[[str], bool] = lambda name: True
) -> onnxruntime.InferenceSession:
    """A session on the device that is asked for, for the outputs that are wanted.

    Raises:
        BackendError: CUDA was asked for and does not load, or the file is no usable graph.
    """
    try:
        with _quiet() as options:
            options.add_session_config_entry(_WEIGHTS_FOLDER, str(path.parent.resolve()))
            session = onnxruntime.InferenceSession(cut(path, wanted), options, providers=_wanted_providers(device))
    except Exception as error:  # the runtime's exceptions have no common class
        raise BackendError(
            str(path), f"cannot be opened by ONNX Runtime ({first_line(error)})", "export the model again"
        ) from error
    if device == "cuda" and session.get_providers()[0] != _CUDA:
        raise BackendError(
            "--device cuda",
            f"ONNX Runtime {onnxruntime.__version__} does not load its CUDA provider",
            "run 'nlptasks doctor' for the reason, or take --device cpu",
        )
    return session


def loads_cuda() -> bool:
    """Whether a session really comes to run on CUDA here; what is missing is printed to stdout."""
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    with _quiet() as options:
        session = onnxruntime.InferenceSession(_smallest_graph(), options, providers=[_CUDA, _CPU])
    return bool(session.get_providers()[0] == _CUDA)


def _smallest_graph() -> bytes:
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "smallest", value[:1], value[1:])
    content: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    ).SerializeToString()
    return content


@contextlib.contextmanager
def _quiet() -> Iterator[onnxruntime.SessionOptions]:
    """Options for a session, and no lines of the runtime's own while it is made: what fails is found out by asking it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        yield options
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)


def _has_driver() -> bool:
    """Whether an NVIDIA driver is there at all: without one, trying CUDA only costs time."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _wanted_providers(device: str) -> list[str]:
    if (
        device == "cpu"
        or _CUDA not in onnxruntime.get_available_providers()
        or (device == "auto" and not _has_driver())
    ):
        return [_CPU]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find; the session tells it better
        onnxruntime.preload_dlls()
    return [_CUDA, _CPU]
