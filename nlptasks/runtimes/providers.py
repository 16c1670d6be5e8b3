"""The execution providers of ONNX Runtime that work on this machine, and why CUDA does not."""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
import threading
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distributions
from typing import TYPE_CHECKING

from nlptasks.errors import first_line, listing

if TYPE_CHECKING:
    import onnxruntime

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"

Provider = str | tuple[str, dict[str, str]]
"""A provider's name, or its name and options."""

CUDA_FIX = "install NVIDIA's driver and: pip install 'onnxruntime-gpu[cuda,cudnn]'"
"""How to make ONNX Runtime run on CUDA."""

_CUDA_OPTIONS = {"arena_extend_strategy": "kSameAsRequested"}
"""By default GPU memory grows in powers of two and is never given back, so that texts of many lengths fill the GPU."""

_GPU_WHEEL, _CPU_WHEEL = "onnxruntime-gpu", "onnxruntime"
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_WARNING, _FATAL = 2, 4  # severities of ONNX Runtime's log; the first is its default
_PRELOADING = threading.Lock()

SMALLEST_GRAPH = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
"""An ONNX file with one node ``Identity``, which every version reads."""


def usable_device(device: str) -> str:
    """Return ``cpu`` or ``cuda``: what ONNX Runtime uses for ``auto``, ``cpu`` or ``cuda``."""
    return "cpu" if device == "cpu" or cuda_problem() else "cuda"


def providers_for(device: str) -> list[Provider]:
    """Return the providers of a session on ``cpu`` or ``cuda``, the preferred one first."""
    return [CPU] if device == "cpu" else [(CUDA, _CUDA_OPTIONS), CPU]


def cuda_problem() -> str | None:
    """Return why ONNX Runtime does not run on CUDA, or None if it does."""
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return f"there is no NVIDIA driver ({_DRIVER} is missing)"
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():
        return f"the installed package has no CUDA provider (installed: {listing(wheels())})"
    missing = _preload()
    try:
        with quiet() as options:
            session = onnxruntime.InferenceSession(
                SMALLEST_GRAPH, options, providers=providers_for("cuda"), enable_fallback=0
            )
    except Exception as error:  # the runtime's exceptions have no common class
        return first_line(error)
    if session.get_providers()[0] == CUDA:
        return None
    return missing or "its CUDA provider does not load"


@contextlib.contextmanager
def quiet() -> Iterator[onnxruntime.SessionOptions]:
    """Return options for a session that is created in the block, where ONNX Runtime logs nothing."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        yield options
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)


@cache
def _preload() -> str:
    """Load NVIDIA's libraries from their pip packages, and return what ONNX Runtime says about those that are missing."""
    import onnxruntime

    said = io.StringIO()
    # Two threads that redirect at once could leave stdout redirected for good.
    with _PRELOADING, contextlib.redirect_stdout(said), contextlib.suppress(Exception):
        onnxruntime.preload_dlls()
    return next((line for line in said.getvalue().splitlines() if line.strip()), "")


def wheels() -> dict[str, str]:
    """Return the installed packages that contain ONNX Runtime, with their versions."""
    names = ("onnxruntime", "ort-nightly")
    found = {(one.name or "").lower().replace("_", "-"): one for one in distributions()}  # a broken package has no name
    return {
        name: one.version
        for name, one in sorted(found.items())
        if name.startswith(names) and (one.files is None or any(file.parts[0] == "onnxruntime" for file in one.files))
    }


def wheel_conflict() -> str | None:
    """Return what is wrong if several packages contain ONNX Runtime: they overwrite each other's files."""
    installed = wheels()
    if len(installed) < 2:
        return None
    kept = next(name for name in (_GPU_WHEEL, *installed) if name in installed and name != _CPU_WHEEL)
    return (
        f"{' and '.join(installed)} overwrite each other's files; "
        f"pip uninstall -y {' '.join(installed)}, then pip install {kept}"
    )
