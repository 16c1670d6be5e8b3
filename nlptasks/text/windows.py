"""From model inputs to windows: tokenize, and cut what is too long.

The Rust tokenizer is never changed after it was set up: a Hugging Face tokenizer object keeps truncation and padding as state, so
threads would get each other's lengths. Special tokens written out in a text (``[SEP]``) are read as text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import tokenizers

from nlptasks.errors import BackendError, ModelError, UsageError
from nlptasks.text.words import readable
from nlptasks.types import FIRST, SECOND, SPECIAL, Cut, Ints, ModelInput, Overlapping, Window

_NO_CHARACTER = "\U0010fffd"
"""A private-use character that no vocabulary knows."""

_MIN_CUT_TOKENS = 16
"""Fewest tokens of the text in a window."""


_MAX_GROWTH = 64
"""How many times as long the replacements of a tokenizer may make a text."""


@dataclass(frozen=True)
class _Piece:
    """Consecutive tokens of one text."""

    ids: Ints
    offsets: Ints  # [n,2]

    def cut(self, start: int, end: int) -> _Piece:
        return _Piece(self.ids[start:end], self.offsets[start:end])

    def split(self, chars: int) -> tuple[_Piece, _Piece]:
        """Return the tokens that end within the first characters, and the others with offsets counted from there."""
        rest = self.offsets[:, 1] > chars
        count = int(rest.argmax()) if rest.any() else len(rest)
        return self.cut(0, count), _Piece(self.ids[count:], np.maximum(self.offsets[count:] - chars, 0))

    def after(self, other: _Piece) -> _Piece:
        """Return it with the tokens of a prefix in front, whose offsets are 0."""
        return _Piece(np.concatenate([other.ids, self.ids]), np.concatenate([0 * other.offsets, self.offsets]))


@dataclass(frozen=True)
class _Template:
    """The special tokens around one text or between two, as the tokenizer's post-processor writes them."""

    glue: tuple[Ints, ...]  # before the first text, after it, after the second
    glue_types: tuple[Ints, ...]
    text_types: tuple[int, ...]

    @property
    def size(self) -> int:
        return sum(len(ids) for ids in self.glue)

    def changed(self, special: Sequence[tuple[int, int]]) -> _Template:
        """Return it with some special tokens replaced."""
        new = dict(special)
        glue = tuple(np.array([new.get(token, token) for token in ids.tolist()], dtype=np.int64) for ids in self.glue)
        return replace(self, glue=glue)

    def without(self, *places: int) -> _Template:
        """Return it without the special tokens at some places of `glue`."""
        return replace(
            self,
            glue=tuple(ids[:0] if place in places else ids for place, ids in enumerate(self.glue)),
            glue_types=tuple(types[:0] if place in places else types for place, types in enumerate(self.glue_types)),
        )


