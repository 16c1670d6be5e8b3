"""What this machine can do: versions, devices, runtimes and tasks, and their problems."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from nlptasks.errors import BackendError, PluginError, first_line

_PACKAGES = (
    "nlptasks",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "onnx",
    "onnxscript",
    "spacy",
    "scikit-learn",
    "seqeval",
)


def doctor() -> Iterator[str]:
    """Return a line about each part of the installation, as it is found: its version, or what is wrong with it.

    It raises no error: finding broken packages is its purpose.
    """
    yield f"python {platform.python_version()} on {platform.platform()}"
    for section in (_packages, _torch, _onnxruntime, _backbone, _backends, _tasks):
        try:
            yield from section()
        except Exception as error:
            yield f"{section.__name__.strip('_')}: does not work: {first_line(error)}"


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _packages() -> Iterator[str]:
    for package in _PACKAGES:
        found = _installed(package)
        yield f"{package} {found}" if found else f"{package} is missing: pip install {package}"


def _torch() -> Iterator[str]:
    import torch

    from nlptasks.runtimes.pytorch import has_bf16, torch_device

    bf16 = "bf16" if has_bf16(torch_device("auto")) else "no bf16"
    yield f"PyTorch: {torch.get_num_threads()} threads, {bf16} in hardware"
    try:
        yield f"PyTorch: device cuda works ({torch.cuda.get_device_name(torch_device('cuda'))})"
    except BackendError as error:
        yield f"PyTorch: device cuda does not work: {error.problem}"


def _onnxruntime() -> Iterator[str]:
    from nlptasks.runtimes.providers import wheel_conflict, wheels

    installed = ", ".join(f"{name} {found}" for name, found in wheels().items())
    yield f"ONNX Runtime: {installed or 'not installed: pip install onnxruntime'}"
    if conflict := wheel_conflict():
        yield f"  {conflict}"
    if installed:
        yield from _providers()


def _providers() -> Iterator[str]:
    """Return what ONNX Runtime is built with and what really runs; this imports it, which may fail."""
    import onnxruntime

    from nlptasks.runtimes.providers import CUDA_FIX, SMALLEST_GRAPH, cuda_problem, providers_for, quiet

    yield f"  built with {', '.join(onnxruntime.get_available_providers())}"
    with quiet() as options:
        onnxruntime.InferenceSession(SMALLEST_GRAPH, options, providers=providers_for("cpu"))
    yield "  provider CPU works"
    problem = cuda_problem()
    yield f"  provider CUDA does not work: {problem}; {CUDA_FIX}" if problem else "  provider CUDA works"


def _backbone() -> Iterator[str]:
    from nlptasks.backbones.pretrained import embedded_folder

    found = embedded_folder() or "missing, pip install 'nlptasks[minilm]'"
    yield f"embedded backbone minilm: {found}"


def _backends() -> Iterator[str]:
    from nlptasks.registry import backends

    for one in backends().values():
        try:
            one.make()
        except PluginError as error:
            yield str(error)
        else:
            yield f"backend {one.name}: works ({one.package})"


def _tasks() -> Iterator[str]:
    from nlptasks.registry import registered

    for one in registered():
        try:
            one.head_class()
        except PluginError as error:
            yield str(error)
        else:
            yield f"task {one.task}: works ({one.package})"
