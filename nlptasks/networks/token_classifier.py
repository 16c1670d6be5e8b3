"""Token classification: scores of classes for every token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from nlptasks.backbones.info import BackboneInfo
from nlptasks.networks.base import Network
from nlptasks.networks.losses import cross_entropy
from nlptasks.networks.transformers_layers import HuggingFaceLayers


class TokenClassifier(Network):
    """Labels tokens.

    Args:
        backbone: the backbone below.
        classes: number of classes C.
        weights: weight of each class in the loss [C]; empty for equal weights.
        smoothing: label smoothing, in 0..1.
    """

    outputs: Mapping[str, str] = {"logits": "BSC"}
    targets: Mapping[str, str] = {"labels": "BS"}
    hf_auto = "AutoModelForTokenClassification"

    def __init__(
        self, backbone: BackboneInfo, *, classes: int, weights: Sequence[float] = (), smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = HuggingFaceLayers(self.hf_auto, backbone, classes=classes, outputs=self.outputs)
        self._weights, self._smoothing = weights, smoothing

    def forward(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.layers(states, batch["mask"])  # type: ignore[no-any-return]  # [B,S,C]

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = outputs["logits"].float()  # [B,S,C]
        return cross_entropy(logits, batch["labels"], weights=self._weights, smoothing=self._smoothing)

    def load_pretrained(self, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        self.layers.load_pretrained(weights)

    @property
    def hf_module(self) -> nn.Module | None:
        return self.layers.hf_module
