"""The vocabulary and the config of a fresh decoder, for backbones that have none. Imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from nlptasks.errors import UsageError, listing
from nlptasks.generation.options import SpecialTokens
from nlptasks.storage.atomic import parsed

_PAD, _START, _END = 0, 1, 2
_NAMES = ["<pad>", "<s>", "</s>"]
"""Names of the special tokens, in the order of their ids."""

SPECIAL_TOKENS = SpecialTokens(prompt=(_START,), end=(_END,), never=(_PAD, _START))
"""Special tokens of a fresh decoder."""

MAX_LAYERS = 100
"""Largest number of layers of a fresh decoder."""

_HEAD_WIDTH = 64
"""Approximate width of an attention head."""

_POSITIONS = 1024
"""Tokens that a fresh decoder has positions for."""


def train_vocabulary(texts: Iterable[str], size: int) -> str:
    """Return a byte-level vocabulary trained on texts, as ``tokenizer.json``. It can encode every text.

    Args:
        texts: the texts.
        size: largest number of tokens.
    """
    vocabulary = tokenizers.Tokenizer(models.BPE())
    vocabulary.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=_NAMES,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    vocabulary.train_from_iterator(texts, trainer)
    return str(vocabulary.to_str())


def decoder_config(*, width: int, layers: int, vocabulary_size: int) -> dict[str, Any]:
    """Return the config of a fresh decoder, in the style of Pegasus.

    Layer norms before the sublayers and fixed positions learn well from little data.

    Raises:
        UsageError: the width is odd.
    """
    if width % 2:
        raise UsageError("decoder_width", f"is {width}", "use an even number")
    heads = min(
        (count for count in range(1, width + 1) if not width % count),
        key=lambda count: abs(count - width / _HEAD_WIDTH),
    )
    return {
        "vocab_size": vocabulary_size,
        "d_model": width,
        "encoder_layers": 1,
        "decoder_layers": layers,
        "encoder_attention_heads": heads,  # of an encoder that is never built
        "decoder_attention_heads": heads,
        "decoder_ffn_dim": 4 * width,
        "max_position_embeddings": _POSITIONS,
        "scale_embedding": True,
        "pad_token_id": _PAD,
        "bos_token_id": _START,
        "decoder_start_token_id": _START,
        "eos_token_id": _END,
    }


def read_decoder_config(text: str) -> dict[str, Any]:
    """Return a config that `decoder_config` made, from its JSON.

    Raises:
        ValueError: it is something else.
    """
    values = parsed(text.encode("utf-8"))
    known = decoder_config(width=_HEAD_WIDTH, layers=1, vocabulary_size=1)
    if not isinstance(values, dict) or values.keys() != known.keys():
        raise ValueError("the decoder's config has unknown or missing settings")
    wrong = [name for name, value in values.items() if type(value) is not type(known[name])]
    if not wrong and (values["encoder_layers"] != 1 or not 0 < values["decoder_layers"] <= MAX_LAYERS):
        wrong = ["layers"]
    if wrong:
        raise ValueError(f"the decoder's config has wrong values ({listing(wrong)})")
    return values
