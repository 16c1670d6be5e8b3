"""Generator of a causal head: searches for the continuations of a batch of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
import torch
from torch import Tensor

from nlptasks.generation.cache import empty_cache, next_cache, sources_at_once
from nlptasks.generation.hypotheses import as_outputs
from nlptasks.generation.options import SearchOptions, SpecialTokens
from nlptasks.generation.search import search
from nlptasks.generation.streaming import token_streamer
from nlptasks.metrics.calibration import checked
from nlptasks.runtimes.base import STEP, EncodedBatch, GraphSpec
from nlptasks.types import Ints, Outputs, Window


class CausalGenerator:
    """Continues the windows that are not encoded, and returns the outputs of those that are.

    Args:
        vocabulary: the backbone's vocabulary.
        end: the tokens that end a text.
        options: options of the search.
        longest: most tokens that there is room for.
    """

    def __init__(
        self, vocabulary: tokenizers.Tokenizer, end: tuple[int, ...], options: SearchOptions, *, longest: int
    ) -> None:
        self._vocabulary, self._special = vocabulary, SpecialTokens(prompt=(), end=end)
        self._options = options.within(longest)

    def run(self, batch: EncodedBatch, streamer: Callable[[str], None] | None) -> list[Outputs]:
        """Return the outputs of each window, or its hypotheses, see `as_outputs`.

        Raises:
            UsageError: several hypotheses are streamed.
        """
        if batch.outputs:
            return batch.fetched()
        windows, options = batch.windows, self._options
        spec = batch.runtime.spec(f"{batch.head}.{STEP}")
        size = 1 if streamer else sources_at_once(spec, options)
        found: dict[int, Outputs] = {}
        for group in _groups(windows, by_length=options.no_repeat_ngram_size > 0):
            for start in range(0, len(group), size):
                rows = group[start : start + size]
                prompts = [windows[row].ids for row in rows]
                stepper = PromptStepper(batch, prompts, spec)
                hypotheses = search(
                    stepper,
                    sources=prompts,
                    special=self._special,
                    options=options,
                    streamer=token_streamer(self._vocabulary, streamer) if streamer else None,
                    prompts=stepper.prompts,
                )
                found |= zip(rows, map(as_outputs, hypotheses), strict=True)
        return [found[row] for row in windows]


class PromptStepper:
    """Runs the steps after some prompts. Shorter prompts are padded in front with their own first token, which is masked.

    Args:
        batch: the batch, which has the runtime.
        prompts: the tokens of each prompt.
        spec: the inputs of the graph.

    Attributes:
        prompts: the padded prompts [G,L].
    """

    def __init__(self, batch: EncodedBatch, prompts: Sequence[Ints], spec: GraphSpec) -> None:
        self._runtime, self._graph = batch.runtime, f"{batch.head}.{STEP}"
        longest = max(map(len, prompts))
        self.prompts = np.stack([np.pad(ids, (longest - len(ids), 0), mode="edge") for ids in prompts])
        self._new = np.stack([np.arange(longest) >= longest - len(ids) for ids in prompts]).astype(np.int64)
        self._mask = self._new[:, :0]
        self._cache: dict[str, Any] = empty_cache(spec)
        self._has_own_rows = False  # True once each hypothesis of a prompt has a row of its own in the cache

    def advance(self, tokens: Ints, rows: Ints) -> Tensor:
        beams = tokens.shape[1]
        is_first = not self._mask.shape[1]
        if is_first:  # all hypotheses are equal: one is read
            tokens, rows = tokens[:, :1], rows[:, :1]
        elif not self._has_own_rows:
            rows, self._has_own_rows = rows // beams, True
        new = self._new if is_first else np.ones((len(tokens), tokens.shape[2]), dtype=np.int64)
        given = {"tokens": tokens, "rows": rows.reshape(-1), "mask": self._mask, "new": new, **self._cache}
        outputs = self._runtime.run(self._graph, given)
        self._mask = np.concatenate([self._mask, new], 1)
        self._cache = next_cache(outputs)
        logits = torch.from_numpy(checked(self._runtime.fetch(outputs["logits"])))  # [R,V]
        return logits.reshape(*rows.shape, -1).expand(-1, beams, -1)

    def keep(self, groups: Ints) -> None:
        self._mask = self._mask[groups]


def _groups(windows: Mapping[int, Window], *, by_length: bool) -> list[list[int]]:
    """Return the rows that are continued together: only those of one length if padding would count as generated."""
    groups: dict[int, list[int]] = {}
    for row, window in windows.items():
        groups.setdefault(len(window) if by_length else 0, []).append(row)
    return list(groups.values())
