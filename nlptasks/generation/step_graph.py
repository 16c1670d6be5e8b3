"""The graph `step` of a decoder."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from torch import Tensor

from nlptasks.backbones.graph import Graph
from nlptasks.generation.decoder import Decoder

_SIZES = ((2, 3, 4, 5, 7, 8), (1, 1, 1, 0, 1, 2), (3, 1, 1, 0, 1, 9), (2, 4, 1, 3, 8, 7), (2, 1, 3, 10, 2, 5))
"""Sizes G, K, T, t, P, S of the inputs on which two runtimes are compared."""


class StepGraph(Graph):
    """One step of a decoder, see `Decoder.step`."""

    labels = ("logits",)

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.limits = {"tokens": decoder.vocabulary_size, "mask": 2, "rows": sys.maxsize}  # only refuses negative rows
        self.axes = {
            "tokens": (0, 1, 2),
            "rows": (0,),
            "mask": (0, 1),
            **dict.fromkeys([*decoder.crosses, *decoder.past], (0, 2)),
        }

    def forward(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.decoder.step(given)

    def samples(self) -> list[dict[str, Tensor]]:
        return [self._sample(*sizes) for sizes in _SIZES]

    def _sample(self, groups: int, beams: int, new: int, cached: int, rows: int, length: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(groups)
        heads, width = self.decoder.cache_shape
        mask = torch.ones(groups, length, dtype=torch.int64)
        mask[1:, length // 2 :] = 0
        floats = {
            **dict.fromkeys(self.decoder.crosses, (groups, heads, length, width)),
            **dict.fromkeys(self.decoder.past, (rows, heads, cached, width)),
        }
        return {
            "tokens": torch.randint(self.decoder.vocabulary_size, (groups, beams, new), generator=draw),
            "rows": torch.randint(rows, (groups * beams,), generator=draw),
            "mask": mask,
            **{name: torch.randn(shape, generator=draw) for name, shape in floats.items()},
        }
