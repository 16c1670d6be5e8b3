"""A further graph beside `encode`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor, nn

from nlptasks.backbones.backbone import Backbone
from nlptasks.backbones.layer_sharing import Branch


class Graph(nn.Module, ABC):
    """A further graph of a head, from named tensors to named tensors; traced for export."""

    axes: Mapping[str, tuple[int, ...]]
    """For each input, the axes whose length may change."""
    limits: Mapping[str, int] = MappingProxyType({})
    """For inputs that are integers, one more than the largest number that each may hold."""
    labels: ClassVar[tuple[str, ...]] = ()
    """The outputs whose last axis has a score for each label or token, of which the best one is taken."""

    @property
    def trunk(self) -> Any:
        """The part of it whose attention can be another one, if it runs a backbone."""
        return None

    def on(self, backbone: Backbone, branch: Branch | None) -> Graph:
        """The graph as it runs: one that reads tokens by the backbone gives itself with it; others are complete.

        Args:
            backbone: the model's.
            branch: the layers that the head owns, if it does.
        """
        return self

    @abstractmethod
    def forward(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The named outputs."""

    @abstractmethod
    def samples(self) -> list[dict[str, Tensor]]:
        """Inputs to compare two ways to run it. It is traced on the first: there, the axes are 2 or more long."""
