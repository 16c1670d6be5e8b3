"""Decoders of our own, for backbones that have none: the vocabulary that they write in, and their shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PegasusConfig

from nlptasks.errors import UsageError, listing
from nlptasks.storage.atomic import parsed

_PAD, _START, _END = 0, 1, 2
_SPECIAL = ["<pad>", "<s>", "</s>"]
"""The special tokens, by their numbers."""

_HEAD_WIDTH = 64
"""Width of an attention head, about."""

MAX_LAYERS = 100
"""Of such a decoder."""

_POSITIONS = 1024
"""Tokens that such a decoder can write."""

MARKS = {"prompt": (_START,), "end": (_END,), "never": (_PAD, _START)}
"""What they begin and end with, and never write."""


def train_vocabulary(texts: Iterable[str], size: int) -> str:
    """A byte-level vocabulary made from texts, as ``tokenizer.json``: whatever can be written can be written in it.

    Args:
        texts: to learn from.
        size: tokens in it, at most.
    """
    vocabulary = tokenizers.Tokenizer(models.BPE())
    vocabulary.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    vocabulary.train_from_iterator(texts, trainer)
    return str(vocabulary.to_str())


def own_config(text: str) -> Any:
    """The config that `own_decoder` describes, from its JSON.

    Raises:
        ValueError: it is not such a one.
    """
    values = parsed(text.encode("utf-8"))
    known = own_decoder(width=_HEAD_WIDTH, layers=1, vocabulary_size=1)
    if not isinstance(values, dict) or values.keys() != known.keys():
        raise ValueError("the decoder's config has other settings than a decoder of our own")
    wrong = [name for name, value in values.items() if type(value) is not type(known[name])]
    if not wrong and (values["encoder_layers"] != 1 or not 0 < values["decoder_layers"] <= MAX_LAYERS):
        wrong = ["layers"]
    if wrong:
        raise ValueError(f"the decoder's config has wrong values ({listing(wrong)})")
    return PegasusConfig(**values)


def own_decoder(*, width: int, layers: int, vocabulary_size: int) -> dict[str, Any]:
    """The config of such a decoder, of Pegasus's kind: norms before the sublayers and fixed positions learn well from few data.

    Raises:
        UsageError: the width is odd.
    """
    if width % 2:
        raise UsageError("decoder_width", f"is {width}", "give an even number")
    heads = min(
        (count for count in range(1, width + 1) if not width % count),
        key=lambda count: abs(count - width / _HEAD_WIDTH),
    )
    return {
        "vocab_size": vocabulary_size,
        "d_model": width,
        "encoder_layers": 1,
        "decoder_layers": layers,
        "encoder_attention_heads": heads,  # of an encoder that is never there
        "decoder_attention_heads": heads,
        "decoder_ffn_dim": 4 * width,
        "max_position_embeddings": _POSITIONS,
        "scale_embedding": True,
        "pad_token_id": _PAD,
        "bos_token_id": _START,
        "decoder_start_token_id": _START,
        "eos_token_id": _END,
    }
