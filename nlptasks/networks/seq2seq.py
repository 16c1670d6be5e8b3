"""Sequence to sequence: a decoder that attends to the hidden states of the backbone and generates text.

Letters for shapes beside the usual: T tokens of a target, N attention heads, D width of a head, V target vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from nlptasks.backbones.graph import Graph
from nlptasks.backbones.info import BackboneInfo
from nlptasks.errors import refusing
from nlptasks.generation.decoder import Decoder
from nlptasks.generation.decoder_init import DecoderInit, FreshDecoder, PretrainedDecoder
from nlptasks.generation.step_graph import StepGraph
from nlptasks.networks.base import Network
from nlptasks.networks.losses import cross_entropy
from nlptasks.runtimes.base import STEP


class Seq2Seq(Network):
    """Generates a text about each window.

    `forward` computes the keys and values of the cross attention; the graph `step` does the rest, token by token.

    Args:
        backbone: the backbone below.
        prompt: tokens that every target starts with; the loss ignores them.
        decoder: config of a fresh decoder as JSON; empty for the decoder of the backbone.
        smoothing: label smoothing, in 0..1.
    """

    targets: Mapping[str, str] = {"labels": "BT"}
    hf_auto = "AutoModelForSeq2SeqLM"

    def __init__(
        self, backbone: BackboneInfo, *, prompt: Sequence[int], decoder: str = "", smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self._init: DecoderInit = FreshDecoder(decoder) if decoder else PretrainedDecoder(backbone)
        problem = f"has the architecture {backbone.architecture}, whose decoder cannot be run token by token"
        with refusing(backbone.source, problem, "use another one, such as T5 or BART"):
            self.decoder = Decoder(self._init.config)
        width = self.decoder.width
        self.bridge = nn.Identity() if width == backbone.width else nn.Linear(backbone.width, width)
        self.outputs = dict.fromkeys(self.decoder.crosses, "BNSD")
        self.own_lr_scale = self._init.lr_scale
        self._prompt, self._smoothing = tuple(prompt), smoothing

    def forward(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.decoder.cross(self.bridge(states), batch["mask"])  # each [B,N,S,D]

    def training_outputs(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``logits`` [B,T,V] of each token of the targets, given those before it."""
        labels = batch["labels"]  # [B,T]
        prompt = labels.new_tensor(self._prompt).expand(len(labels), -1)
        tokens = torch.cat([prompt, labels[:, :-1].clamp(min=0)], 1)
        logits = self.decoder.logits(self.bridge(states), batch["mask"], tokens)
        return {"logits": logits[:, prompt.shape[1] - 1 :]}

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return cross_entropy(outputs["logits"].float(), batch["labels"], smoothing=self._smoothing)

    def graphs(self) -> Mapping[str, Graph]:
        return {STEP: StepGraph(self.decoder)}

    def load_pretrained(self, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        self._init.load(self.decoder.model, weights)

    @property
    def hf_module(self) -> nn.Module | None:
        return self._init.hf_module(self.decoder.model)

    def hf_outputs(self, states: Tensor, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        tokens = batch["ids"].flip(1)  # any tokens
        return {"logits": self.decoder.logits(states, batch["mask"], tokens)}, {"decoder_input_ids": tokens}
