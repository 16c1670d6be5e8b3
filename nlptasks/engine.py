"""Examples to results through the one seam, `Run`: the same for evaluation, the pipeline, the command line and spaCy.

Each distinct source is tokenized and encoded once, whichever heads read it; windows are sorted by length and filled to a token
budget; results come in the order of the examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from nlptasks.backbone import BackboneInfo
from nlptasks.batching import collate, length_batches
from nlptasks.heads.base import Head
from nlptasks.tokenizer import Tokenizer
from nlptasks.types import ENCODE, Floats, Runtime, Source, Window

Item = Mapping[str, Any]
"""For one text, the example of each head that can read it, by the head's name."""

_MULTIPLE = 8
"""Lengths of batches are multiples of this many tokens."""

CHUNK_ITEMS = 1024
"""Items that are sorted together: enough for batches of equal length, few enough for flat memory."""


@dataclass(frozen=True)
class Engine:
    """Runs heads over items.

    Attributes:
        heads: the heads, by name.
        tokenizer: the backbone's tokenizer.
        runtime: what runs the graphs.
        info: of the backbone.
        batch_tokens: tokens in a batch, padding included.
    """

    heads: Mapping[str, Head]
    tokenizer: Tokenizer
    runtime: Runtime
    info: BackboneInfo
    batch_tokens: int

    def stream(self, items: Iterable[Item], *, largest_chunk: int = CHUNK_ITEMS) -> Iterator[dict[str, Any]]:
        """The results of each item by head, lazily, in order.

        Args:
            items: the items.
            largest_chunk: items that are taken before their results are given. The first chunks are smaller in any case,
                so that first answers come soon.
        """
        waiting = iter(items)
        size = 1
        while chunk := list(islice(waiting, size)):
            yield from self._chunk(chunk)
            size = min(2 * size, largest_chunk)

    def _chunk(self, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
        sources = [{name: self.heads[name].sources(example) for name, example in item.items()} for item in items]
        distinct = list(dict.fromkeys(source for item in sources for own in item.values() for source in own))
        windows = dict(zip(distinct, self.tokenizer.windows(distinct), strict=True))
        outputs = self._encode(windows)
        for item, own_sources in zip(items, sources, strict=True):
            yield {
                name: self._decode(name, example, own_sources[name], windows, outputs) for name, example in item.items()
            }

    def _decode(
        self,
        name: str,
        example: Any,
        sources: Sequence[Source],
        windows: Mapping[Source, list[Window]],
        outputs: Mapping[Source, list[dict[str, Floats]]],
    ) -> Any:
        prefix = name + "."
        own = [
            {key.removeprefix(prefix): value for key, value in output.items() if key.startswith(prefix)}
            for source in sources
            for output in outputs[source]
        ]
        return self.heads[name].decode(example, [window for source in sources for window in windows[source]], own)

    def _encode(self, windows: Mapping[Source, list[Window]]) -> dict[Source, list[dict[str, Floats]]]:
        """The outputs for each window of each source, padding cut off."""
        flat = [(source, index, window) for source, own in windows.items() for index, window in enumerate(own)]
        lengths = [-(-len(window) // _MULTIPLE) * _MULTIPLE for _, _, window in flat]  # as they will be padded
        by_token = {
            f"{name}.{key}" for name, head in self.heads.items() for key, axes in head.outputs.items() if axes[1] == "S"
        }
        outputs: dict[Source, list[dict[str, Floats]]] = {source: [{} for _ in own] for source, own in windows.items()}
        for batch in length_batches(lengths, self.batch_tokens, sorted(range(len(flat)), key=lengths.__getitem__)):
            arrays = collate([flat[index][2] for index in batch], self.info, multiple=_MULTIPLE)  # [B,S]
            given = self.runtime.run(ENCODE, {name: arrays[name] for name in self.info.inputs})
            for name, tensor in given.items():
                values = self.runtime.fetch(tensor)  # [B,S,...]
                for row, index in zip(values, batch, strict=True):
                    source, number, window = flat[index]
                    outputs[source][number][name] = row[: len(window)] if name in by_token else row
        return outputs
