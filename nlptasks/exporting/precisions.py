"""The precisions that a model can be exported in: what each is made of, and what it is for."""

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
"""Operators that overflow or lose too much in fp16: squares and their sums, as norms take them, and what has an exponential."""


@dataclass(frozen=True)
class Precision:
    """A precision.

    Attributes:
        name: as ``--precision`` and ``--backend onnx:NAME`` have it.
        purpose: for people.
        device: what it is made for, ``cpu`` or ``cuda``; None for both.
        fusions: of the execution provider whose fused operators the graph has; None for the standard's operators, which
            the runtime fuses itself when it opens them.
        convert: turns a graph in fp32 into one of this precision, weights beside it, in the file's place.
        on_request: whether it is taken only if it is named.
    """

    name: str
    purpose: str
    device: str | None
    fusions: str | None
    convert: Callable[[Path], None] | None
    on_request: bool = False


def _to_fp16(path: Path) -> None:
    """Weights and most operators in fp16; what the graph takes and gives stays fp32, but for what steps hand on."""
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = onnx.load(path)
    ends = [value.name for value in (*model.graph.input, *model.graph.output) if not _handed_on(value.name)]
    with _quiet():
        model = convert_float_to_float16(
            model,
            keep_io_types=ends,
            disable_shape_infer=True,  # the exporters leave the types in the graph
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FP32_ALWAYS],
        )
    _save(model, path)


def _handed_on(name: str) -> bool:
    """Whether this is of a cache or of what is attended to: as large as everything else that a step reads.

    Of ``HEAD.output`` the head's name, which may be anything, does not count.
    """
    return name.rpartition(".")[2].startswith(("past_", "present_", "cross_"))


def _to_int8(path: Path) -> None:
    """Weights of matrix products in int8, a scale for each output; what they are multiplied with is quantized as it comes.

    7 bits of the 8 are used: processors with AVX2 alone add products in 16 bits, which 8 bits overflow.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    weights = {weight.name for weight in model.graph.initializer}
    known = [value for value in model.graph.value_info if value.name not in weights]  # stale once weights are turned
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
    """Remove a graph and its weights: what is written over them would be appended."""
    for file in (path, path.with_name(f"{path.name}.data")):
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without advice of the converters that is not for our users; what came of it is measured."""
    before, handlers = logging.root.manager.disable, logging.root.handlers[:]
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        logging.root.handlers[:] = handlers  # the first remark to the root logger gives it one


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
