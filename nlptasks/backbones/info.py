"""What heads and networks may know of a backbone. Imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import tokenizers

from nlptasks.errors import ModelError, quote, refusing
from nlptasks.runtimes.base import ENCODE_INPUTS
from nlptasks.storage.atomic import parsed
from nlptasks.storage.integrity import RESTORE
from nlptasks.text.windows import Tokenizer, check_expansion, plain

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"

ENCODER, ENCODER_DECODER, DECODER = "encoder", "encoder-decoder", "decoder"
"""Kinds of backbones. Of an encoder-decoder the encoder is the backbone; a decoder reads from left to right only."""

_CODE = ("auto_map", "trust_remote_code", "quantization_config", "custom_generate")
_CODE_PREFIXES = ("_attn_implementation", "attn_implementation", "_experts_implementation", "experts_implementation")
"""Keys that name code: classes in files beside the config, kernels to download (CVE-2026-4372, CVE-2026-5241)."""


@dataclass(frozen=True)
class BackboneInfo:
    """Facts about a backbone.

    Attributes:
        source: the name it was loaded by.
        revision: the hub's commit, if it came from the hub.
        kind: ``encoder``, ``encoder-decoder`` or ``decoder``.
        width: width H of the hidden states.
        max_tokens: longest window, special tokens included.
        positions: tokens that the architecture has positions for, None if that is not limited.
        vocabulary_size: number of token ids.
        token_types: number of token type ids; 0 if it reads none.
        pad_id: id of the padding token.
        config: the complete Hugging Face config.
        tokenizer: content of its ``tokenizer.json``.
        generation: its settings for ``generate``.
        chat: its chat template, as ``template``, and the special tokens that the template may use; empty if it has none.
    """

    source: str
    revision: str | None
    kind: str
    width: int
    max_tokens: int
    positions: int | None
    vocabulary_size: int
    token_types: int
    pad_id: int
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    tokenizer: bytes = field(default=b"", repr=False)
    generation: Mapping[str, Any] = field(default_factory=dict, repr=False)
    chat: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def architecture(self) -> str:
        """Hugging Face's name of the architecture, such as ``bert``."""
        return str(self.config.get("model_type"))

    @property
    def has_types(self) -> bool:
        """True if it reads token type ids."""
        return self.token_types > 0

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the integer inputs [B,S] of the backbone."""
        return ENCODE_INPUTS if self.has_types else ENCODE_INPUTS[:2]

    @property
    def limits(self) -> dict[str, int]:
        """For each input, one more than the largest value that it may hold."""
        most = {"ids": self.vocabulary_size, "mask": 2, "types": self.token_types}
        return {name: most[name] for name in self.inputs}

    def vocabulary(self) -> tokenizers.Tokenizer:
        """Return a new Rust tokenizer that neither truncates nor pads, and reads special tokens in a text as text."""
        return plain(tokenizers.Tokenizer.from_str(self.tokenizer.decode("utf-8")))

    def record(self) -> dict[str, Any]:
        """Return what a model folder stores beside the Hugging Face files."""
        names = (
            "source",
            "revision",
            "kind",
            "width",
            "max_tokens",
            "positions",
            "vocabulary_size",
            "token_types",
            "pad_id",
        )
        return {name: getattr(self, name) for name in names} | {"generation": dict(self.generation)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], files: Mapping[str, bytes]) -> BackboneInfo:
        """Return the info that `record` described, with the small files beside it.

        Raises:
            ModelError: a file is damaged.
        """
        with refusing(CONFIG, "cannot be read", RESTORE):
            config = parsed(files[CONFIG])
            refuse_code(config, where=CONFIG)
        return cls(config=config, tokenizer=files[TOKENIZER], chat=chat_in(files), **record)


def chat_in(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the chat template among a tokenizer's files, with the special tokens that it may use; empty if there is none.

    Raises:
        ModelError: the tokenizer's config is no JSON.
    """
    if CHAT_TEMPLATE not in files:
        return {}
    with refusing(TOKENIZER_CONFIG, "cannot be read", RESTORE):
        settings = parsed(files.get(TOKENIZER_CONFIG, b"{}"))
        tokens = {name: value for name, value in settings.items() if name.endswith("_token") and isinstance(value, str)}
        return {"template": files[CHAT_TEMPLATE].decode("utf-8"), **tokens}


def read_tokenizer(info: BackboneInfo) -> Tokenizer:
    """Return a new tokenizer of a backbone.

    Raises:
        ModelError: it cannot be read, or has tokens that the backbone does not have.
    """
    with refusing(TOKENIZER, "cannot be read", RESTORE):
        backend = info.vocabulary()
        check_vocabulary(backend, info.vocabulary_size, info.token_types, where=TOKENIZER)
        return Tokenizer(backend, max_tokens=info.max_tokens)


def check_vocabulary(backend: tokenizers.Tokenizer, vocabulary_size: int, token_types: int, *, where: str) -> None:
    """Check that every token, those around a text included, has a row in the embedding tables.

    Raises:
        ModelError: one has not, or the tokenizer would make a text many times as long.
    """

    def check(ids: Iterable[int]) -> None:
        known = max(ids, default=-1) + 1
        if known > vocabulary_size:
            problem = f"has a tokenizer of {known} tokens and an embedding table of {vocabulary_size}"
            raise ModelError(where, problem, "resize the embeddings")

    check(backend.get_vocab(with_added_tokens=True).values())  # first: a huge id makes everything else slow
    check_expansion(backend, where=where)
    around = backend.encode("a", "a")
    check(around.ids)
    types = max(around.type_ids, default=0) + 1
    if types > max(2, token_types):
        raise ModelError(where, f"has a tokenizer of {types} token types, expected at most 2", RESTORE)


def refuse_code(values: Any, *, where: str) -> None:
    """Refuse JSON that names code to run, at any depth.

    Raises:
        ModelError: it does; the message names the key.
    """
    for key, value in members(values):
        # Many published configs have `_attn_implementation_autoset: true`, which names nothing.
        if key in _CODE or (key.startswith(_CODE_PREFIXES) and not isinstance(value, bool | None)):
            raise ModelError(
                where, f"has the key {quote(key)}, which names code to run", "use a model that needs no code"
            )


def members(values: Any) -> Iterator[tuple[str, Any]]:
    """Return the keys and values of JSON at any depth."""
    todo = [values]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            yield from value.items()
            todo += value.values()
        elif isinstance(value, list):
            todo += value
