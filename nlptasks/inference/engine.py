"""Examples to results on any runtime: evaluation, the pipeline, training and spaCy all run through here.

Each distinct input is tokenized once and encoded once, whichever heads read it. Windows are sorted by length and fill a token
budget. Results come in the order of the examples.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nlptasks.backbones.info import BackboneInfo
from nlptasks.errors import OutOfMemoryError, UsageError, first_line
from nlptasks.heads.base import Head, Streamer
from nlptasks.inference.batching import collate, length_batches
from nlptasks.runtimes.base import ENCODE, EncodedBatch, Runtime
from nlptasks.text.windows import Tokenizer
from nlptasks.types import HeadOutputs, ModelInput, Outputs, Window

_log = logging.getLogger("nlptasks")

Item = Mapping[str, Any]
"""The examples of one row, by the names of the heads that can read it."""

_MULTIPLE, _ROWS = 4, 4
"""Batches are a multiple of 4 tokens long and, above 4 rows, of 4 rows high: runtimes allocate something for every new shape."""

_CHUNK_CHARS = 500_000
"""A chunk ends earlier if its texts have this many characters together."""

BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Default tokens in a batch by device."""

CHUNK_ITEMS = 1024
"""Items that are sorted together: enough for batches of equal length, few enough for flat memory."""


@dataclass
class MemoryBudget:
    """The largest batch that fits the device's memory.

    Attributes:
        tokens: its tokens; unlimited until a batch has not fitted.
    """

    tokens: int = sys.maxsize


