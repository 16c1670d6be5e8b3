"""Running a model's graphs on PyTorch, in fp32 or with bf16 in its matrix products."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from nlptasks.errors import BackendError, OutOfMemoryError, UsageError, first_line, listing
from nlptasks.runtimes.base import ENCODE, Tensors
from nlptasks.types import Floats, Ints

_NO_MEMORY = ("can't allocate memory", "not enough memory", "could not create a primitive", "could not create a memory")
"""What PyTorch (there and on Windows) and oneDNN say on the CPU, where they raise no error of a kind of its own."""

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

PRECISIONS = tuple(_TYPES)
"""What matrix products may be taken in."""


def open_torch(graphs: Mapping[str, nn.Module], device: str, precision: str = "fp32") -> TorchRuntime:
    """The runtime of a model's graphs, which are good for inference only afterwards.

    Args:
        graphs: by name.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: of `PRECISIONS`.

    Raises:
        UsageError: unknown precision.
        BackendError: the device cannot be had, or has no such numbers.
    """
    if precision not in _TYPES:
        raise UsageError(f"precision {precision!r}", "is unknown to PyTorch's backend", f"take {listing(PRECISIONS)}")
    where, kind = torch_device(device), _TYPES[precision]
    if kind != torch.float32 and not (has_bf16(where) and (where.type != "cpu" or _can_pack())):
        raise BackendError(f"backend torch:{precision}", f"needs what this {where.type} does not have", "take torch")
    if where.type == "cpu":
        for name, graph in graphs.items():
            pack_linears(graph, few_rows=name != ENCODE, kind=kind)
    return TorchRuntime(graphs, where, kind)


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


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 itself, and does not only imitate it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def pack_linears(module: nn.Module, *, few_rows: bool = False, kind: torch.dtype = torch.float32) -> None:
    """Make a module on the CPU good for inference only, and quick: its linear layers go through oneDNN, weights packed.

    PyTorch takes MKL for them otherwise. The results differ by rounding alone (4e-6 for a layer of BERT's sizes). Where it does
    not pay nothing is changed.

    Args:
        module: what is to be packed.
        few_rows: whether it is run on a few tokens at a time, as steps are.
        kind: of the numbers that are multiplied.
    """
    if not _can_pack() or not (few_rows or _packing_pays() or kind != torch.float32):
        return
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear and child.weight.dtype == torch.float32:
                setattr(parent, name, _PackedLinear(child, kind))


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

    def __init__(self, linear: nn.Linear, kind: torch.dtype) -> None:
        super().__init__()
        self._kind = kind
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(kind), None)
        self._bias = None if linear.bias is None else linear.bias.detach().to(kind)
        self.weight = linear.weight.detach().to("meta")  # some architectures look at its type

    def forward(self, x: Tensor) -> Tensor:
        """As the layer that was packed: [..., width in] -> [..., width out]."""
        given = x.contiguous().to(self._kind)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(given, self._packed, self._bias, "none", [], "")
        return result.to(x.dtype)


class TorchRuntime:
    """Runs the graphs of a module in memory.

    Args:
        graphs: the module of each graph; it is put into evaluation mode and moved to the device.
        device: where to run.
        kind: of the numbers that are multiplied.
    """

    def __init__(
        self, graphs: Mapping[str, nn.Module], device: torch.device, kind: torch.dtype = torch.float32
    ) -> None:
        self._graphs = {name: module.eval().to(device) for name, module in graphs.items()}
        self._device, self._kind = device, kind
        self.device = device.type
        precision = next(name for name, known in _TYPES.items() if known == kind)
        shown = "" if kind == torch.float32 else f" {precision}"
        self.name = f"PyTorch{shown} on {'the CPU' if device.type == 'cpu' else device}"

    def run(self, graph: str, inputs: Tensors, heads: Sequence[str] | None = None) -> Tensors:
        """Run one graph on integer arrays, of `encode` what these heads need.

        Raises:
            OutOfMemoryError: the device has no memory for so much at a time.
        """
        module = self._graphs[graph]
        with _memory(f"the graph {graph}"), torch.inference_mode(), self._cast():
            moved = {name: torch.as_tensor(value, device=self._device) for name, value in inputs.items()}
            outputs: Tensors = module(moved) if heads is None else module(moved, heads)
        return outputs

    def _cast(self) -> AbstractContextManager[Any]:
        """On a GPU, where no layer is packed, PyTorch chooses what runs in the smaller numbers."""
        if self._device.type == "cpu" or self._kind == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, self._kind)

    def fetch(self, tensor: Any) -> Floats:
        """One output as a numpy array."""
        assert isinstance(tensor, Tensor)
        with _memory("an output"):
            array: Floats = tensor.float().cpu().numpy()
        return array

    def take(self, tensor: Any, rows: Ints) -> Any:
        """Some rows of one output."""
        assert isinstance(tensor, Tensor)
        with _memory("rows of an output"):
            return tensor[torch.from_numpy(rows).to(tensor.device)]


@contextlib.contextmanager
def _memory(where: str) -> Iterator[None]:
    """PyTorch's errors of too little memory, as ours.

    Raises:
        OutOfMemoryError: there was one.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(said in str(error) for said in _NO_MEMORY):
            raise
        fix = "give shorter texts, or take another --device"
        raise OutOfMemoryError(where, first_line(error)[:300], fix) from error
