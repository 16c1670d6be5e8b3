"""Span extraction: scores of the start and of the end of a span for every token."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from nlptasks.backbones.info import BackboneInfo
from nlptasks.networks.base import Network
from nlptasks.networks.transformers_layers import HuggingFaceLayers
from nlptasks.types import IGNORED

_LOGITS = {"start": "start_logits", "end": "end_logits"}
"""The output for each target."""


class SpanExtractor(Network):
    """Points to the first and the last token of a span.

    Its targets ``start`` and ``end`` [S] are 1 for one token, 0 for the other tokens at which a span may start or end, and
    `IGNORED` elsewhere.

    Args:
        backbone: the backbone below.
    """

    outputs: Mapping[str, str] = dict.fromkeys(_LOGITS.values(), "BS")
    targets: Mapping[str, str] = dict.fromkeys(_LOGITS, "BS")
    hf_auto = "AutoModelForQuestionAnswering"

    def __init__(self, backbone: BackboneInfo) -> None:
        super().__init__()
        self.layers = HuggingFaceLayers(self.hf_auto, backbone, classes=2, outputs=self.outputs)

    def forward(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.layers(states, batch["mask"])  # type: ignore[no-any-return]  # [B,S] each

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        losses = []
        for target, output in _LOGITS.items():
            gold = batch[target]  # [B,S]
            logits = outputs[output].float().masked_fill(gold == IGNORED, -float("inf"))  # [B,S]
            losses.append(nn.functional.cross_entropy(logits, gold.argmax(dim=1), reduction="none"))  # [B]
        both = torch.cat(losses)  # [2B]
        return both.sum(), torch.tensor(both.numel(), device=both.device)

    def load_pretrained(self, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        self.layers.load_pretrained(weights)

    @property
    def hf_module(self) -> nn.Module | None:
        return self.layers.hf_module
