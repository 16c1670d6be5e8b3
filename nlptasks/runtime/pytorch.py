"""Running a model's graphs on PyTorch."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from nlptasks.errors import BackendError
from nlptasks.types import Floats, Tensors

_log = logging.getLogger("nlptasks")


def torch_device(wanted: str) -> torch.device:
    """The device for ``auto``, ``cpu`` or ``cuda``; ``cuda`` means CUDA or an error.

    Raises:
        BackendError: CUDA was asked for and PyTorch cannot use it.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    with warnings.catch_warnings(record=True) as caught:  # PyTorch gives the reason as a warning
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        return torch.device("cuda")
    if wanted == "cuda":
        reason = str(caught[0].message) if caught else ""
        if torch.version.cuda is None:
            reason = f"torch {torch.__version__} is built without CUDA"
        raise BackendError(
            "--device cuda",
            f"PyTorch finds no GPU ({reason or 'no driver or no GPU'})",
            "take --device cpu, or run 'nlptasks doctor'",
        )
    return torch.device("cpu")


class TorchRuntime:
    """Runs the graphs of a module in memory.

    Args:
        graphs: the module of each graph; it is put into evaluation mode and moved to the device.
        device: where to run.
    """

    def __init__(self, graphs: dict[str, nn.Module], device: torch.device) -> None:
        self._graphs = {name: module.eval().to(device) for name, module in graphs.items()}
        self._device = device
        self.name = f"PyTorch on {'the CPU' if device.type == 'cpu' else device}"

    def run(self, graph: str, inputs: Tensors) -> Tensors:
        """Run one graph on integer arrays."""
        moved = {name: torch.as_tensor(value, device=self._device) for name, value in inputs.items()}
        with torch.inference_mode():
            outputs: Tensors = self._graphs[graph](moved)
        return outputs

    def fetch(self, tensor: Any) -> Floats:
        """One output as a numpy array."""
        assert isinstance(tensor, Tensor)
        array: Floats = tensor.float().cpu().numpy()
        return array
