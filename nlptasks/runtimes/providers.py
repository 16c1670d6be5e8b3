"""What ONNX Runtime can run on here, and why it cannot run on CUDA.

Nothing here prints, and nothing needs a GPU. ONNX Runtime is imported where it is used: files of two wheels in one folder may
not even import, and just then it must be told which wheels those are.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import platform
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, distributions
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nlptasks.errors import first_line, listing

if TYPE_CHECKING:
    import onnxruntime

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"

Provider = str | tuple[str, dict[str, str]]
"""A provider's name, or name and options."""

Problem = tuple[str, str]
"""Why something cannot be had, and what to do about it."""

_OPTIONS: dict[str, dict[str, str]] = {CUDA: {"arena_extend_strategy": "kSameAsRequested"}}
"""Of a provider. By default GPU memory grows in powers of two and is never given back: lengths that vary fill the GPU."""

_WARNING, _FATAL = 2, 4  # the runtime's severities; its default is the first
_GPU_WHEEL = "onnxruntime-gpu"
_IS_WINDOWS = sys.platform == "win32"
_DRIVER = "nvcuda.dll" if _IS_WINDOWS else "libcuda.so.1"
_PROVIDER_LIBRARY = "onnxruntime_providers_cuda.dll" if _IS_WINDOWS else "libonnxruntime_providers_cuda.so"
_CUDNN = re.compile(r"(?:lib)?cudnn(?:64_|\.so\.)(\d+)")
_NVIDIA_PARTS = ("cublas", "cuda-nvrtc", "cuda-runtime", "cudnn", "cufft", "curand")
_ASSIGNMENT = re.compile(r"""^(\w+) *= *['"](.*)['"] *$""", re.MULTILINE)
_PRELOADING = threading.Lock()


def wanted_providers(device: str) -> list[Provider]:
    """What a session is to run on, best first: CUDA if it is not ruled out, and a session does run there.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
    """
    return [CPU] if device == "cpu" or not loads_cuda() else [(CUDA, _OPTIONS[CUDA]), CPU]


def loads(provider: str) -> bool:
    """Whether a session really comes to run on a provider here."""
    return _session_error(provider) is None


def loads_cuda() -> bool:
    """Whether a session really comes to run on CUDA here; without a driver, trying it only costs time."""
    return has_driver() and loads(CUDA)


def has_driver() -> bool:
    """Whether an NVIDIA driver is there at all."""
    return _library(_DRIVER) is not None


@contextlib.contextmanager
def quiet() -> Iterator[onnxruntime.SessionOptions]:
    """Options for a session, and no lines of the runtime's own while it is made: what fails is found out by asking it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        yield options
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)


def _session_error(provider: str) -> str | None:
    """Why a session does not come to run on a provider; empty where ONNX Runtime takes the CPU without a word."""
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        return "this build does not have it"
    _preload()
    try:
        with quiet() as options:
            session = onnxruntime.InferenceSession(
                smallest_graph(),
                options,
                providers=[(provider, _OPTIONS.get(provider, {}))],
                enable_fallback=0,  # else it prints the error, and takes the CPU
            )
    except Exception as error:  # the runtime's exceptions have no common class
        cuda = re.search(r"CUDA failure \d+: [^;\n]*", str(error))
        return cuda[0].strip() if cuda else first_line(error)
    return None if session.get_providers()[0] == provider else ""


def smallest_graph(*, opset: int = 18, ir_version: int = 10) -> bytes:
    """A graph of one op, which is as old as ONNX: what cannot run it runs nothing."""
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "smallest", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    content: bytes = model.SerializeToString()
    return content


@cache
def _preload() -> None:
    """Load NVIDIA's libraries from their pip packages, which are on no path where they would be looked for."""
    import onnxruntime

    if not hasattr(onnxruntime, "preload_dlls"):
        return
    # It prints what it does not find. Two threads that redirect at once could leave stdout redirected for good.
    with _PRELOADING, contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
        onnxruntime.preload_dlls()


def wheels() -> dict[str, str]:
    """The installed wheels that write into the one folder of ONNX Runtime, each with its version."""
    found: dict[str, str] = {}
    for wheel in distributions():
        name = (wheel.name or "").lower().replace("_", "-")  # a broken package has no name
        if name.startswith(("onnxruntime", "ort-nightly")) and (
            wheel.files is None or any(file.parts[0] == "onnxruntime" for file in wheel.files)
        ):
            found.setdefault(name, wheel.version)
    return dict(sorted(found.items()))


