"""Examples to results through the one seam, `Run`: the same for evaluation, the pipeline, the command line and spaCy.

Each distinct source is tokenized and encoded once, whichever heads read it; windows are sorted by length and filled to a token
budget; results come in the order of the examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nlptasks.backbone import BackboneInfo
from nlptasks.batching import collate, length_batches
from nlptasks.heads.base import Head
from nlptasks.tokenizer import Tokenizer
from nlptasks.types import ENCODE, Floats, Reading, Runtime, Source, Window

Item = Mapping[str, Any]
"""For one text, the example of each head that can read it, by the head's name."""

_MULTIPLE, _ROWS = 4, 4
"""Batches are a multiple of 4 tokens long and, above 4 rows, of 4 rows high: runtimes keep something for every shape they meet,
and with few shapes their memory is soon at its end."""

_CHUNK_CHARS = 500_000
"""A chunk ends earlier when its texts are so long together."""

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

    def stream(
        self, items: Iterable[Item], *, first_chunk: int = 1, largest_chunk: int = CHUNK_ITEMS
    ) -> Iterator[dict[str, Any]]:
        """The results of each item by head, lazily, in order.

        Args:
            items: the items.
            first_chunk: items that are taken before the first results are given; each further chunk is twice as large. Who
                waits for all results takes the largest at once: the more are sorted together, the less is padded.
            largest_chunk: items that are taken before results are given, at most.
        """
        for readings in self.readings(items, first_chunk=first_chunk, largest_chunk=largest_chunk):
            yield {name: result_of(self.heads[name], reading) for name, reading in readings.items()}

    def readings(
        self, items: Iterable[Item], *, first_chunk: int = 1, largest_chunk: int = CHUNK_ITEMS
    ) -> Iterator[dict[str, Reading]]:
        """The same before the heads decode it."""
        size = first_chunk
        chunk: list[tuple[Item, dict[str, list[Source]]]] = []
        chars = 0
        for item in items:
            sources = {name: self.heads[name].sources(example) for name, example in item.items()}
            chunk.append((item, sources))
            chars += sum(source.chars for own in sources.values() for source in own)
            if len(chunk) >= size or chars >= _CHUNK_CHARS:
                yield from self._chunk(chunk)
                chunk, chars, size = [], 0, min(2 * size, largest_chunk)
        yield from self._chunk(chunk)

    def _chunk(self, chunk: Sequence[tuple[Item, dict[str, list[Source]]]]) -> Iterator[dict[str, Reading]]:
        distinct = list(dict.fromkeys(source for _, sources in chunk for own in sources.values() for source in own))
        windows = dict(zip(distinct, self.tokenizer.windows(distinct), strict=True))
        outputs = self._encode(windows)
        for item, sources in chunk:
            yield {name: _reading(name, example, sources[name], windows, outputs) for name, example in item.items()}

    def _encode(self, windows: Mapping[Source, list[Window]]) -> dict[Source, list[dict[str, Floats]]]:
        """The outputs for each window of each source, padding cut off."""
        flat = [(source, index, window) for source, own in windows.items() for index, window in enumerate(own)]
        lengths = [-(-len(window) // _MULTIPLE) * _MULTIPLE for _, _, window in flat]  # as they will be padded
        by_token = {
            f"{name}.{key}" for name, head in self.heads.items() for key, axes in head.outputs.items() if axes[1] == "S"
        }
        outputs: dict[Source, list[dict[str, Floats]]] = {source: [{} for _ in own] for source, own in windows.items()}
        for batch in length_batches(lengths, self.batch_tokens, sorted(range(len(flat)), key=lengths.__getitem__)):
            arrays = collate([flat[index][2] for index in _few_sizes(batch)], self.info, multiple=_MULTIPLE)  # [B,S]
            given = self.runtime.run(ENCODE, {name: arrays[name] for name in self.info.inputs})
            for name, tensor in given.items():
                values = self.runtime.fetch(tensor)[: len(batch)]  # [B,S,...]
                for row, index in zip(values, batch, strict=True):
                    source, number, window = flat[index]
                    outputs[source][number][name] = row[: len(window)] if name in by_token else row
        return outputs


def result_of(head: Head, reading: Reading) -> Any:
    """What a head makes of what it read."""
    return head.decode(reading.example, reading.windows, reading.outputs)


def _reading(
    name: str,
    example: Any,
    sources: Sequence[Source],
    windows: Mapping[Source, list[Window]],
    outputs: Mapping[Source, list[dict[str, Floats]]],
) -> Reading:
    prefix = name + "."
    own = [
        {key.removeprefix(prefix): value for key, value in output.items() if key.startswith(prefix)}
        for source in sources
        for output in outputs[source]
    ]
    return Reading(example, [window for source in sources for window in windows[source]], own)


def _few_sizes(batch: list[int]) -> list[int]:
    """The batch, its last row repeated up to a height that is not new."""
    return batch if len(batch) <= _ROWS else batch + batch[-1:] * (-len(batch) % _ROWS)
