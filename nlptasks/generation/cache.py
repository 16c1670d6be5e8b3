"""The graph `step` as a generator sees it: its cache by name, and how many sources it reads at once. Imports no torch.

Letters for shapes: P rows of the cache, N attention heads, t tokens in the cache, D width of a head.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nlptasks.generation.options import SearchOptions
from nlptasks.runtimes.base import GraphSpec, Tensors

CROSS, PAST, PRESENT = "cross", "past", "present"
"""Kinds of tensors: cross attention, the cache that a step reads, and the cache that it returns."""

MOST_SCORES = 2**25
"""Most scores of tokens that a step returns for several sources: 128 MiB, of which there are a few copies."""


def cache_names(kind: str, layers: int) -> list[str]:
    """Return the names of the keys and values of each layer, such as ``past_key_0``."""
    return [f"{kind}_{part}_{layer}" for layer in range(layers) for part in ("key", "value")]


def empty_cache(spec: GraphSpec) -> dict[str, Any]:
    """Return the empty cache [1,N,0,D] with which a text starts.

    Args:
        spec: inputs of the graph, whose cache has the sizes (None, N, None, D).
    """
    return {
        name: np.zeros((1, sizes[1] or 0, 0, sizes[3] or 0), dtype=np.float32)
        for name, sizes in spec.sizes.items()
        if name.startswith(PAST)
    }


def next_cache(outputs: Tensors) -> dict[str, Any]:
    """Return the cache for the next step from the outputs of a step."""
    return {PAST + name.removeprefix(PRESENT): tensor for name, tensor in outputs.items() if name.startswith(PRESENT)}


def sources_at_once(spec: GraphSpec, options: SearchOptions) -> int:
    """Return how many sources a step reads at once, at least 1.

    Args:
        spec: inputs of the graph, whose tokens are limited by the size of the vocabulary.
        options: options of the search.
    """
    hypotheses = max(options.num_beams, options.num_return_sequences)
    return max(1, MOST_SCORES // (hypotheses * spec.limits["tokens"]))
