"""Batches: windows of similar length fill a token budget and are padded to arrays.

Their order is a pure function of seed and epoch; no global random state is used.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nlptasks.backbones.info import BackboneInfo
from nlptasks.heads.base import Head
from nlptasks.text.windows import Tokenizer
from nlptasks.types import IGNORED, Array, Ints, Window

_BUCKET_BATCHES = 50
"""Batches filled from rows that are sorted together: enough for equal lengths, few enough for a random order."""


@dataclass(frozen=True)
class Instance:
    """One training example, whose windows stay in one batch.

    Attributes:
        index: its index among the examples.
        windows: its windows.
        targets: the targets of each window, by name.
        written: tokens of its longest text to be written.
    """

    index: int
    windows: list[Window]
    targets: list[Mapping[str, Array]]
    written: int

    @property
    def tokens(self) -> int:
        """Tokens in all its windows, padded to the longest of them or of the texts to be written."""
        return len(self.windows) * max(self.written, *map(len, self.windows))


def make_instances(
    head: Head[Any, Any, Any], tokenizer: Tokenizer, examples: Sequence[Any], axes: Mapping[str, str]
) -> list[Instance]:
    """Return the examples with their windows and targets; examples without any token are left out.

    Args:
        head: what reads them.
        tokenizer: the backbone's.
        examples: examples with gold answers.
        axes: the axes of the network's targets by name.
    """
    inputs = [head.inputs(example) for example in examples]
    windows = iter(tokenizer.windows([one for own in inputs for one in own]))
    to_write = [name for name, letters in axes.items() if letters[1:2] == "T"]
    instances = []
    for index, (example, own) in enumerate(zip(examples, inputs, strict=True)):
        cut = [window for _ in own for window in next(windows)]
        if cut:
            targets = [head.targets(example, window) for window in cut]
            written = max((len(found[name]) for found in targets for name in to_write), default=0)
            instances.append(Instance(index, cut, targets, written))
    return instances


def collate_instances(instances: Sequence[Instance], info: BackboneInfo) -> dict[str, Array]:
    """Return windows and targets as arrays [B,...], and ``example`` [B], the index of each window's instance."""
    targets = [own for instance in instances for own in instance.targets]
    arrays: dict[str, Array] = {**collate([window for instance in instances for window in instance.windows], info)}
    for name in targets[0]:
        values = [own[name] for own in targets]
        arrays[name] = pad(values, IGNORED, max(map(len, values)))
    arrays["example"] = np.repeat(np.arange(len(instances)), [len(instance.windows) for instance in instances])
    return arrays


def length_batches(lengths: Sequence[int], budget: int, order: Iterable[int]) -> list[list[int]]:
    """Cut indices, in this order, into batches of at most `budget` tokens with padding (a single one may be longer)."""
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        longest = max(longest, lengths[index])
        if batches and longest * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = lengths[index]
    return batches


def epoch_batches(lengths: Sequence[int], budget: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Return the batches of one epoch: rows shuffled, sorted by length inside buckets, filled to the budget, shuffled."""
    draw = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    draw.shuffle(order)
    mean = max(1, sum(lengths) // len(lengths))
    size = max(1, _BUCKET_BATCHES * budget // mean)
    batches: list[list[int]] = []
    for start in range(0, len(order), size):
        bucket = sorted(order[start : start + size], key=lambda index: lengths[index])
        batches += length_batches(lengths, budget, bucket)
    draw.shuffle(batches)
    return batches


def collate(windows: Sequence[Window], info: BackboneInfo, *, multiple: int = 1) -> dict[str, Ints]:
    """Return windows as the arrays ``ids``, ``mask`` and ``types`` [B,S].

    Args:
        windows: the windows.
        info: of the backbone that reads them.
        multiple: S is rounded up to a multiple of this, if the backbone reads as many tokens. Few different shapes keep
            memory flat: runtimes allocate something for every new shape.
    """
    longest = max(map(len, windows))
    size = max(longest, min(-(-longest // multiple) * multiple, info.max_tokens))
    return {
        "ids": pad([window.ids for window in windows], info.pad_id, size),
        "mask": pad([np.ones(len(window), dtype=np.int64) for window in windows], 0, size),
        "types": pad([window.types for window in windows], 0, size),
    }


def random_batch(info: BackboneInfo, shape: tuple[int, int], seed: int = 0) -> dict[str, Ints]:
    """Return random tokens with padding, to compare two runtimes: each of the backbone's inputs [B,S]."""
    draw = np.random.default_rng(seed)
    batch, length = shape
    ids = draw.integers(0, info.vocabulary_size, size=shape)
    mask = np.ones(shape, dtype=np.int64)
    for row in range(1, batch):
        mask[row, max(1, length - row) :] = 0
    second = np.arange(length) >= length - length // 3
    types = np.where(second, mask, 0)
    arrays: dict[str, Ints] = {"ids": np.where(mask == 1, ids, info.pad_id), "mask": mask, "types": types}
    return {name: arrays[name] for name in info.inputs}


def pad(sequences: Sequence[npt.NDArray[Any]], filler: int, size: int) -> npt.NDArray[Any]:
    """Return sequences as one array [B, size] of their dtype, padded on the right."""
    padded = np.full((len(sequences), size), filler, dtype=sequences[0].dtype)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return padded
