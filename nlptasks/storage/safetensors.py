"""Weights in safetensors files: names and shapes are checked before anything is allocated, values before they are used."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nlptasks.errors import ModelError, first_line, listing

MAX_TENSORS = 10_000
"""Largest number of tensors in a file."""

_MAX_NAMED = 10
_RESTORE = "restore the file from where it was made"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Spec:
    """A tensor in a header.

    Attributes:
        dtype: its type as the format spells it: ``F32``.
        shape: its axes.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


Header = Mapping[str, Spec]
"""The tensors of a file, by name."""


def read_header(path: Path) -> Header:
    """Return the tensors of a file, without reading them.

    Raises:
        ModelError: it cannot be read, or is no safetensors file.
    """
    if not path.is_file():  # opening a pipe would wait for ever
        raise ModelError(str(path), "is missing, or no regular file", _RESTORE)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: Spec(str(one.get_dtype()), tuple(one.get_shape())) for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ModelError(str(path), f"is no usable safetensors file ({first_line(error)})", _RESTORE) from error


def check_header(path: Path, found: Header, expected: Mapping[str, Tensor], *, optional: Container[str] = ()) -> None:
    """Check names, shapes and types of the tensors in a file.

    Args:
        path: the file, for messages.
        found: its header.
        expected: the expected tensors; they may be on the device ``meta``.
        optional: names among them that may be missing.

    Raises:
        ModelError: a tensor is missing, unknown, or has another shape or type.
    """
    lacks = sorted(name for name in expected if name not in found and name not in optional)
    unknown = sorted(name for name in found if name not in expected)
    if lacks or unknown:
        problem = f"lacks {listing(lacks, limit=_MAX_NAMED)}; has unknown {listing(unknown, limit=_MAX_NAMED)}"
        raise ModelError(str(path), problem, _RESTORE)
    wrong = [name for name, spec in found.items() if not _fits(spec, expected[name])]
    if wrong:
        problem = f"has {_described(found[wrong[0]])} for {wrong[0]}, expected {_wanted(expected[wrong[0]])}"
        raise ModelError(str(path), problem + (f", and {len(wrong) - 1} more" if wrong[1:] else ""), _RESTORE)


def _fits(spec: Spec, tensor: Tensor) -> bool:
    dtype = _DTYPES.get(spec.dtype)
    same = dtype is not None and (dtype == tensor.dtype or (dtype.is_floating_point and tensor.is_floating_point()))
    return same and spec.shape == tuple(tensor.shape)


def _described(spec: Spec) -> str:
    return f"{spec.dtype}{list(spec.shape)}"


def _wanted(tensor: Tensor) -> str:
    return f"{'float' if tensor.is_floating_point() else tensor.dtype}{list(tensor.shape)}"


def read_into(path: Path, targets: Mapping[str, Tensor]) -> None:
    """Copy tensors of a file whose header was checked into those of a model.

    Raises:
        ModelError: the file cannot be read, or a value is not finite.
    """
    try:
        with torch.no_grad(), safe_open(path, framework="pt") as file:
            for name, target in targets.items():
                target.copy_(file.get_tensor(name))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ModelError(str(path), f"cannot be read ({first_line(error)})", _RESTORE) from error
    check_finite(targets, where=str(path))


def read_without(path: Path, names: Container[str]) -> dict[str, Tensor]:
    """Return the tensors of a file except some.

    Raises:
        ModelError: the file cannot be read, or a value is not finite.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys() if name not in names}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(str(path), f"cannot be read ({first_line(error)})", _RESTORE) from error
    check_finite(found, where=str(path))
    return found


def check_finite(tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Check that all values are finite.

    Raises:
        ModelError: a value is not.
    """
    wrong = sorted(name for name, tensor in tensors.items() if not _is_finite(tensor))
    if wrong:
        problem = f"has values that are not finite in {listing(wrong, limit=_MAX_NAMED)}"
        raise ModelError(where, problem, "use another copy, or train it again")


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # Much faster than isfinite: a NaN anywhere becomes minimum and maximum.
    values = tensor.detach().float().cpu().numpy()
    return math.isfinite(values.min()) and math.isfinite(values.max())


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a module by name; of tied tensors the first."""
    found = {id(tensor): (name, tensor) for name, tensor in reversed(module.state_dict(keep_vars=True).items())}
    return {name: tensor.detach() for name, tensor in reversed(found.values())}


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a new file.

    Raises:
        OSError: the disk refuses.
    """
    whole = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    try:
        save_file(whole, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(first_line(error)) from error
