"""The graph `step` of a head that writes, how a search runs it on whatever runtime there is, and what comes of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from nlptasks.backbones.graph import Graph
from nlptasks.generation.decoder import Decoder
from nlptasks.generation.search import Hypothesis, Listener
from nlptasks.metrics.calibration import checked
from nlptasks.runtimes.base import STEP, Pass
from nlptasks.types import IGNORED, Ints, Outputs

MOST_SCORES = 2**25
"""Scores of tokens that a step gives at most, if that leaves a source: 128 MiB, a few times over."""

_SIZES = ((2, 3, 4, 5, 7, 8), (1, 1, 1, 0, 1, 2), (3, 1, 1, 0, 1, 9), (2, 4, 1, 3, 8, 7), (2, 1, 3, 10, 2, 5))
"""Sizes G, K, T, t, P, S of the inputs by which two ways to run a step are compared."""


class StepGraph(Graph):
    """The graph `step` of a decoder."""

    labels = ("logits",)

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.limits = {"tokens": decoder.vocabulary_size, "mask": 2, "rows": sys.maxsize}  # none from the end
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


class CachedStepper:
    """Runs the steps of a decoder for some rows of a pass, on whatever runtime made it."""

    def __init__(self, passed: Pass, rows: Ints, decoder: Decoder) -> None:
        self._runtime, self._graph, self._decoder = passed.runtime, f"{passed.head}.{STEP}", decoder
        self._fixed: dict[str, Any] = {"mask": passed.mask, **passed.outputs}
        if len(rows) < len(passed.mask):
            self.keep(rows)
        self._cache: dict[str, Any] = {name: empty.numpy() for name, empty in decoder.empty_cache().items()}

    def advance(self, tokens: Ints, rows: Ints) -> Tensor:
        given = {"tokens": tokens, "rows": rows.reshape(-1), **self._fixed, **self._cache}
        outputs = self._runtime.run(self._graph, given)
        self._cache = {
            past: outputs[name] for past, name in zip(self._decoder.past, self._decoder.present, strict=True)
        }
        return torch.from_numpy(checked(self._runtime.fetch(outputs["logits"]))).reshape(*rows.shape, -1)

    def keep(self, groups: Ints) -> None:
        mask = self._fixed.pop("mask")
        self._fixed = {name: self._runtime.take(tensor, groups) for name, tensor in self._fixed.items()}
        self._fixed["mask"] = mask[groups]


def hearer(vocabulary: tokenizers.Tokenizer, listener: Callable[[str], None]) -> Listener:
    """What tells a listener of the tokens of one text, in whole characters."""
    stream = DecodeStream(skip_special_tokens=True)

    def hear(_: int, token: int) -> None:
        piece = stream.step(vocabulary, token)
        if piece:
            listener(piece)

    return hear


def as_outputs(hypotheses: Sequence[Hypothesis]) -> Outputs:
    """The answers to one source, as a head's `collect` gives them."""
    longest = max(len(one.tokens) for one in hypotheses)
    tokens = np.full((len(hypotheses), longest), IGNORED, dtype=np.int64)
    for row, one in zip(tokens, hypotheses, strict=True):
        row[: len(one.tokens)] = one.tokens
    return {
        "tokens": tokens,
        "log_probability": np.array([one.log_probability for one in hypotheses]),
        "ended": np.array([one.ended for one in hypotheses]),
    }


def hypotheses_in(outputs: Outputs) -> list[Hypothesis]:
    """The answers that `as_outputs` was given."""
    return [
        Hypothesis(tuple(int(token) for token in tokens if token != IGNORED), float(log), bool(ended))
        for tokens, log, ended in zip(outputs["tokens"], outputs["log_probability"], outputs["ended"], strict=True)
    ]
