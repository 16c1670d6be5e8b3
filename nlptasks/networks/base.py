"""A network: the PyTorch module of a head, from hidden states to outputs and to a loss. It knows no task.

Letters for shapes: B windows in a batch, S tokens, H width of the backbone, C classes, E examples.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from nlptasks.backbones.graph import Graph
from nlptasks.backbones.info import BackboneInfo


class Network(nn.Module, ABC):
    """The layers that one head adds to a backbone. It owns its own tensors only, never a module of the backbone.

    Subclasses take the backbone's info and keyword arguments, which are the head's `network_options`.

    Attributes:
        outputs: the outputs of `forward` and their axes: ``BSC`` for scores of each token, ``BC`` for scores of each window.
        targets: the targets that `loss` reads, and their axes: ``BS`` for one of each token, ``BC`` for a fixed number for
            each window, ``BT`` for a sequence to be written, whose length counts like that of the input.
        lr_scale: default learning rate of the whole run relative to that of networks that judge every token.
        own_lr_scale: default learning rate of this network's weights relative to the backbone's.
        hf_auto: the Hugging Face auto class with the same layers, such as ``AutoModelForTokenClassification``, or None.
    """

    outputs: Mapping[str, str]
    targets: Mapping[str, str]
    lr_scale: ClassVar[float] = 1.0
    own_lr_scale: float = 10.0
    hf_auto: ClassVar[str | None] = None

    @abstractmethod
    def forward(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs for hidden states [B,S,H]; this is what is exported.

        Args:
            states: hidden states of the backbone [B,S,H].
            batch: ``ids``, ``mask`` and perhaps ``types`` [B,S].
        """

    def training_outputs(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs that `loss` reads; those of `forward` by default."""
        return self(states, batch)  # type: ignore[no-any-return]

    @abstractmethod
    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the loss as a sum, and the count that it is a sum over, both scalars.

        Args:
            outputs: what `training_outputs` returned.
            batch: the inputs, the targets, and ``example`` [B], the index of each window's example. All windows of an example
                are in one batch, next to each other.
        """

    def graphs(self) -> Mapping[str, Graph]:
        """Return further graphs by name, such as the step of a decoder."""
        return {}

    def load_pretrained(self, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """Start from pretrained weights, if there are any for this network.

        Args:
            weights: returns all pretrained weights by their names in Hugging Face's base model.

        Raises:
            ModelError: weights that the network needs are missing.
        """

    @property
    def hf_module(self) -> nn.Module | None:
        """The module of `hf_auto` without its base model, or None if this backbone has none that reads hidden states alone."""
        return None

    def hf_outputs(self, states: Tensor, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the outputs of `hf_auto` by its names, and the inputs that it needs beside tokens and mask."""
        return self.training_outputs(states, batch), {}


def network_class(path: str) -> type[Network]:
    """Import a network by module and class, such as ``nlptasks.networks.token_classifier:TokenClassifier``."""
    module, _, name = path.partition(":")
    cls: type[Network] = getattr(importlib.import_module(module), name)
    return cls


def make_network(path: str, backbone: BackboneInfo, options: Mapping[str, Any]) -> Network:
    """Build a network with new weights.

    Args:
        path: module and class.
        backbone: the backbone below.
        options: keyword arguments of the class.
    """
    cls: Any = network_class(path)
    network: Network = cls(backbone, **options)
    return network
