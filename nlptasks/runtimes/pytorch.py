"""Running a model's graphs on PyTorch, in fp32 or with matrix products in bf16."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from nlptasks.errors import BackendError, OutOfMemoryError, first_line
from nlptasks.runtimes.base import GraphSpec, Tensors, head_in
from nlptasks.types import Floats, Ints

_NO_MEMORY = ("can't allocate memory", "not enough memory", "could not create a primitive", "could not create a memory")
"""Messages of PyTorch (also on Windows) and oneDNN on the CPU, where they raise no exception of a class of its own."""

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def open_torch(
    graphs: Mapping[str, nn.Module],
    device: str,
    precision: str = "fp32",
    *,
    outputs: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> TorchRuntime:
    """Return a runtime of graphs, which can only be used for inference afterwards.

    Args:
        graphs: the module of each graph.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: of matrix products: ``fp32`` or ``bf16``.
        outputs: for each head the outputs of its network and their axes.

    Raises:
        BackendError: the device is not available, or does not support the precision.
    """
    where, dtype = torch_device(device), _TYPES[precision]
    if dtype != torch.float32 and not (has_bf16(where) and (where.type != "cpu" or _can_pack())):
        problem = f"{precision} is not supported by this {'CPU' if where.type == 'cpu' else 'GPU'}"
        raise BackendError(f"backend torch:{precision}", problem, 'use `backend="torch"`', argument="backend")
    if where.type == "cpu":
        for name, graph in graphs.items():
            pack_linears(graph, few_rows=bool(head_in(name)), dtype=dtype)
    return TorchRuntime(graphs, where, dtype, outputs=outputs)


def torch_device(wanted: str) -> torch.device:
    """Return the device for ``auto``, ``cpu`` or ``cuda``; ``cuda`` means CUDA or an error.

    Raises:
        BackendError: CUDA was asked for and does not work.
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
            "device cuda",
            f"PyTorch finds no GPU ({reason or 'no driver or no GPU'})",
            """use `device="cpu"`, or run 'nlptasks doctor'""",
            argument="device",
        )
    return torch.device("cpu")


def has_bf16(device: torch.device) -> bool:
    """Return True if a device supports bf16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def pack_linears(module: nn.Module, *, few_rows: bool = False, dtype: torch.dtype = torch.float32) -> None:
    """Pack the weights of linear layers for oneDNN on the CPU, which makes a module faster and good for inference only.

    PyTorch uses MKL otherwise. The results differ only by rounding (4e-6 for a layer of BERT's sizes). Nothing is changed where
    packing does not pay.

    Args:
        module: the module.
        few_rows: True if it runs on a few tokens at a time, as the step of a decoder does.
        dtype: in which to multiply.
    """
    if not _can_pack() or not (few_rows or _packing_pays() or dtype != torch.float32):
        return
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear and child.weight.dtype == torch.float32:
                setattr(parent, name, _PackedLinear(child, dtype))


def _can_pack() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(  # type: ignore[no-untyped-call]
        torch.ops.mkldnn, "_reorder_linear_weight"
    )


def _packing_pays() -> bool:
    """Return True if oneDNN is faster than MKL in fp32, for many rows at a time.

    Of two AMD EPYC, it was 2.4 times as fast on the one with AVX-512, and 10 % slower on the one with AVX2 only. For 8 and 32
    rows it was 1.3 to 5 times as fast on the latter, too.
    """
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


class _PackedLinear(nn.Module):
    """A linear layer whose weight is in oneDNN's own order."""

    weight: Tensor

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype), None)
        self._bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.weight = linear.weight.detach().to("meta")  # some architectures read its dtype

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., output width] for [..., input width]."""
        given = x.contiguous().to(self._dtype)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(given, self._packed, self._bias, "none", [], "")
        return result.to(x.dtype)


class TorchRuntime:
    """Runs modules in memory.

    Args:
        graphs: the module of each graph; it is put into evaluation mode and moved to the device.
        device: where to run.
        dtype: in which to multiply.
        outputs: for each head the outputs of its network and their axes.
    """

    def __init__(
        self,
        graphs: Mapping[str, nn.Module],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        outputs: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    ) -> None:
        self._graphs = {name: module.eval().to(device) for name, module in graphs.items()}
        self._device, self._dtype = device, dtype
        self._specs: dict[str, GraphSpec] = {}
        self.device, self.outputs = device.type, outputs
        precision = next(name for name, known in _TYPES.items() if known == dtype)
        shown = "" if dtype == torch.float32 else f" {precision}"
        self.name = f"PyTorch{shown} on {'the CPU' if device.type == 'cpu' else device}"

    def run(self, graph: str, inputs: Tensors, heads: Sequence[str] | None = None) -> Tensors:
        """Run one graph on integer arrays or own tensors; of `encode` only what these heads need.

        Raises:
            OutOfMemoryError: the device has too little memory.
        """
        module = self._graphs[graph]
        with _memory(f"the graph {graph}"), torch.inference_mode(), self._cast():
            moved = {name: torch.as_tensor(value, device=self._device) for name, value in inputs.items()}
            outputs: Tensors = module(moved) if heads is None else module(moved, heads)
        return outputs

    def _cast(self) -> AbstractContextManager[Any]:
        """On a GPU no layer is packed, and PyTorch chooses what runs in the smaller type."""
        if self._device.type == "cpu" or self._dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, self._dtype)

    def fetch(self, tensor: Any) -> Floats:
        """Return one output as a numpy array."""
        assert isinstance(tensor, Tensor)
        with _memory("an output"):
            array: Floats = tensor.float().cpu().numpy()
        return array

    def take(self, tensor: Any, rows: Ints) -> Any:
        """Return some rows of one output."""
        assert isinstance(tensor, Tensor)
        with _memory("rows of an output"):
            return tensor[torch.from_numpy(rows).to(tensor.device)]

    def spec(self, graph: str) -> GraphSpec:
        """Return the inputs of a graph other than `encode`."""
        if graph not in self._specs:
            module: Any = self._graphs[graph]
            self._specs[graph] = module.spec()
        return self._specs[graph]


@contextlib.contextmanager
def _memory(where: str) -> Iterator[None]:
    """Turn PyTorch's errors of too little memory into ours.

    Raises:
        OutOfMemoryError: there was one.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(said in str(error) for said in _NO_MEMORY):
            raise
        fix = "use shorter texts, or another `device`"
        raise OutOfMemoryError(where, first_line(error)[:300], fix) from error
