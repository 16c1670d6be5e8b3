"""The precisions that a model can be exported in. onnx is imported when a graph is converted."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

_PRODUCTS = ("MatMul", "Gemm")
"""The operators whose constant weights become int8."""

_FP32_ALWAYS = ("Pow", "ReduceMean", "ReduceSum", "Sqrt", "Reciprocal", "Exp", "Log", "Softmax")
"""Operators that overflow or lose too much in fp16: squares and their sums, which norms compute, and exponentials."""


@dataclass(frozen=True)
class Precision:
    """A precision.

    Attributes:
        name: name for ``--precision``.
        purpose: for people.
        device: the device that it is made for, ``cpu`` or ``cuda``; None for both.
        fusions: execution provider whose fused operators the graph has; None for standard operators, which ONNX Runtime fuses
            itself when it opens them.
        convert: converts an fp32 graph in place, with its weights beside it; None for fp32 itself.
        on_request: True if it is only used when it is named.
    """

    name: str
    purpose: str
    device: str | None
    fusions: str | None
    convert: Callable[[Path], None] | None
    on_request: bool = False

    def suits(self, device: str) -> bool:
        """Return True if it is made for ``cpu`` or ``cuda``."""
        return self.device in (None, device)


def _to_fp16(path: Path) -> None:
    """Convert weights and most operators to fp16. Inputs and outputs stay fp32, except caches."""
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = onnx.load(path)
    ends = [value.name for value in (*model.graph.input, *model.graph.output) if not _is_cache(value.name)]
    with _quiet():
        model = convert_float_to_float16(
            model,
            keep_io_types=ends,
            disable_shape_infer=True,  # the exporters leave the types in the graph
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FP32_ALWAYS],
        )
    _save(model, path)


def _is_cache(name: str) -> bool:
    """Return True for a cache or a state that is attended to, which are as large as everything else that a step reads.

    Of ``HEAD.output`` only the output's name counts.
    """
    from nlptasks.generation.cache import CROSS, PAST, PRESENT  # imports numpy, which listing precisions does not need

    return name.rpartition(".")[2].startswith((CROSS, PAST, PRESENT))


def _to_int8(path: Path) -> None:
    """Convert the weights of matrix products to int8, with a scale for each output; activations are quantized at run time.

    7 of the 8 bits are used: processors with AVX2 only add products in 16 bits, which 8 bits overflow.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    weights = {weight.name for weight in model.graph.initializer}
    known = [value for value in model.graph.value_info if value.name not in weights]  # wrong once weights are converted
    del model.graph.value_info[:]
    model.graph.value_info.extend(known)
    _remove(path)
    with _quiet():
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=list(_PRODUCTS),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
            extra_options={"MatMulConstBOnly": True},
        )


def _save(model: Any, path: Path) -> None:
    import onnx

    _remove(path)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")


def _remove(path: Path) -> None:
    """Remove a graph and its weights: new weights would be appended to the old file."""
    for file in (path, path.with_name(f"{path.name}.data")):
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the converters, whose advice is not for our users; the result is measured."""
    before, handlers = logging.root.manager.disable, logging.root.handlers[:]
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        logging.root.handlers[:] = handlers  # the first message adds one to the root logger


PRECISIONS: Mapping[str, Precision] = MappingProxyType(
    {
        one.name: one
        for one in (
            Precision("fp32", "the model's own numbers, on any device", None, None, None),
            Precision("fp16", "for GPUs", "cuda", "cuda", _to_fp16),
            Precision("int8", "for CPUs", "cpu", None, _to_int8, on_request=True),
        )
    }
)
"""By name."""
