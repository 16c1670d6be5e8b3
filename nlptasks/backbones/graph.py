"""A further graph of a network beside `encode`, such as the step of a decoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor, nn

from nlptasks.backbones.backbone import Backbone
from nlptasks.backbones.layer_sharing import Branch
from nlptasks.runtimes.base import GraphSpec


class Graph(nn.Module, ABC):
    """A module from named tensors to named tensors that is exported as a graph of its own.

    Attributes:
        axes: for each input, the axes whose size may change.
        limits: for each integer input, one more than the largest value that it may hold.
        labels: outputs whose last axis has a score for each label or token, so that only the best one must agree.
    """

    axes: Mapping[str, tuple[int, ...]]
    limits: Mapping[str, int] = MappingProxyType({})
    labels: ClassVar[tuple[str, ...]] = ()

    @property
    def base_model(self) -> Any:
        """The Hugging Face model inside whose attention implementation can be changed, or None."""
        return None

    def on(self, backbone: Backbone, branch: Branch | None) -> Graph:
        """Return the graph ready to run. A graph that reads tokens runs the backbone; others ignore it.

        Args:
            backbone: the model's backbone.
            branch: the layers that the head owns, if any.
        """
        return self

    @abstractmethod
    def forward(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs by name."""

    @abstractmethod
    def samples(self) -> list[dict[str, Tensor]]:
        """Return inputs to compare two runtimes on. The graph is traced on the first, where all axes are 2 or longer."""

    def spec(self) -> GraphSpec:
        """Return the sizes and limits of the inputs."""
        sizes = {
            name: tuple(None if axis in self.axes.get(name, ()) else size for axis, size in enumerate(tensor.shape))
            for name, tensor in self.samples()[0].items()
        }
        return GraphSpec(sizes, dict(self.limits))
