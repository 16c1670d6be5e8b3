"""Sequence classification: scores of classes for a whole text, which may be read in several windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from nlptasks.backbones.info import BackboneInfo
from nlptasks.networks.base import Network
from nlptasks.networks.losses import binary_cross_entropy, cross_entropy, example_means, of_first_windows
from nlptasks.networks.transformers_layers import HuggingFaceLayers


class SequenceClassifier(Network):
    """Labels texts. The logits of a text are the means of those of its windows.

    Its target ``labels`` [L] is the index of the right class (L is 1) or, if texts may have several classes, 1 for each right
    class and 0 for the others (L is C).

    Args:
        backbone: the backbone below.
        classes: number of classes C.
        several: True if a text may have several classes, or none.
        weights: weight of each class in the loss [C]; empty for equal weights.
        smoothing: label smoothing, in 0..1.
    """

    outputs: Mapping[str, str] = {"logits": "BC"}
    targets: Mapping[str, str] = {"labels": "BL"}
    lr_scale = 0.5
    hf_auto = "AutoModelForSequenceClassification"

    def __init__(
        self,
        backbone: BackboneInfo,
        *,
        classes: int,
        several: bool = False,
        weights: Sequence[float] = (),
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers = HuggingFaceLayers(self.hf_auto, backbone, classes=classes, outputs=self.outputs)
        loss = binary_cross_entropy if several else cross_entropy
        self._loss = partial(loss, weights=weights, smoothing=smoothing)

    def forward(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.layers(states, batch["mask"])  # type: ignore[no-any-return]  # [B,C]

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = example_means(outputs["logits"].float(), batch["example"])  # [E,C]
        labels = of_first_windows(batch["labels"], batch["example"])  # [E,L]
        return self._loss(logits, labels)

    def load_pretrained(self, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        self.layers.load_pretrained(weights)

    @property
    def hf_module(self) -> nn.Module | None:
        return self.layers.hf_module