@dataclass(frozen=True)
class Engine:
    """Runs heads on items.

    Attributes:
        heads: the heads by name.
        tokenizer: the backbone's tokenizer.
        runtime: what runs the graphs.
        info: facts about the backbone.
        batch_tokens: tokens in a batch with padding; None for the default of the runtime's device.
        process: id of the process that created it, where its threads live.
        memory: how many tokens fit the device.
    """

    heads: Mapping[str, Head[Any, Any, Any]]
    tokenizer: Tokenizer
    runtime: Runtime
    info: BackboneInfo
    batch_tokens: int | None = None
    process: int = field(default_factory=os.getpid)
    memory: MemoryBudget = field(default_factory=MemoryBudget)

    def stream(
        self,
        items: Iterable[Item],
        *,
        first_chunk: int = 1,
        largest_chunk: int = CHUNK_ITEMS,
        streamer: Streamer | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Return the results of each item by head, lazily, in order.

        Args:
            items: the items.
            first_chunk: items read before the first results are returned; each further chunk is twice as large. A caller that
                waits for all results passes the largest: the more items are sorted together, the less is padded.
            largest_chunk: the most items read before results are returned.
            streamer: receives the text of a single item while it is generated.
        """
        chunks = self.outputs(items, first_chunk=first_chunk, largest_chunk=largest_chunk, streamer=streamer)
        for found in chunks:
            yield {name: result_of(self.heads[name], outputs) for name, outputs in found.items()}

    def outputs(
        self,
        items: Iterable[Item],
        *,
        first_chunk: int = 1,
        largest_chunk: int = CHUNK_ITEMS,
        streamer: Streamer | None = None,
    ) -> Iterator[dict[str, HeadOutputs[Any]]]:
        """Return the same before the heads decode it.

        Raises:
            UsageError: the process was forked after this was created: its threads are not here, and it would wait for them.
        """
        size = first_chunk
        chunk: list[tuple[Item, dict[str, list[ModelInput]]]] = []
        chars = 0
        for item in items:
            inputs = {name: self.heads[name].inputs(example) for name, example in item.items()}
            chunk.append((item, inputs))
            chars += sum(one.chars for own in inputs.values() for one in own)
            if len(chunk) >= size or chars >= _CHUNK_CHARS:
                yield from self._chunk(chunk, streamer)
                chunk, chars, size = [], 0, min(2 * size, largest_chunk)
        yield from self._chunk(chunk, streamer)

    def _chunk(
        self, chunk: Sequence[tuple[Item, dict[str, list[ModelInput]]]], streamer: Streamer | None
    ) -> Iterator[dict[str, HeadOutputs[Any]]]:
        if os.getpid() != self.process:
            fix = "open it in the process that uses it, or start processes by spawn"
            raise UsageError("the model", f"was opened in process {self.process} before this process was forked", fix)
        readers: dict[ModelInput, set[str]] = {}
        for _, inputs in chunk:
            for name, own in inputs.items():
                for one in own:
                    readers.setdefault(one, set()).add(name)
        windows = dict(zip(readers, self.tokenizer.windows(list(readers)), strict=True))
        by_key: dict[_Key, dict[str, Window]] = {}
        for one, cut in windows.items():
            for window in cut:
                for name in readers[one]:
                    by_key.setdefault(_key(window), {}).setdefault(name, window)
        outputs = self._encode(by_key, streamer)
        for item, inputs in chunk:
            yield {name: _head_outputs(name, example, inputs[name], windows, outputs) for name, example in item.items()}

    def _encode(
        self, by_key: Mapping[_Key, Mapping[str, Window]], streamer: Streamer | None
    ) -> dict[_Key, dict[str, Outputs]]:
        """Return the outputs of each head for each distinct window."""
        groups: dict[tuple[tuple[str, ...], bool], list[Mapping[str, Window]]] = {}
        for own in by_key.values():
            names = tuple(name for name in self.heads if name in own)
            groups.setdefault((names, own[names[0]].encoded), []).append(own)
        outputs: dict[_Key, dict[str, Outputs]] = {key: {} for key in by_key}
        for (names, _), group in groups.items():  # heads that read the same texts run together
            lengths = [-(-len(own[names[0]]) // _MULTIPLE) * _MULTIPLE for own in group]  # with padding
            left = sorted(range(len(group)), key=lengths.__getitem__)
            while left:
                for batch in length_batches(lengths, self._budget(), left):
                    found = self._tried(names, [group[index] for index in batch], streamer)
                    if found is None:  # batches have become smaller
                        break
                    for name, collected in found.items():
                        for index, one in zip(batch, collected, strict=True):
                            outputs[_key(group[index][name])][name] = one
                    left = left[len(batch) :]
        return outputs

    def _budget(self) -> int:
        return min(self.batch_tokens or BATCH_TOKENS[self.runtime.device], self.memory.tokens)

    def _tried(
        self, names: Sequence[str], batch: Sequence[Mapping[str, Window]], streamer: Streamer | None
    ) -> dict[str, Sequence[Outputs]] | None:
        """Run a batch. Return None if it does not fit the memory; then later batches have half as many tokens.

        Raises:
            OutOfMemoryError: not even a single window fits.
        """
        try:
            return self._run(names, batch, streamer)
        except (OutOfMemoryError, MemoryError) as error:
            longest = max(len(own[names[0]]) for own in batch)
            problem = error.problem if isinstance(error, OutOfMemoryError) else first_line(error)
            if len(batch) == 1:
                fix = "use shorter texts, or another `device`"
                raise OutOfMemoryError(f"a text of {longest} tokens", problem, fix) from error
            self.memory.tokens = len(batch) * longest // 2
            _log.warning("%s: batches have at most %d tokens from now on", problem, self.memory.tokens)
            return None

    def _run(
        self, names: Sequence[str], batch: Sequence[Mapping[str, Window]], streamer: Streamer | None
    ) -> dict[str, Sequence[Outputs]]:
        """Return the outputs of some heads for a batch, by the head's name."""
        first = [own[names[0]] for own in batch]
        arrays = collate(_few_sizes(first), self.info, multiple=_MULTIPLE)  # [B,S]
        inputs = {name: arrays[name] for name in self.info.inputs}
        tensors = self.runtime.run(ENCODE, inputs, names) if first[0].encoded else {}
        collected: dict[str, Sequence[Outputs]] = {}
        for name in names:
            own = {row: windows[name] for row, windows in enumerate(batch)}
            named = {key: tensors[f"{name}.{key}"] for key in self.runtime.outputs[name] if tensors}
            encoded = EncodedBatch(name, own, arrays["mask"], named, self.runtime)
            generator = self.heads[name].generator
            collected[name] = generator.run(encoded, streamer) if generator else encoded.fetched()
        return collected


_Key = tuple[bytes, bytes, bool, bool]
"""Windows with equal keys have equal outputs for all heads."""


def _key(window: Window) -> _Key:
    return window.ids.tobytes(), window.types.tobytes(), window.opens, window.encoded


def result_of(head: Head[Any, Any, Any], outputs: HeadOutputs[Any]) -> Any:
    """Return a head's result for its outputs."""
    return head.decode(outputs.example, outputs.windows, outputs.outputs)


def _head_outputs(
    name: str,
    example: Any,
    inputs: Sequence[ModelInput],
    windows: Mapping[ModelInput, list[Window]],
    outputs: Mapping[_Key, Mapping[str, Outputs]],
) -> HeadOutputs[Any]:
    own = [window for one in inputs for window in windows[one]]
    return HeadOutputs(example, own, [outputs[_key(window)][name] for window in own])


def _few_sizes(batch: list[Window]) -> list[Window]:
    """Return the batch with its last row repeated until its height is a multiple of 4."""
    return batch if len(batch) <= _ROWS else batch + batch[-1:] * (-len(batch) % _ROWS)
