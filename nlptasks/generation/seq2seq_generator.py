"""Generator of a sequence-to-sequence head: searches for the answers to a batch of encoded sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tokenizers
import torch
from torch import Tensor

from nlptasks.errors import UsageError
from nlptasks.generation.cache import empty_cache, next_cache, sources_at_once
from nlptasks.generation.hypotheses import Hypothesis, as_outputs
from nlptasks.generation.options import SearchOptions, SpecialTokens
from nlptasks.generation.search import search
from nlptasks.generation.streaming import token_streamer
from nlptasks.metrics.calibration import checked
from nlptasks.runtimes.base import STEP, EncodedBatch, GraphSpec
from nlptasks.types import Ints, Outputs


class Seq2SeqGenerator:
    """Generates a text about each encoded window.

    Args:
        vocabulary: the target vocabulary.
        special: its special tokens.
        options: options of the search.
        longest: tokens that the decoder has positions for after the prompt; None if that is not limited.
        in_windows: True if a long text is read in several windows, so that it cannot be streamed.
    """

    def __init__(
        self,
        vocabulary: tokenizers.Tokenizer,
        special: SpecialTokens,
        options: SearchOptions,
        *,
        longest: int | None,
        in_windows: bool,
    ) -> None:
        self._vocabulary, self._special, self._in_windows = vocabulary, special, in_windows
        self._options = options if longest is None else options.within(longest)

    def run(self, batch: EncodedBatch, streamer: Callable[[str], None] | None) -> list[Outputs]:
        """Return the hypotheses for each window, see `as_outputs`.

        Raises:
            UsageError: a text with several windows is streamed, or several hypotheses are.
        """
        windows = batch.windows
        if streamer and self._in_windows and not all(one.opens and one.closes for one in windows.values()):
            problem = "is windows, and a text that is streamed has several"
            raise UsageError("long_texts", problem, "use truncate to stream long texts")
        spec = batch.runtime.spec(f"{batch.head}.{STEP}")
        size = 1 if streamer else sources_at_once(spec, self._options)
        rows = np.array(list(windows))
        found: list[list[Hypothesis]] = []
        for start in range(0, len(rows), size):
            own = rows[start : start + size]
            found += search(
                CachedStepper(batch, own, spec),
                sources=[windows[row].ids for row in own.tolist()],
                special=self._special,
                options=self._options,
                streamer=token_streamer(self._vocabulary, streamer) if streamer else None,
            )
        return [as_outputs(hypotheses) for hypotheses in found]


class CachedStepper:
    """Runs the steps of a decoder for some rows of a batch, on the runtime that encoded it.

    Args:
        batch: the batch.
        rows: its rows that are used.
        spec: the inputs of the graph.
    """

    def __init__(self, batch: EncodedBatch, rows: Ints, spec: GraphSpec) -> None:
        self._runtime, self._graph = batch.runtime, f"{batch.head}.{STEP}"
        self._fixed: dict[str, Any] = {"mask": batch.mask, **batch.outputs}
        if len(rows) < len(batch.mask):
            self.keep(rows)
        self._cache = empty_cache(spec)

    def advance(self, tokens: Ints, rows: Ints) -> Tensor:
        given = {"tokens": tokens, "rows": rows.reshape(-1), **self._fixed, **self._cache}
        outputs = self._runtime.run(self._graph, given)
        self._cache = next_cache(outputs)
        return torch.from_numpy(checked(self._runtime.fetch(outputs["logits"]))).reshape(*rows.shape, -1)

    def keep(self, groups: Ints) -> None:
        mask = self._fixed.pop("mask")
        self._fixed = {name: self._runtime.take(tensor, groups) for name, tensor in self._fixed.items()}
        self._fixed["mask"] = mask[groups]
