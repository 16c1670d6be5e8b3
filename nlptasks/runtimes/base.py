"""The protocol that PyTorch and ONNX Runtime share: the one seam between heads and runtimes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nlptasks.types import Floats, Ints, Window

Tensors = Mapping[str, Any]
"""Named tensors of one runtime; opaque to everybody but that runtime."""


ENCODE = "encode"
"""The graph of the backbone and the `forward` of every head. Inputs: ids, mask, types [B,S]; outputs: ``HEAD.output``."""


ENCODE_INPUTS = ("ids", "mask", "types")
"""The names of its inputs; a backbone may have no use for the last."""


STEP = "step"
"""The graph ``HEAD.step`` of a head that writes: one step of its decoder."""


class Runtime(Protocol):
    """A way to run the graphs of a model, PyTorch or ONNX Runtime: the one seam between heads and runtimes."""

    name: str
    """For messages: ``ONNX Runtime fp32 on the CPU``."""
    device: str
    """``cpu`` or ``cuda``."""

    def run(self, graph: str, inputs: Tensors, heads: Sequence[str] | None = None) -> Tensors:
        """Run one graph on integer arrays.

        Args:
            graph: its name.
            inputs: by name.
            heads: of `encode`, those whose outputs are wanted; what the others alone need may be left out.
        """

    def fetch(self, tensor: Any) -> Floats:
        """One output as a numpy array."""

    def take(self, tensor: Any, rows: Ints) -> Any:
        """Some rows of one output."""


@dataclass(frozen=True)
class Pass:
    """What one run of `encode` gave for one head; the tensors are the runtime's own.

    Attributes:
        head: the head's name, by which its further graphs are run.
        windows: the windows that are the head's, by their row [B].
        mask: 1 for real tokens, 0 for padding [B,S].
        outputs: by the names that the head gives them; none for windows that are continued.
        runtime: what ran it.
    """

    head: str
    windows: Mapping[int, Window]
    mask: Ints
    outputs: Tensors
    runtime: Runtime