class Tokenizer:
    """Turns model inputs into windows of token ids with offsets.

    Args:
        backend: the Rust tokenizer; it is copied, without truncation and padding.
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

    def windows(self, inputs: Sequence[ModelInput]) -> list[list[Window]]:
        """Return the windows of each input, in order; none for an input without tokens.

        Raises:
            BackendError: the tokenizer fails.
            UsageError: a prefix leaves no room for a text.
        """
        # A prefix is tokenized together with the text: words may start differently after it than alone.
        marked = iter(self._pieces([one.texts[0] for one in inputs if one.markup], self._marked))
        plain = iter(self._pieces([one.prefix + one.texts[0] for one in inputs if not one.markup]))
        first = [next(marked if one.markup else plain) for one in inputs]
        second = iter(self._pieces([one.texts[1] for one in inputs if len(one.texts) == 2]))
        return [
            self._pair_windows(piece, next(second)) if len(one.texts) == 2 else self._single_windows(piece, one)
            for one, piece in zip(inputs, first, strict=True)
        ]

    def _pieces(self, texts: Sequence[str], marked: tokenizers.Tokenizer | None = None) -> list[_Piece]:
        """Return the tokens of texts; with the tokenizer for markup, special tokens written out in them are special."""
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
        """Replace special tokens in a text: a Unigram model has ``</s>`` among its pieces and may read it in a text."""
        if self._unknown:
            ids[np.isin(ids, self._reserved)] = self._unknown[0]
        return ids

    def _single_windows(self, piece: _Piece, model_input: ModelInput) -> list[Window]:
        template, cut = self._template(model_input), model_input.cut
        prefix, piece = piece.split(len(model_input.prefix)) if model_input.prefix else (None, piece)
        room = self.max_tokens - template.size - (len(prefix.ids) if prefix else 0)
        if prefix and room < _MIN_CUT_TOKENS:
            most = len(prefix.ids) + room - _MIN_CUT_TOKENS
            problem = f"has {len(prefix.ids)} tokens, and the backbone reads {self.max_tokens}"
            raise UsageError("prefix", problem, f"use at most {most}")
        parts = _parts(piece, room, cut)
        windows = [
            _assemble(template, replace(part, piece=part.piece.after(prefix)) if prefix else part) for part in parts
        ]
        return windows if cut.encoded else [replace(window, encoded=False) for window in windows]

    def _template(self, model_input: ModelInput) -> _Template:
        """Return the special tokens around a single text."""
        template = self._single.changed(model_input.replaced) if model_input.replaced else self._single
        if model_input.markup:
            return template.without(0, 1)
        return template if model_input.cut.encoded else template.without(1)

    def _pair_windows(self, first: _Piece, second: _Piece) -> list[Window]:
        room = self.max_tokens - self._pair.size
        one, two = len(first.ids), len(second.ids)
        if not one + two:
            return []
        kept = min(one, max(room // 2, room - two))  # tokens of the first text in each window
        firsts = _parts(first, kept, Overlapping()) or [_Part(first)]
        seconds = _parts(second, room - kept, Overlapping()) or [_Part(second)]
        count = max(len(firsts), len(seconds))
        return [
            _assemble(self._pair, firsts[step * len(firsts) // count], seconds[step * len(seconds) // count])
            for step in range(count)
        ]


@dataclass(frozen=True)
class _Part:
    """Some tokens of a text.

    Attributes:
        piece: the tokens.
        begin: index of the first among all tokens of the text.
        opens: True if the text begins here.
        closes: True if it ends here.
    """

    piece: _Piece
    begin: int = 0
    opens: bool = True
    closes: bool = True


def _parts(piece: _Piece, room: int, cut: Cut) -> list[_Part]:
    """Return the parts of a text that fit the windows; none of a text without tokens."""
    total = len(piece.ids)
    spans = cut.spans(total, room) if total else []
    return [_Part(piece.cut(start, end), start, start == 0, end == total) for start, end in spans]


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
    """Return the tokenizer, set not to truncate or pad, and to read special tokens in a text as text."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def check_expansion(backend: tokenizers.Tokenizer, *, where: str) -> None:
    """Refuse a tokenizer that makes a text many times as long: a few replacements in a row would never come to an end.

    Raises:
        ModelError: its replacements together can make a text more than 64 times as long.
    """
    growth, todo = 1.0, [json.loads(backend.to_str())]
    while todo:
        value = todo.pop()
        todo += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if isinstance(value, dict) and value.get("type") == "Replace":
            replaced = value["pattern"].get("String", "")  # a regular expression may match a single character
            growth *= max(1.0, len(value["content"]) / max(1, len(replaced)))
    if growth > _MAX_GROWTH:
        problem = f"has replacements that can make a text {growth:.0f} times as long"
        raise ModelError(where, problem, "use a backbone with another tokenizer.json")


def unknown_token(backend: tokenizers.Tokenizer) -> list[int]:
    """Return the unknown token, if there is one."""
    ids: list[int] = backend.encode(_NO_CHARACTER, add_special_tokens=False).ids[-1:]
    return ids


def reserved_tokens(backend: tokenizers.Tokenizer) -> set[int]:
    """Return the special tokens of a vocabulary except the unknown token: no text has them."""
    special = {number for number, token in backend.get_added_tokens_decoder().items() if token.special}
    return special.difference(unknown_token(backend))


def tokens_around(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Return the special tokens before a text and after it, in order."""
    before, after = _probe(backend, "a").glue
    return before.tolist(), after.tolist()


def _probe(backend: tokenizers.Tokenizer, first: str, second: str | None = None) -> _Template:
    """Read the template off the encoding of short texts."""
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
