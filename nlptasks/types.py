"""What passes between the parts of the library, and the notation of shapes.

    row -> example -> model inputs -> windows -> tensors -> result

Letters for shapes, everywhere: B windows in a batch, S tokens, H width of the backbone, C classes, W words, E examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from nlptasks.errors import DataError, UsageError, quote

ExampleT = TypeVar("ExampleT")
ResultT = TypeVar("ResultT")

Span = tuple[int, int]
"""A first index and the one after the last."""

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

IGNORED = -100
"""Target of a token that the loss ignores; also the value that pads targets."""

FIRST, SECOND, SPECIAL = 0, 1, -1
"""The text of a model input that a token belongs to: the first, the second, or neither."""

_OVERLAP_SHARE = 4
"""Neighbouring windows share a quarter of their tokens."""


@dataclass(frozen=True)
class Row:
    """One record of a data file, or one text to predict.

    Attributes:
        fields: values by column name, as in the file.
        where: file and line, for messages.
        lines: the line of each item if a record spans several lines (one token a line), else empty.
        gold: False if only a prediction is wanted; the fields of the gold answer are removed then.
    """

    fields: Mapping[str, Any]
    where: str
    lines: tuple[int, ...] = ()
    gold: bool = True

    def line(self, item: int) -> str:
        """Return file and line of one item of the record."""
        if item >= len(self.lines):
            return self.where
        return f"{self.where.rpartition(':')[0]}:{self.lines[item]}"


OnError = Callable[[DataError], None]
"""What to do with a bad row: raise, or record the error and continue with the next row."""


def refuse(error: DataError) -> None:
    """Stop at the first bad row."""
    raise error


Reader = Callable[[Path, OnError], Iterator[Row]]
"""Reads one file into rows."""


class Cut(Protocol):
    """How a text that is too long is cut into windows.

    Attributes:
        encoded: True if the backbone encodes the windows. False if a generator reads them and continues the text: then no
            special token closes it.
    """

    encoded: ClassVar[bool]

    def spans(self, tokens: int, room: int) -> list[Span]:
        """Return the first token of each window and the one after its last.

        Args:
            tokens: number of tokens of the text, at least 1.
            room: number of tokens that fit one window.
        """


@dataclass(frozen=True)
class Overlapping:
    """Read everything, in windows that share a quarter of their tokens."""

    encoded: ClassVar[bool] = True

    def spans(self, tokens: int, room: int) -> list[Span]:
        if tokens <= room:
            return [(0, tokens)]
        step = room - room // _OVERLAP_SHARE
        starts = [*range(0, tokens - room, step), tokens - room]  # the last window is moved back to be a full one
        return [(start, start + room) for start in starts]


@dataclass(frozen=True)
class Parts:
    """Read everything, in as few windows as possible, of equal size, that do not overlap."""

    encoded: ClassVar[bool] = True

    def spans(self, tokens: int, room: int) -> list[Span]:
        size = -(-tokens // -(-tokens // room))
        return [(start, min(start + size, tokens)) for start in range(0, tokens, size)]


@dataclass(frozen=True)
class Beginning:
    """Read the beginning and drop the rest."""

    encoded: ClassVar[bool] = True

    def spans(self, tokens: int, room: int) -> list[Span]:
        return [(0, min(tokens, room))]


@dataclass(frozen=True)
class End:
    """Read the end of a prompt that a generator continues.

    Attributes:
        reserve: tokens of the window that stay free for the continuation.
    """

    encoded: ClassVar[bool] = False
    reserve: int = 0

    def spans(self, tokens: int, room: int) -> list[Span]:
        return [(max(0, tokens - max(1, room - self.reserve)), tokens)]


@dataclass(frozen=True)
class ModelInput:
    """What the backbone reads for one example: a text, or a pair of texts.

    Of a pair that does not fit, the text that takes more than half of the room is cut, the second rather than the first, and
    the other one is repeated in every window. If both do, parts of both are paired in order. Pairs are always `Overlapping`.

    Attributes:
        texts: one text or two.
        cut: how a text that is too long is cut into windows.
        prefix: text in front of a single text, repeated in every window.
        replaced: special tokens of the tokenizer and those that replace them, as pairs of ids.
        markup: True if special tokens written out in the text (``<|user|>``) are special, as in the output of a chat
            template. No special tokens are added then.
    """

    texts: tuple[str, ...]
    cut: Cut = Overlapping()
    prefix: str = ""
    replaced: tuple[tuple[int, int], ...] = ()
    markup: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.texts, str) or len(self.texts) not in (1, 2):
            raise UsageError("ModelInput", f"has the texts {quote(self.texts)}", "pass a tuple of one or two strings")
        single = self.prefix or self.replaced or self.markup or not isinstance(self.cut, Overlapping)
        if len(self.texts) == 2 and single:
            raise UsageError("ModelInput", "is a pair with an option for single texts", "remove one of the two")
        if self.markup and self.prefix:
            raise UsageError("ModelInput", "has both markup and a prefix", "remove one of the two")

    @property
    def chars(self) -> int:
        """Characters in all texts."""
        return sum(map(len, self.texts))


@dataclass(frozen=True, eq=False)
class Window:
    """A slice of one model input that fits the backbone, special tokens included.

    Attributes:
        ids: token ids [S].
        types: token type ids [S].
        parts: FIRST, SECOND or SPECIAL for each token [S].
        offsets: start and end of each token in its own text, in code points [S,2]; 0, 0 for special tokens.
        opens: True if the last text begins in this window.
        closes: True if the last text ends in this window.
        begin: index of the window's first token of the last text, among all tokens of that text.
        encoded: False if only a generator reads it, see `Cut`.
    """

    ids: Ints
    types: Ints
    parts: Ints
    offsets: Ints
    opens: bool = True
    closes: bool = True
    begin: int = 0
    encoded: bool = True

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Result:
    """Base class of results."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a dictionary of plain data."""
        return asdict(self)


Outputs = Mapping[str, Array]
"""The outputs of a network for one window without padding [S,...], or what a generator made of them."""


@dataclass(frozen=True)
class HeadOutputs(Generic[ExampleT]):
    """The outputs of one head for one example.

    Attributes:
        example: the example.
        windows: its windows.
        outputs: the outputs for each window.
    """

    example: ExampleT
    windows: Sequence[Window]
    outputs: Sequence[Outputs]