def winner() -> str:
    """The wheel whose files are on disk: each one overwrites those of the others; empty where that is not known."""
    installed = list(wheels())
    return _build_info().get("package_name") or (installed[0] if len(installed) == 1 else "")


def wheel_conflict() -> Problem | None:
    """What is wrong where several wheels write into one folder."""
    installed = wheels()
    if len(installed) < 2:
        return None
    names = " and ".join(f"{name} {version}" for name, version in installed.items())
    kept = _GPU_WHEEL if _GPU_WHEEL in installed else next(name for name in installed if name != "onnxruntime")
    return (
        f"the wheels {names} overwrite each other's files, and those of {winner() or 'an unknown one'} are on disk",
        _reinstall(kept),
    )


def _reinstall(wheel: str) -> str:
    installed = " ".join(wheels())
    return (f"pip uninstall -y {installed}, then " if installed else "") + f"pip install {wheel}"


def _build_info() -> dict[str, str]:
    """What the wheel on disk says of itself: read as text, for the package may not import."""
    spec = find_spec("onnxruntime")
    file = Path(spec.origin).parent / "capi/build_and_package_info.py" if spec and spec.origin else Path()
    return dict(_ASSIGNMENT.findall(file.read_text("utf-8"))) if file.is_file() else {}


@dataclass(frozen=True)
class Part:
    """Something that the CUDA provider needs."""

    name: str
    """What it is, for a message."""
    wanted: str
    """The version that the wheel is built for."""
    found: str | None
    """The version that is here."""


def wanted_cuda() -> str | None:
    """The CUDA version that the wheel on disk is built for; None where it has no CUDA provider."""
    return _build_info().get("cuda_version") or None


def wanted_cudnn() -> str | None:
    """The major version of cuDNN in the names of the libraries that ONNX Runtime looks for."""
    return next((match[1] for name in wanted_libraries() if (match := _CUDNN.match(name))), None)


def wanted_libraries() -> list[str]:
    """Names of the libraries of CUDA and cuDNN that ONNX Runtime looks for; none where that is not known."""
    import onnxruntime

    # No public function says them; the provider's own list of needed libraries leaves out cuDNN, which it loads late.
    names = getattr(onnxruntime, "_get_nvidia_dll_paths", None)
    if names is None or wanted_cuda() is None:
        return []
    with contextlib.suppress(TypeError, ValueError):
        return [path[-1] for path in names(_IS_WINDOWS)]
    return []


def missing_libraries() -> list[str]:
    """Those of the wanted libraries that do not load."""
    _preload()
    return [name for name in wanted_libraries() if _library(name) is None]


def libraries_fix() -> str:
    """How to get the libraries of CUDA and cuDNN for the wheel on disk."""
    wheel, extras = winner() or _GPU_WHEEL, {"cuda", "cudnn"}
    with contextlib.suppress(PackageNotFoundError):
        if extras <= set(distribution(wheel).metadata.get_all("Provides-Extra") or ()):
            return f"pip install '{wheel}[cuda,cudnn]'"  # cuBLAS comes with cuDNN
    number = _major(wanted_cuda() or "")
    suffix = f"-cu{number}" if number < 13 else ""  # since CUDA 13 only cuDNN's package has one
    packages = [f"nvidia-{part}{suffix}" for part in _NVIDIA_PARTS if part != "cudnn"]
    return f"pip install {' '.join([*packages, f'nvidia-cudnn-cu{number}'])}"


def parts() -> list[Part]:
    """Driver, CUDA and cuDNN, required and found; nothing where the wheel has no CUDA provider."""
    wanted = wanted_cuda()
    if wanted is None:
        return []
    return [
        Part("NVIDIA driver for CUDA", str(_major(wanted)), driver_cuda()),
        Part("CUDA", wanted, _runtime_cuda()),
        Part("cuDNN", wanted_cudnn() or "one that is not known", _cudnn()),
    ]


def driver_cuda() -> str | None:
    """The newest CUDA version that the driver can do; None without a driver."""
    return _cuda_version(_DRIVER, "cuDriverGetVersion")


