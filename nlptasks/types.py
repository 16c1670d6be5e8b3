"""The things that pass between the parts of the library, and the notation of shapes.

row -> example -> sources -> windows -> tensors -> result

Letters for shapes, everywhere: B batch, S source tokens, H width of the backbone, C classes, W words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nlptasks.errors import DataError, UsageError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One record of a data file, or one text to predict.

    Attributes:
        fields: column names and their values, as the file has them.
        where: file and line, for messages.
        lines: the line of each item where a record spans several lines (one token a line), else empty.
    """

    fields: Mapping[str, Any]
    where: str
    lines: tuple[int, ...] = ()

    def line(self, item: int) -> str:
        """File and line of one item of the record."""
        if item >= len(self.lines):
            return self.where
        return f"{self.where.rpartition(':')[0]}:{self.lines[item]}"


OnError = Callable[[DataError], None]
"""What to do with a bad row: raise, or note it and go on with the next row."""


def refuse(error: DataError) -> None:
    """Stop at the first bad row."""
    raise error


Reader = Callable[[Path, OnError], Iterator[Row]]
"""Reads one file into rows."""


@dataclass(frozen=True)
class Source:
    """What the backbone reads for one example: a text, or a pair of texts.

    A source that is too long is cut into overlapping windows. Of a pair that text is cut which takes more than half of the
    room, `second` rather than `first`, and the other one is in every window; if both do, the parts of one meet those of the
    other in order, as far into their texts. Of a single text (pairs have none of these), `prefix` stands before it in every
    window, the first window is the only one where `begins_only` is set, windows do not overlap unless `overlaps` is, and
    `special` has tokens that stand for special ones of the tokenizer: pairs of ids, old and new.

    Where `markup` is set, special tokens that stand literally in the text (``<|user|>``) are taken for what they are, and none
    are put around it: it was made by a template. A text that is `continued` is not encoded, only cut into tokens: a head that
    reads it by graphs of its own writes on behind it, so it has no special tokens at its end; if it is too long its end is
    kept, and `reserved` tokens are left free for what is written.
    """

    first: str
    second: str | None = None
    prefix: str = ""
    begins_only: bool = False
    overlaps: bool = True
    special: tuple[tuple[int, int], ...] = ()
    markup: bool = False
    continued: bool = False
    reserved: int = 0

    def __post_init__(self) -> None:
        alone = self.prefix or self.special or self.begins_only or self.markup or self.continued
        if (self.second is not None and alone) or (self.markup and self.prefix):
            what = "a pair, with what is for single texts" if self.second is not None else "markup, with a prefix"
            raise UsageError("Source", f"is {what}", "leave one of the two out")

    @property
    def chars(self) -> int:
        """Characters in both."""
        return len(self.first) + len(self.second or "")


FIRST, SECOND, SPECIAL = 0, 1, -1
"""What a token of a window belongs to: the source's first text, its second, or neither."""


@dataclass(frozen=True, eq=False)
class Window:
    """The tokens of one source that fit the backbone, special tokens included.

    Attributes:
        ids: token ids [S].
        types: token type ids [S].
        parts: FIRST, SECOND or SPECIAL for each token [S].
        offsets: start and end of each token in its own text, in code points [S,2]; 0, 0 for special tokens.
        opens: whether the last text begins in this window; else tokens before it stand in another one.
        closes: whether the last text ends in this window.
        begin: the number, among the tokens of the whole last text, of its first one here.
        continued: whether it is only read by a head's own graphs, as `Source` says.
    """

    ids: Ints
    types: Ints
    parts: Ints
    offsets: Ints
    opens: bool = True
    closes: bool = True
    begin: int = 0
    continued: bool = False

    def __len__(self) -> int:
        return len(self.ids)


Outputs = Mapping[str, npt.NDArray[Any]]
"""What a head's `forward` gave for one window, padding cut off [S,...], or what its `collect` made of that."""


@dataclass(frozen=True)
class Reading:
    """What the pass over an example gave for one head.

    Attributes:
        example: the example.
        windows: its windows.
        outputs: the head's outputs for each window.
    """

    example: Any
    windows: Sequence[Window]
    outputs: Sequence[Outputs]


IGNORED = -100
"""The label of a token that the loss leaves out."""
