"""The protocol between heads and what runs their graphs, PyTorch or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nlptasks.types import Floats, Ints, Outputs, Window

Tensors = Mapping[str, Any]
"""Tensors of one runtime by name; only that runtime looks inside."""

ENCODE = "encode"
"""The graph of the backbone and all networks. Inputs: ids, mask, types [B,S]. Outputs: ``HEAD.output``."""

ENCODE_INPUTS = ("ids", "mask", "types")
"""Names of its inputs; a backbone may not read the last."""

STEP = "step"
"""The graph ``HEAD.step`` of a head that generates text: one step of its decoder."""


def head_in(name: str) -> str:
    """Return the head in the name of a graph or of an output, ``HEAD.name``; empty if it belongs to no head."""
    head, dot, _ = name.partition(".")
    return head if dot else ""


@dataclass(frozen=True)
class GraphSpec:
    """The inputs of a graph.

    Attributes:
        sizes: for each input the sizes of its axes, None for an axis whose size may change.
        limits: for each integer input, one more than the largest value that it may hold.
    """

    sizes: Mapping[str, tuple[int | None, ...]]
    limits: Mapping[str, int]


class Runtime(Protocol):
    """A model's graphs, ready to run on one device.

    Attributes:
        name: name for people, such as ``ONNX Runtime fp32 on the CPU``.
        device: ``cpu`` or ``cuda``.
        outputs: for each head the outputs of its network and their axes, such as ``{"ner": {"logits": "BSC"}}``.
    """

    name: str
    device: str
    outputs: Mapping[str, Mapping[str, str]]

    def run(self, graph: str, inputs: Tensors, heads: Sequence[str] | None = None) -> Tensors:
        """Run one graph.

        Args:
            graph: its name.
            inputs: integer arrays, or tensors of this runtime, by name.
            heads: for `ENCODE`, the heads whose outputs are needed; None for all.
        """

    def fetch(self, tensor: Any) -> Floats:
        """Return one output as a numpy array."""

    def take(self, tensor: Any, rows: Ints) -> Any:
        """Return some rows of one output."""

    def spec(self, graph: str) -> GraphSpec:
        """Return the inputs of a graph other than `ENCODE`."""


@dataclass(frozen=True)
class EncodedBatch:
    """The outputs of one head for one batch; the tensors belong to the runtime.

    Attributes:
        head: the head's name; its further graphs are run as ``HEAD.graph``.
        windows: the head's windows by their row in the batch [B].
        mask: 1 for tokens, 0 for padding [B,S].
        outputs: tensors by name; empty for windows that are not encoded.
        runtime: what ran the batch.
    """

    head: str
    windows: Mapping[int, Window]
    mask: Ints
    outputs: Tensors
    runtime: Runtime

    def fetched(self) -> list[Outputs]:
        """Return the outputs of each window as arrays without padding."""
        axes = self.runtime.outputs[self.head]
        arrays = {name: self.runtime.fetch(tensor) for name, tensor in self.outputs.items()}  # [B,...]
        return [
            {
                name: array[row, : len(window)] if axes[name][1:2] == "S" else array[row]
                for name, array in arrays.items()
            }
            for row, window in self.windows.items()
        ]


@dataclass(frozen=True)
class ExportedGraphs:
    """The ONNX graphs of a model in one precision.

    Attributes:
        precision: of the weights, such as ``fp32``.
        files: the file of each graph; its weights are beside it.
        outputs: for each head the outputs of its network and their axes.
        specs: the inputs of each graph.
        unverified_reason: why the answers may differ from PyTorch's, None if they were compared.
    """

    precision: str
    files: Mapping[str, Path]
    outputs: Mapping[str, Mapping[str, str]]
    specs: Mapping[str, GraphSpec]
    unverified_reason: str | None = None


@dataclass(frozen=True)
class ExportState:
    """Whether an export may be chosen automatically for some heads on a device.

    Attributes:
        precision: of its weights.
        auto_skip_reason: why it may not, None if it may.
    """

    precision: str
    auto_skip_reason: str | None


class ModelSource(Protocol):
    """A model, or some heads of it, that a backend can open; nothing is loaded before a backend asks for it."""

    @property
    def where(self) -> str:
        """Its name for messages."""

    @property
    def heads(self) -> Sequence[str]:
        """Names of the heads to run."""

    def graphs(self) -> Mapping[str, Any]:
        """Return the PyTorch module of each graph."""

    def outputs(self) -> Mapping[str, Mapping[str, str]]:
        """Return the outputs of the networks of `graphs` and their axes, by the head's name."""

    def export_states(self, device: str) -> list[ExportState]:
        """Return the state of each export, those that are made for the device ``cpu`` or ``cuda`` first."""

    def exported(self, precision: str) -> ExportedGraphs:
        """Return the export in a precision, once its files have been checked.

        Raises:
            ModelError: there is none, or it is damaged or older than the model.
            UsageError: the model cannot have exports.
        """


@dataclass(frozen=True)
class Choice:
    """What a backend offers for a model when no precision is named.

    Attributes:
        precision: the precision to open; None if the backend should not be chosen automatically.
        reasons: why exports that exist are not chosen, one line each.
    """

    precision: str | None
    reasons: Sequence[str] = ()


class Backend(Protocol):
    """A way to run models, registered as an entry point of the group ``nlptasks.backends``.

    Attributes:
        name: value of the argument `backend`; a precision may follow after a colon.
        precisions: precisions that may be named; the first is the default.
        priority: ``auto`` asks backends with a higher priority first.
        needs_export: True if it opens exported graphs, False if it opens PyTorch modules.
    """

    name: str
    precisions: Sequence[str]
    priority: int
    needs_export: bool

    def choose(self, source: ModelSource, device: str) -> Choice:
        """Return the precision to use for a model when none is named."""

    def open(self, source: ModelSource, precision: str, device: str) -> Runtime:
        """Open a model.

        Args:
            source: the model and the heads to run.
            precision: one of `precisions`.
            device: ``auto``, ``cpu`` or ``cuda``.

        Raises:
            ModelError: the model has no such export.
            UsageError: the model cannot be opened by this backend.
            BackendError: the device or the precision is not available.
        """