def nvidia_packages() -> dict[str, str]:
    """The installed pip packages that hold parts of CUDA and cuDNN, each with its version."""
    names = re.compile(rf"nvidia-({'|'.join(_NVIDIA_PARTS)})(-cu\d+)?")
    found = {(package.name or "").lower().replace("_", "-"): package.version for package in distributions()}
    return {name: version for name, version in sorted(found.items()) if names.fullmatch(name)}


def _library(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _runtime_cuda() -> str | None:
    name = next((name for name in wanted_libraries() if "cudart" in name), None)
    _preload()
    return _cuda_version(name, "cudaRuntimeGetVersion") if name else None


def _cuda_version(library: str, function: str) -> str | None:
    """The version that one of CUDA's libraries gives for itself."""
    ask = getattr(_library(library), function, None)
    number = ctypes.c_int()
    if ask is None or ask(ctypes.byref(number)) != 0:
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}" if number.value else None


def _cudnn() -> str | None:
    name = next((name for name in wanted_libraries() if _CUDNN.match(name)), None)
    _preload()
    ask = getattr(_library(name), "cudnnGetVersion", None) if name else None
    if ask is None:
        return None
    ask.restype = ctypes.c_size_t
    number = ask()
    return f"{number // 10000}.{number % 10000 // 100}.{number % 100}"


def _major(version: str) -> int:
    number = re.match(r"\d+", version)
    return int(number[0]) if number else 0


def cuda_problem() -> Problem:
    """Why a session does not run on CUDA here, for one that did not; and what to do about it."""
    return next(problem for check in _CHECKS if (problem := check()))


def _lost_cuda() -> Problem | None:
    """The wheel with CUDA is installed, and the files of another one are on disk."""
    import onnxruntime

    lost = CUDA not in onnxruntime.get_available_providers() and _GPU_WHEEL in wheels()
    return wheel_conflict() if lost else None


def _no_provider() -> Problem | None:
    import onnxruntime

    if CUDA in onnxruntime.get_available_providers():
        return None
    reason = f"the wheel {winner() or 'that is installed'} has no CUDA provider"
    if sys.platform in ("linux", "win32") and platform.machine() in ("x86_64", "AMD64"):
        return reason, _reinstall(_GPU_WHEEL)
    return reason, f"take a machine with Linux or Windows on x86_64, for which {_GPU_WHEEL} is made"


def _no_driver() -> Problem | None:
    return None if has_driver() else (f"there is no NVIDIA driver: {_DRIVER} is missing", "install the NVIDIA driver")


def _old_driver() -> Problem | None:
    wanted, found = wanted_cuda(), driver_cuda()
    if wanted is None or found is None or _major(found) >= _major(wanted):  # minor versions are compatible
        return None
    return (
        f"the wheel {winner()} is built for CUDA {wanted}, and the NVIDIA driver can do CUDA {found} at most",
        f"update the NVIDIA driver, or install an {_GPU_WHEEL} that is built for CUDA {_major(found)}",
    )


def _no_library() -> Problem | None:
    """The provider's library does not load: the loader's words name what is missing."""
    import onnxruntime

    _session_error(CUDA)  # ONNX Runtime must have loaded the library first: it needs what is set up for it there
    library = Path(onnxruntime.__file__).parent / "capi" / _PROVIDER_LIBRARY
    if not library.is_file():
        return f"its file {library} is missing", _reinstall(_GPU_WHEEL)
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        missing = missing_libraries()
        named = not missing or any(name in str(error) for name in missing)  # Windows does not name it
        reason = f"the CUDA provider does not load: {error}"
        reason = reason if named else f"{reason}, missing are {listing(missing)}"
        return reason, libraries_fix() if missing else "install what it asks for"
    return None


def _failing_session() -> Problem:
    """All that is known to go wrong was looked for."""
    error = _session_error(CUDA)
    if error is None:
        return "no reason was found: a very small session does run on CUDA", "see in nvidia-smi what memory is free"
    if error:
        return f"a session fails: {error}", "see if nvidia-smi lists a GPU, and what CUDA_VISIBLE_DEVICES hides"
    return (
        "no reason was found: driver and provider load, and yet a session runs on the CPU",
        "call onnxruntime.set_default_logger_severity(0) and see what is logged",
    )


_CHECKS: tuple[Callable[[], Problem | None], ...] = (
    _lost_cuda,
    _no_provider,
    _no_driver,
    _old_driver,
    _no_library,
    _failing_session,
)
"""In the order in which they are to be mended."""
