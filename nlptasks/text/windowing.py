"""Sources to windows: tokenizing, and cutting what is too long, by a Rust tokenizer whose state is never touched.

A Hugging Face tokenizer object keeps truncation and padding as state, so that threads get each other's lengths; here both are
never set, and special tokens that stand literally in a text (``[SEP]``) are text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import tokenizers

from nlptasks.errors import BackendError, ModelError, UsageError
from nlptasks.text.words import readable
from nlptasks.types import FIRST, SECOND, SPECIAL, Ints, Source, Window

_OVERLAP_SHARE = 4
"""Neighbouring windows share a quarter of their tokens."""

_NO_CHARACTER = "\U0010fffd"
"""For private use: no vocabulary knows it."""

_MIN_CUT_TOKENS = 16
"""Less room than this for the text that is cut makes no sense."""


@dataclass(frozen=True)
class _Piece:
    """Consecutive tokens of one text."""

    ids: Ints
    offsets: Ints  # [n,2]

    def cut(self, start: int, end: int) -> _Piece:
        return _Piece(self.ids[start:end], self.offsets[start:end])

    def split(self, chars: int) -> tuple[_Piece, _Piece]:
        """The tokens that end within the first characters, and the others, whose offsets count from behind these."""
        behind = self.offsets[:, 1] > chars
        count = int(behind.argmax()) if behind.any() else len(behind)
        return self.cut(0, count), _Piece(self.ids[count:], np.maximum(self.offsets[count:] - chars, 0))

    def behind(self, other: _Piece) -> _Piece:
        """With the tokens of a prefix before it, which stand nowhere in the text."""
        return _Piece(np.concatenate([other.ids, self.ids]), np.concatenate([0 * other.offsets, self.offsets]))


@dataclass(frozen=True)
class _Template:
    """The special tokens a model wants around one text or between two, as its post-processor writes them."""

    glue: tuple[Ints, ...]  # before the first text, behind it, behind the second
    glue_types: tuple[Ints, ...]
    text_types: tuple[int, ...]

    @property
    def size(self) -> int:
        return sum(len(ids) for ids in self.glue)

    def changed(self, special: Sequence[tuple[int, int]]) -> _Template:
        """The template with other special tokens."""
        new = dict(special)
        glue = tuple(np.array([new.get(token, token) for token in ids.tolist()], dtype=np.int64) for ids in self.glue)
        return replace(self, glue=glue)

    def without(self, *places: int) -> _Template:
        """The template without what stands at some places, of those that `glue` has."""
        return replace(
            self,
            glue=tuple(ids[:0] if place in places else ids for place, ids in enumerate(self.glue)),
            glue_types=tuple(types[:0] if place in places else types for place, types in enumerate(self.glue_types)),
        )


class Tokenizer:
    """Cuts sources into windows of token ids with offsets.

    Args:
        backend: the Rust tokenizer; its truncation and padding are switched off.
        max_tokens: longest window, special tokens included.

    Raises:
        ModelError: the windows are too short to hold a text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, max_tokens: int) -> None:
        self._marked = tokenizers.Tokenizer.from_str(backend.to_str())
        self._marked.no_truncation()
        self._marked.no_padding()
        self._marked.encode_special_tokens = False
        self._backend = plain(backend)
        self._single = _probe(backend, "a")
        self._pair = _probe(backend, "a", "a")
        self._unknown = unknown_token(backend)
        self._reserved = np.array(sorted(reserved_tokens(backend)), dtype=np.int64)
        self.max_tokens = max_tokens
        if max_tokens < self._pair.size + _MIN_CUT_TOKENS:
            raise ModelError(
                "backbone", f"reads only {max_tokens} tokens at a time", "take a backbone with more positions"
            )

    def windows(self, sources: Sequence[Source]) -> list[list[Window]]:
        """The windows of each source, in order; none for a source without tokens.

        Raises:
            BackendError: the tokenizer fails.
            UsageError: a prefix leaves no room for a text.
        """
        # A prefix is read together with what is behind it: in between, words may begin otherwise than alone.
        marked = iter(self._pieces([source.first for source in sources if source.markup], self._marked))
        texts = iter(self._pieces([source.prefix + source.first for source in sources if not source.markup]))
        first = [next(marked if source.markup else texts) for source in sources]
        seconds = [source.second for source in sources if source.second is not None]
        second = iter(self._pieces(seconds))
        return [
            self._single_windows(piece, source) if source.second is None else self._pair_windows(piece, next(second))
            for source, piece in zip(sources, first, strict=True)
        ]

    def _pieces(self, texts: Sequence[str], marked: tokenizers.Tokenizer | None = None) -> list[_Piece]:
        """The tokens of texts; of marked ones, special tokens that stand in them are special."""
        backend = marked or self._backend
        try:
            encoded = backend.encode_batch([readable(text) for text in texts], add_special_tokens=False)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                raise
            # A panic of the Rust code arrives as a BaseException of its own.
            raise BackendError("tokenizer", f"failed ({error})", "check the backbone's tokenizer.json") from error
        pieces = [
            _Piece(np.array(item.ids, dtype=np.int64), np.array(item.offsets, dtype=np.int64).reshape(-1, 2))
            for item in encoded
        ]
        return pieces if marked else [replace(piece, ids=self._as_text(piece.ids)) for piece in pieces]

    def _as_text(self, ids: Ints) -> Ints:
        """The tokens of a text, none of them special: a Unigram model has ``</s>`` among its pieces and takes it for one."""
        if self._unknown:
            ids[np.isin(ids, self._reserved)] = self._unknown[0]
        return ids

    def _single_windows(self, piece: _Piece, source: Source) -> list[Window]:
        template = self._template(source)
        before, piece = piece.split(len(source.prefix)) if source.prefix else (None, piece)
        room = self.max_tokens - template.size - (len(before.ids) if before else 0)
        if before and room < _MIN_CUT_TOKENS:
            most = len(before.ids) + room - _MIN_CUT_TOKENS
            problem = f"is {len(before.ids)} tokens, of {self.max_tokens} that the backbone reads"
            raise UsageError("prefix", problem, f"give at most {most}")
        if source.continued:
            parts = _end_of(piece, room - source.reserved)
        elif source.begins_only:
            parts = [_Part(piece.cut(0, room), closes=len(piece.ids) <= room)] if len(piece.ids) else []
        else:
            parts = _parts(piece, room, overlap=source.overlaps)
        windows = [
            _assemble(template, replace(part, piece=part.piece.behind(before)) if before else part) for part in parts
        ]
        return [replace(window, continued=True) for window in windows] if source.continued else windows

    def _template(self, source: Source) -> _Template:
        """The special tokens around a single text."""
        template = self._single.changed(source.special) if source.special else self._single
        if source.markup:
            return template.without(0, 1)
        return template.without(1) if source.continued else template

    def _pair_windows(self, first: _Piece, second: _Piece) -> list[Window]:
        room = self.max_tokens - self._pair.size
        one, two = len(first.ids), len(second.ids)
        if not one + two:
            return []
        kept = min(one, max(room // 2, room - two))  # of the first text in each window
        firsts = _parts(first, kept) or [_Part(first)]
        seconds = _parts(second, room - kept) or [_Part(second)]
        count = max(len(firsts), len(seconds))
        return [
            _assemble(self._pair, firsts[step * len(firsts) // count], seconds[step * len(seconds) // count])
            for step in range(count)
        ]


@dataclass(frozen=True)
class _Part:
    """Some of a text's tokens.

    Attributes:
        piece: the tokens.
        begin: number of the first among all of the text's.
        opens: whether the text begins here.
        closes: whether it ends here.
    """

    piece: _Piece
    begin: int = 0
    opens: bool = True
    closes: bool = True


def _end_of(piece: _Piece, room: int) -> list[_Part]:
    """The end of a piece, as much of it as there is room for, and one token at the least."""
    begin = max(0, len(piece.ids) - max(1, room))
    return [_Part(piece.cut(begin, len(piece.ids)), begin, opens=begin == 0)] if len(piece.ids) else []


def _parts(piece: _Piece, room: int, *, overlap: bool = True) -> list[_Part]:
    """The piece in parts of at most `room` tokens, which overlap unless told otherwise."""
    total = len(piece.ids)
    if total <= room:
        return [_Part(piece)] if total else []
    if not overlap:
        size = -(-total // -(-total // room))  # as few parts as there must be, none of them a scrap
        return [
            _Part(piece.cut(start, start + size), start, start == 0, start + size >= total)
            for start in range(0, total, size)
        ]
    step = room - room // _OVERLAP_SHARE
    starts = [*range(0, total - room, step), total - room]  # the last part is moved back, so that it is a full one too
    return [_Part(piece.cut(start, start + room), start, start == 0, start + room == total) for start in starts]


def _assemble(template: _Template, *texts: _Part) -> Window:
    ids, types, parts, offsets = [], [], [], []
    for index, glue in enumerate(template.glue):
        ids.append(glue)
        types.append(template.glue_types[index])
        parts.append(np.full(len(glue), SPECIAL))
        offsets.append(np.zeros((len(glue), 2), dtype=np.int64))
        if index < len(texts):
            piece = texts[index].piece
            n = len(piece.ids)
            ids.append(piece.ids)
            types.append(np.full(n, template.text_types[index]))
            parts.append(np.full(n, (FIRST, SECOND)[index]))
            offsets.append(piece.offsets)
    last = texts[-1]
    return Window(
        ids=np.concatenate(ids),
        types=np.concatenate(types),
        parts=np.concatenate(parts),
        offsets=np.concatenate(offsets),
        opens=last.opens,
        closes=last.closes,
        begin=last.begin,
    )


def plain(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer, made to cut and pad nothing, and to take special tokens that stand in a text for text."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def unknown_token(backend: tokenizers.Tokenizer) -> list[int]:
    """The token that stands for what a vocabulary does not know, if there is one."""
    ids: list[int] = backend.encode(_NO_CHARACTER, add_special_tokens=False).ids[-1:]
    return ids


def reserved_tokens(backend: tokenizers.Tokenizer) -> set[int]:
    """The special tokens of a vocabulary, but for the unknown one: no text has them."""
    special = {number for number, token in backend.get_added_tokens_decoder().items() if token.special}
    return special.difference(unknown_token(backend))


def tokens_around(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that stand before a text and behind it, in order."""
    before, behind = _probe(backend, "a").glue
    return before.tolist(), behind.tolist()


def _probe(backend: tokenizers.Tokenizer, first: str, second: str | None = None) -> _Template:
    """Read the template off the encoding of short texts: what is marked as special is glue."""
    encoded = backend.encode(first, second)
    ids, types = np.array(encoded.ids), np.array(encoded.type_ids)
    where = [index for index, special in enumerate(encoded.special_tokens_mask) if not special]
    if not where:
        raise ModelError("tokenizer", "knows no token for the letter a", "take a backbone with its own tokenizer.json")
    sequences = encoded.sequence_ids
    edges: list[tuple[int, int]] = []
    for number in range(1 if second is None else 2):
        own = [index for index in where if sequences[index] == number]
        edges.append((own[0], own[-1] + 1))
    cuts = [0, *(edge for pair in edges for edge in pair), len(ids)]
    glue = [slice(start, end) for start, end in list(pairwise(cuts))[::2]]
    return _Template(
        tuple(ids[part] for part in glue),
        tuple(types[part] for part in glue),
        tuple(int(types[start]) for start, _ in edges),
    )
