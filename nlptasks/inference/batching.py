"""Batches: examples cut into windows, windows of similar length filled to a budget of tokens, and padded to arrays.

Order is a pure function of seed and epoch: nothing is drawn from a global random state.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nlptasks.backbones.backbone import BackboneInfo
from nlptasks.heads.base import Head
from nlptasks.text.windowing import Tokenizer
from nlptasks.types import IGNORED, Floats, Ints, Window

_BUCKET_BATCHES = 50
"""Batches that are filled from rows sorted together: enough to keep lengths equal, few enough to keep the order random."""


@dataclass(frozen=True)
class Unit:
    """One training example, whose windows stay in one batch.

    Attributes:
        index: of the example among those given.
        windows: its windows.
        features: what the loss needs beside the tokens, by window and name.
        target: tokens of the longest text that is to be written.
    """

    index: int
    windows: list[Window]
    features: list[Mapping[str, Ints | Floats]]
    target: int

    @property
    def tokens(self) -> int:
        """Tokens in all its windows, padded to the longest of them, or of what they are to be made into."""
        return len(self.windows) * max(self.target, *map(len, self.windows))


def make_units(head: Head, tokenizer: Tokenizer, examples: Sequence[Any]) -> list[Unit]:
    """The examples with their windows and features; examples without any token are left out."""
    sources = [head.sources(example) for example in examples]
    windows = iter(tokenizer.windows([source for own in sources for source in own]))
    units = []
    for index, (example, own) in enumerate(zip(examples, sources, strict=True)):
        cut = [window for _ in own for window in next(windows)]
        if cut:
            features = [head.features(example, window) for window in cut]
            target = max((len(found[name]) for found in features for name in head.target_features), default=0)
            units.append(Unit(index, cut, features, target))
    return units


def collate_units(units: Sequence[Unit], info: BackboneInfo) -> dict[str, Ints | Floats]:
    """The windows of several units and their features, as arrays [B,S]; ``example`` [B] says whose each window is, from 0."""
    features = [own for unit in units for own in unit.features]
    arrays: dict[str, Ints | Floats] = {**collate([window for unit in units for window in unit.windows], info)}
    for name in features[0]:
        values = [own[name] for own in features]
        arrays[name] = pad(values, IGNORED, max(map(len, values)))
    arrays["example"] = np.repeat(np.arange(len(units)), [len(unit.windows) for unit in units])
    return arrays


def length_batches(lengths: Sequence[int], budget: int, order: Iterable[int]) -> list[list[int]]:
    """Indices in this order, cut into batches of at most `budget` tokens, padding included (one alone may be longer)."""
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
    """The batches of one epoch: rows shuffled, sorted by length inside buckets, filled to the budget, batches shuffled."""
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
    """Windows as the arrays ``ids``, ``mask`` and ``types`` [B,S].

    Args:
        windows: the windows.
        info: of the backbone that reads them.
        multiple: S is the next multiple of this, if the backbone reads as many tokens. Few different shapes keep memory
            flat: runtimes keep something for every shape that they have met.
    """
    longest = max(map(len, windows))
    size = max(longest, min(-(-longest // multiple) * multiple, info.max_tokens))
    return {
        "ids": pad([window.ids for window in windows], info.pad_id, size),
        "mask": pad([np.ones(len(window), dtype=np.int64) for window in windows], 0, size),
        "types": pad([window.types for window in windows], 0, size),
    }


def random_batch(info: BackboneInfo, shape: tuple[int, int], seed: int = 0) -> dict[str, Ints]:
    """Random tokens, some of them padding, to compare two ways to run a model: each of the backbone's inputs [B,S]."""
    draw = np.random.default_rng(seed)
    batch, length = shape
    ids = draw.integers(0, info.config.vocab_size, size=shape)
    mask = np.ones(shape, dtype=np.int64)
    for row in range(1, batch):
        mask[row, max(1, length - row) :] = 0
    second = np.arange(length) >= length - length // 3
    types = np.where(second, mask, 0)
    arrays: dict[str, Ints] = {"ids": np.where(mask == 1, ids, info.pad_id), "mask": mask, "types": types}
    return {name: arrays[name] for name in info.inputs}


def pad(sequences: Sequence[npt.NDArray[Any]], filler: int, size: int) -> npt.NDArray[Any]:
    """Sequences as one array [B, size] of their own kind of numbers, filled up at the right."""
    padded = np.full((len(sequences), size), filler, dtype=sequences[0].dtype)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return padded
