"""Running a model's graphs on PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nlptasks.errors import BackendError
from nlptasks.types import Floats, Ints, Tensors


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


def pack_linears(module: nn.Module, *, few_rows: bool = False) -> None:
    """Make a module on the CPU good for inference only, and quick: its linear layers go through oneDNN, weights packed.

    PyTorch takes MKL for them otherwise. The results differ by rounding alone (4e-6 for a layer of BERT's sizes). Where it does
    not pay nothing is changed.

    Args:
        module: what is to be packed.
        few_rows: whether it is run on a few tokens at a time, as steps are.
    """
    if not _can_pack() or not (few_rows or _packing_pays()):
        return
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear and child.weight.dtype == torch.float32:
                setattr(parent, name, _PackedLinear(child))


def _can_pack() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(  # type: ignore[no-untyped-call]
        torch.ops.mkldnn, "_reorder_linear_weight"
    )


def _packing_pays() -> bool:
    """Whether oneDNN is quicker than MKL in fp32, for many rows at a time.

    Of two AMD EPYC it was 2.4 times as quick on the one with AVX-512, and 10 % slower on the one with AVX2 alone. For 8 and 32
    rows it was 1.3 to 5 times as quick on the latter, too.
    """
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


class _PackedLinear(nn.Module):
    """A linear layer whose weight lies in the order that oneDNN reads it in."""

    weight: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self._bias = None if linear.bias is None else linear.bias.detach()
        self.weight = linear.weight.detach().to("meta")  # some architectures look at its type

    def forward(self, x: Tensor) -> Tensor:
        """As the layer that was packed: [..., width in] -> [..., width out]."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), self._packed, self._bias, "none", [], "")
        return result


class TorchRuntime:
    """Runs the graphs of a module in memory.

    Args:
        graphs: the module of each graph; it is put into evaluation mode and moved to the device.
        device: where to run.
    """

    def __init__(self, graphs: dict[str, nn.Module], device: torch.device) -> None:
        self._graphs = {name: module.eval().to(device) for name, module in graphs.items()}
        self._device = device
        self.device = device.type
        self.name = f"PyTorch on {'the CPU' if device.type == 'cpu' else device}"

    def run(self, graph: str, inputs: Tensors, heads: Sequence[str] | None = None) -> Tensors:
        """Run one graph on integer arrays, of `encode` what these heads need."""
        module = self._graphs[graph]
        moved = {name: torch.as_tensor(value, device=self._device) for name, value in inputs.items()}
        with torch.inference_mode():
            outputs: Tensors = module(moved) if heads is None else module(moved, heads)
        return outputs

    def fetch(self, tensor: Any) -> Floats:
        """One output as a numpy array."""
        assert isinstance(tensor, Tensor)
        array: Floats = tensor.float().cpu().numpy()
        return array

    def take(self, tensor: Any, rows: Ints) -> Any:
        """Some rows of one output."""
        assert isinstance(tensor, Tensor)
        return tensor[torch.from_numpy(rows).to(tensor.device)]
