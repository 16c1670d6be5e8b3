"""Examples to results through the one seam, `Run`: the same for evaluation, the pipeline, the command line and spaCy.

Each distinct source is tokenized once, and what comes of it encoded once, whichever heads read it; windows are sorted by length
and filled to a token budget; results come in the order of the examples.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nlptasks.backbones.backbone import BackboneInfo
from nlptasks.errors import OutOfMemoryError, UsageError, first_line
from nlptasks.heads.base import Head
from nlptasks.inference.batching import collate, length_batches
from nlptasks.runtimes.base import ENCODE, Pass, Runtime
from nlptasks.text.windowing import Tokenizer
from nlptasks.types import Outputs, Reading, Source, Window

_log = logging.getLogger("nlptasks")

Item = Mapping[str, Any]
"""For one text, the example of each head that can read it, by the head's name."""

_MULTIPLE, _ROWS = 4, 4
"""Batches are a multiple of 4 tokens long and, above 4 rows, of 4 rows high: runtimes keep something for every shape they meet,
and with few shapes their memory is soon at its end."""

_CHUNK_CHARS = 500_000
"""A chunk ends earlier when its texts are so long together."""

BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Tokens in a batch by the kind of device, unless somebody says otherwise."""

CHUNK_ITEMS = 1024
"""Items that are sorted together: enough for batches of equal length, few enough for flat memory."""


@dataclass
class Room:
    """What was found out of a device's memory.

    Attributes:
        tokens: in a batch, for which there is memory as far as is known.
    """

    tokens: int = sys.maxsize


@dataclass(frozen=True)
class Engine:
    """Runs heads over items.

    Attributes:
        heads: the heads, by name.
        tokenizer: the backbone's tokenizer.
        runtime: what runs the graphs.
        info: of the backbone.
        batch_tokens: tokens in a batch, padding included; None for what suits the runtime's device.
        process: the process that it was made in, where its threads live.
        room: how many tokens there is memory for.
    """

    heads: Mapping[str, Head]
    tokenizer: Tokenizer
    runtime: Runtime
    info: BackboneInfo
    batch_tokens: int | None = None
    process: int = field(default_factory=os.getpid)
    room: Room = field(default_factory=Room)

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
        """The same before the heads decode it.

        Raises:
            UsageError: the process was forked after this was made: its threads are not here, and it would wait for them.
        """
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
        if os.getpid() != self.process:
            fix = "open it in the process that uses it, or start processes by spawn"
            raise UsageError("the model", f"was opened in process {self.process}, which was forked since", fix)
        readers: dict[Source, set[str]] = {}
        for _, sources in chunk:
            for name, own in sources.items():
                for source in own:
                    readers.setdefault(source, set()).add(name)
        windows = dict(zip(readers, self.tokenizer.windows(list(readers)), strict=True))
        by_key: dict[_Key, dict[str, Window]] = {}
        for source, cut in windows.items():
            for window in cut:
                for name in readers[source]:
                    by_key.setdefault(_key(window), {}).setdefault(name, window)
        outputs = self._encode(by_key)
        for item, sources in chunk:
            yield {name: _reading(name, example, sources[name], windows, outputs) for name, example in item.items()}

    def _encode(self, by_key: Mapping[_Key, Mapping[str, Window]]) -> dict[_Key, dict[str, Outputs]]:
        """For the tokens of each window, the outputs of the heads that read them; each head has its own window with them."""
        groups: dict[tuple[tuple[str, ...], bool], list[Mapping[str, Window]]] = {}
        for own in by_key.values():
            names = tuple(name for name in self.heads if name in own)
            groups.setdefault((names, own[names[0]].continued), []).append(own)
        outputs: dict[_Key, dict[str, Outputs]] = {key: {} for key in by_key}
        for (names, _), group in groups.items():  # heads that read the same texts run together, and no others with them
            lengths = [-(-len(own[names[0]]) // _MULTIPLE) * _MULTIPLE for own in group]  # as they will be padded
            left = sorted(range(len(group)), key=lengths.__getitem__)
            while left:
                for batch in length_batches(lengths, self._budget(), left):
                    found = self._tried(names, [group[index] for index in batch])
                    if found is None:  # batches have become smaller
                        break
                    for name, collected in found.items():
                        for index, one in zip(batch, collected, strict=True):
                            outputs[_key(group[index][name])][name] = one
                    left = left[len(batch) :]
        return outputs

    def _budget(self) -> int:
        return min(self.batch_tokens or BATCH_TOKENS[self.runtime.device], self.room.tokens)

    def _tried(
        self, names: Sequence[str], batch: Sequence[Mapping[str, Window]]
    ) -> dict[str, Sequence[Outputs]] | None:
        """What `_run` gives; None if the memory does not allow it, after which batches have half as many tokens.

        Raises:
            OutOfMemoryError: it does not even allow a single window.
        """
        try:
            return self._run(names, batch)
        except (OutOfMemoryError, MemoryError) as error:
            longest = max(len(own[names[0]]) for own in batch)
            problem = error.problem if isinstance(error, OutOfMemoryError) else first_line(error)
            if len(batch) == 1:
                fix = "give shorter texts, or take another --device"
                raise OutOfMemoryError(f"a text of {longest} tokens", problem, fix) from error
            self.room.tokens = len(batch) * longest // 2
            _log.warning("%s: batches have %d tokens at most from now on", problem, self.room.tokens)
            return None

    def _run(self, names: Sequence[str], batch: Sequence[Mapping[str, Window]]) -> dict[str, Sequence[Outputs]]:
        """The outputs of some heads for a batch, by the head's name."""
        first = [own[names[0]] for own in batch]
        arrays = collate(_few_sizes(first), self.info, multiple=_MULTIPLE)  # [B,S]
        inputs = {name: arrays[name] for name in self.info.inputs}
        given = {} if first[0].continued else self.runtime.run(ENCODE, inputs, names)
        collected: dict[str, Sequence[Outputs]] = {}
        for name in names:
            head = self.heads[name]
            own = {row: windows[name] for row, windows in enumerate(batch)}
            named = {key: given[f"{name}.{key}"] for key in head.outputs if given}
            collected[name] = head.collect(Pass(name, own, arrays["mask"], named, self.runtime))
        return collected


_Key = tuple[bytes, bytes, bool, bool]
"""What two windows have in common if all heads give the same for both."""


def _key(window: Window) -> _Key:
    return window.ids.tobytes(), window.types.tobytes(), window.opens, window.continued


def result_of(head: Head, reading: Reading) -> Any:
    """What a head makes of what it read."""
    return head.decode(reading.example, reading.windows, reading.outputs)


def _reading(
    name: str,
    example: Any,
    sources: Sequence[Source],
    windows: Mapping[Source, list[Window]],
    outputs: Mapping[_Key, Mapping[str, Outputs]],
) -> Reading:
    own = [window for source in sources for window in windows[source]]
    return Reading(example, own, [outputs[_key(window)][name] for window in own])


def _few_sizes(batch: list[Window]) -> list[Window]:
    """The batch, its last row repeated up to a height that is not new."""
    return batch if len(batch) <= _ROWS else batch + batch[-1:] * (-len(batch) % _ROWS)
